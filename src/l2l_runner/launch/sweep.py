"""The end of a sweep, however it ends: a table, a CSV, a JSON and a plot of its jobs, and an exit code."""

from __future__ import annotations

import csv
import json
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
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


def has_ended(result: Mapping[str, Any] | None) -> bool:
    """Whether a job with this result need not be run again."""
    return result is not None and result["status"] in ("completed", "diverged")


def read_jobs(folder: Path, kept: Collection[str] = (), stopped: bool = False) -> list[dict[str, Any]]:
    """The jobs of a sweep's folder, in order; one without a result has failed, or was stopped with its sweep.

    Each has `job`, `values` (of all overrides), `status`, `kept`, `score`, `final`, `sum`, `metrics` and `error`.

    Args:
        folder: of the sweep.
        kept: names of jobs whose results are older than the sweep's start.
        stopped: whether the sweep was.
    """
    jobs = []
    absent = {"status": "stopped"} if stopped else {"status": "failed", "error": "it left no result"}
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml"), key=lambda path: place(path.parents[1].name)):
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
    """The keys and values of an overrides.yaml, but for how its sweep was run."""
    pairs = [str(item).partition("=") for item in OmegaConf.load(path)]
    return {key.lstrip("+"): value for key, _, value in pairs if key != "sweep"}


def keep_swept(jobs: Sequence[dict[str, Any]]) -> list[str]:
    """Leave of the jobs' `values` those that differ between jobs (all where none does); their keys."""
    keys = list(dict.fromkeys(key for job in jobs for key in job["values"]))
    swept = [key for key in keys if len({job["values"].get(key) for job in jobs}) > 1] or keys
    for job in jobs:
        job["values"] = {key: job["values"].get(key, "default") for key in swept}
    return swept


def place(name: str) -> tuple[int, str]:
    """What folders are sorted by: numbers as numbers, before names."""
    return (int(name), "") if name.isdigit() else (1 << 30, name)


class SweepSummary(Callback):
    """Hydra's callback that watches over a sweep, and sums it up once all its jobs have ended.

    It has no state of its own, because launchers send it to the jobs' processes.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Note what is there already, and hear Ctrl-C for all jobs."""
        global _running
        folder = SweepFolder(Path(str(config.hydra.sweep.dir)).absolute())
        _running = Sweep(folder, f"python -m l2l_runner.{config.hydra.job.name}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Sum up; exit with 1 if a job failed."""
        if _running is not None and _running.sum_up():
            raise SystemExit(1)


class Sweep:
    """A sweep that this process has started.

    Attributes:
        folder: its folder.
        stop: the signals that asked it to stop.
    """

    def __init__(self, folder: SweepFolder, command: str):
        self.folder, self._command = folder, command
        self._before = self._results()
        self._until_the_end = ExitStack()
        self.stop = self._until_the_end.enter_context(stop_requests(folder.stop.touch))

    def _results(self) -> set[tuple[str, int]]:
        """The jobs that have results, and when these were written."""
        return {(path.parent.name, path.stat().st_mtime_ns) for path in self.folder.path.glob("*/result.json")}

    def sum_up(self, stopped: bool = False) -> bool:
        """Write sweep.csv, .json and .png, print the table and what has failed now; whether anything has."""
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

    def how_to_go_on(self, arguments: Sequence[str]) -> str:
        """The command that goes on with the sweep, as a shell wants it."""
        rest = [argument for argument in arguments if not argument.startswith("hydra.sweep.dir=")]
        return f"{self._command} {shlex.join([*rest, f'hydra.sweep.dir={self.folder.path}'])}"

    def close(self) -> None:
        """Leave signals to others again."""
        self._until_the_end.close()


_running: Sweep | None = None
"""None in the processes of a sweep's jobs, where they have their own."""


def stop_exception(stopped: Stopped) -> BaseException:
    """What a job that was stopped raises: in the process of its sweep what ends the sweep at once.

    In a process of its own it raises what launchers take for a result, so that they wait for the others to stop.
    """
    return stopped if _running is None else KeyboardInterrupt()


@contextmanager
def summed_up(arguments: Sequence[str]) -> Iterator[None]:
    """Sum up a sweep that is begun within, also if it is stopped or if its launcher fails.

    Args:
        arguments: those that the user gave.

    Raises:
        SystemExit: it was stopped, or its launcher has failed.
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
        _running.sum_up(stopped)
        said = "Stopped; what is there is kept." if stopped else "What is there is kept."
        print(f"{said} To go on:\n  {_running.how_to_go_on(arguments)}")
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
