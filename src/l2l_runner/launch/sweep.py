"""The summary of a sweep, however it ends: a table, a CSV, a JSON and a plot of its jobs, and an exit code."""

from __future__ import annotations

import csv
import math
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from l2l_runner.errors import UserError, reason
from l2l_runner.launch.sweep_folder import SweepFolder
from l2l_runner.runs.reading import keep_swept, read_jobs
from l2l_runner.stopping import Stopped, stop_requests


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
        from l2l_runner import plots
        from l2l_runner.evaluation.statistics import align
        from l2l_runner.evaluation.sweep_points import sweep_points
        from l2l_runner.files import jsonable, write_json

        folder = self.folder.path
        jobs = keep_swept(read_jobs(folder, {job for job, _ in self._before & self._results()}, stopped))
        if not jobs:
            return False
        swept = list(jobs[0].values)
        metrics = sorted({metric for job in jobs for metric in job.metrics})
        rows = [["job", *swept, "final loss", "sum of losses", *metrics, "status"]]
        for job in jobs:
            figures = [job.figure(key) for key in ("final", "sum", *metrics)]
            shown = ["-" if figure is None else figure.shown() for figure in figures]
            rows.append([job.job, *job.values.values(), *shown, job.status + ", kept" * job.kept])
        write_json(folder / "sweep.json", [job.to_json() for job in jobs])
        with open(folder / "sweep.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            columns = [f"{key}_{part}" for key in ("final", "sum", *metrics) for part in ("mean", "ci95")] + ["score"]
            writer.writerow(["job", *swept, *columns, "status", "kept", "error"])
            for job in jobs:
                figures = [job.figure(key) for key in ("final", "sum", *metrics)]
                parts = [part for one in figures for part in ((one.mean, one.ci95) if one else (None, None))]
                values = jsonable([*parts, job.score])  # what is not finite leaves its cell empty
                writer.writerow([job.job, *job.values.values(), *values, job.status, job.kept, job.error])
        ended = [job for job in jobs if job.status != "stopped"]
        if swept and ended:
            read = {metric: sweep_points(ended, metric) for metric in metrics}
            plots.sweep(folder / "sweep.png", sweep_points(ended, "final"), read)
        print("\n".join(["", *align(rows)]))
        scored = [job for job in jobs if math.isfinite(job.score)]
        if scored:
            best = min(scored, key=lambda job: job.score)
            print("best:", ", ".join(f"{key}={value}" for key, value in best.values.items()), f"(job {best.job})")
        counts = Counter(job.status for job in jobs)
        print(", ".join(f"{count} {status}" for status, count in counts.items()))
        print("\n".join(str(path) for path in sorted(folder.glob("sweep.*"))))
        failed = [job for job in jobs if job.status == "failed" and not job.kept]
        for job in failed:
            print(f"job {job.job} failed: {str(job.error).splitlines()[0]}")
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
