"""The summary of a sweep, however it ends: a table, a CSV, a JSON and a plot of its jobs, and an exit code."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from l2l_runner.errors import UserError, reason
from l2l_runner.launch.sweep_folder import SweepFolder
from l2l_runner.stopping import Stopped, stop_requests


def read_jobs(folder: Path, kept: Collection[str] = (), stopped: bool = False) -> list[dict[str, Any]]:
    """Return the jobs of a sweep's folder, sorted by name.

    Each has `job`, `values` (of all overrides), `status`, `kept`, `score`, `final`, `sum`, `metrics` and `error`.

    Args:
        folder: of the sweep.
        kept: names of the jobs whose results are older than the start of the sweep.
        stopped: whether the sweep was stopped: if so, jobs without a result count as stopped, else as failed.
    """
    jobs = []
    absent = {"status": "stopped"} if stopped else {"status": "failed", "error": "it left no result"}
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda path: sort_key(path.parents[1].name)):
        job = overrides.parents[1]
        known = {"job": job.name, "values": overridden(overrides), "kept": job.name in kept}
        record = {
            **known,
            "score": None,
            "final": None,
            "sum": None,
            "error": None,
            "metrics": {},
            **(_result(job) or absent),
        }
        if record["status"] == "completed" and record["score"] is None:
            record["status"] = "diverged"
        jobs.append(record)
    return jobs


def _result(job: Path) -> dict[str, Any] | None:
    path = job / "result.json"
    return dict(json.loads(path.read_text())) if path.exists() else None


def overridden(path: Path) -> dict[str, str]:
    """Return the keys and values of an overrides.yaml, without the choice of how its sweep was launched."""
    pairs = [str(item).partition("=") for item in OmegaConf.load(path)]
    return {key.lstrip("+"): value for key, _, value in pairs if key != "sweep"}


def keep_swept(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Reduce the jobs' `values` to those that differ between jobs, or keep all if none does; return their keys."""
    keys = list(dict.fromkeys(key for job in jobs for key in job["values"]))
    swept = [key for key in keys if len({job["values"].get(key) for job in jobs}) > 1] or keys
    for job in jobs:
        job["values"] = {key: job["values"].get(key, "default") for key in swept}
    return swept


def sort_key(name: str) -> tuple[int, str]:
    """Return the sort key of a folder's name: numbers come first, in numerical order."""
    return (int(name), "") if name.isdigit() else (1 << 30, name)


class SweepSummary(Callback):
    """Hydra's callback that summarises a sweep once all its jobs have ended.

    It has no state, because launchers send it to the processes of the jobs.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record which results exist already, and receive Ctrl-C for all jobs."""
        global _running
        folder = SweepFolder(Path(str(config.hydra.sweep.dir)).absolute())
        _running = Sweep(folder, f"python -m l2l_runner.{config.hydra.job.name}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the summary; exit with 1 if a job failed."""
        if _running is not None and _running.summarise():
            raise SystemExit(1)


class Sweep:
    """A sweep that this process has started.

    Attributes:
        folder: its folder.
        stop: the signals that requested a stop.
    """

    def __init__(self, folder: SweepFolder, command: str):
        self.folder, self._command = folder, command
        self._before = self._results()
        self._exit_stack = ExitStack()
        self.stop = self._exit_stack.enter_context(stop_requests(folder.stop.touch))

    def _results(self) -> set[tuple[str, int]]:
        """Return the jobs that have results, with the times at which these were written."""
        return {(path.parent.name, path.stat().st_mtime_ns) for path in self.folder.path.glob("*/result.json")}

    def summarise(self, stopped: bool = False) -> bool:
        """Write sweep.csv, .json and .png, print the table and the failures; tell whether a job failed now."""
        from l2l_runner.evaluation.statistics import align
        from l2l_runner.plots import plotting
        from l2l_runner.runs.folder import RunFolder

        folder = self.folder.path
        jobs = read_jobs(folder, {job for job, _ in self._before & self._results()}, stopped)
        if not jobs:
            return False
        swept = keep_swept(jobs)
        metrics = sorted({metric for job in jobs for metric in job["metrics"]})
        rows = [["job", *swept, "final loss", "sum of losses", *metrics, "status"]]
        for job in jobs:
            figures = [_figure(value) for value in (job["final"], job["sum"], *map(job["metrics"].get, metrics))]
            status = job["status"] + ", kept" * job["kept"]
            rows.append([job["job"], *(job["values"][key] for key in swept), *figures, status])
        RunFolder(folder).write_json("sweep.json", jobs)
        with open(folder / "sweep.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            figures = [f"{key}_{part}" for key in ("final", "sum", *metrics) for part in ("mean", "ci95")] + ["score"]
            writer.writerow(["job", *swept, *figures, "status", "kept", "error"])
            for job in jobs:
                found = (job["final"], job["sum"], *map(job["metrics"].get, metrics))
                parts = [(value or {}).get(part) for value in found for part in ("mean", "ci95")]
                values = [job["values"][key] for key in swept]
                writer.writerow([job["job"], *values, *parts, job["score"], job["status"], job["kept"], job["error"]])
        ended = [job for job in jobs if job["status"] != "stopped"]
        if swept and ended:
            plotting.sweep(folder / "sweep.png", swept, ended)
        print("\n".join(["", *align(rows)]))
        scored = [job for job in jobs if job["score"] is not None]
        if scored:
            best = min(scored, key=lambda job: float(job["score"]))
            print("best:", ", ".join(f"{key}={value}" for key, value in best["values"].items()), f"(job {best['job']})")
        counts = Counter(job["status"] for job in jobs)
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
        print("\n".join(str(path) for path in sorted(folder.glob("sweep.*"))))
        failed = [job for job in jobs if job["status"] == "failed" and not job["kept"]]
        for job in failed:
            print(f"job {job['job']} failed: {job['error'].splitlines()[0]}")
        return bool(failed)

    def resume_command(self, arguments: Sequence[str]) -> str:
        """Return the shell command that resumes the sweep."""
        rest = [argument for argument in arguments if not argument.startswith("hydra.sweep.dir=")]
        return f"{self._command} {shlex.join([*rest, f'hydra.sweep.dir={self.folder.path}'])}"

    def close(self) -> None:
        """Restore the signal handlers."""
        self._exit_stack.close()


_running: Sweep | None = None
"""The sweep of this process; None in the separate processes of a sweep's jobs."""


def stop_exception(stopped: Stopped) -> BaseException:
    """Return what a stopped job raises.

    In the process of its sweep, KeyboardInterrupt ends the sweep at once. In a process of its own, `Stopped` reaches
    the launcher as the result of the job, so that the launcher waits for the other jobs to stop.
    """
    return stopped if _running is None else KeyboardInterrupt()


@contextmanager
def sweep_summary(arguments: Sequence[str]) -> Iterator[None]:
    """Summarise a sweep that starts within this context, also if it is stopped or its launcher fails.

    Args:
        arguments: of the command line, as the user gave them.

    Raises:
        SystemExit: the sweep was stopped, or its launcher failed.
    """
    global _running
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException, OSError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if _running is None:
            raise
        stopped = bool(_running.stop) or isinstance(error, (KeyboardInterrupt, Stopped))
        if not stopped:
            print(f"Error: the launcher failed before all jobs had ended ({reason(error)}).", file=sys.stderr)
        _running.summarise(stopped)
        said = "Stopped; all results are kept." if stopped else "All results are kept."
        print(f"{said} To resume:\n  {_running.resume_command(arguments)}")
        raise SystemExit(128 + (_running.stop or [signal.SIGINT])[0] if stopped else 1) from None
    finally:
        if _running is not None:
            _running.close()
            _running = None


def _figure(value: dict[str, float | None] | None) -> str:
    if value is None:
        return "-"
    if value["mean"] is None:
        return "diverged"
    return f"{value['mean']:.4g}" + (f" ± {value['ci95']:.2g}" if value["ci95"] is not None else "")
