"""The one reader of what a run left: its configuration, records, log, result and comparison, as typed values.

Sweeps, reports and reproductions read runs that another process wrote, perhaps while it still writes. Functions that
take a folder return None where it does not hold the file. A damaged file raises what its parser raises.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from l2l_runner.errors import reason
from l2l_runner.files import read_json
from l2l_runner.runs.results import Interval, RunResult, Summary

LOG_LINE = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\]\[[^]]*\]\[\w+\] - (.*)", re.MULTILINE)
TAIL = 4096  # bytes of metrics.jsonl that hold its latest record


class LogRecord(NamedTuple):
    """A record of a run's log.

    Attributes:
        time: in seconds since the epoch, if the log is of this machine's time zone.
        message: its first line.
    """

    time: float
    message: str


def sort_key(name: str) -> tuple[int, str]:
    """Return the sort key of a folder's name: numbers come first, in numerical order."""
    return (int(name), "") if name.isdigit() else (1 << 30, name)


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the composed configuration of a run.

    References to other keys are resolved. Resolvers, which could read this machine's environment, stay as they are
    written: the run may be somebody else's.

    Raises:
        ValueError: it is no mapping.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.exists():
        return None
    loaded = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(loaded, dict):
        raise ValueError("no mapping")
    content: Any = OmegaConf.to_container(OmegaConf.create(_without_resolvers(loaded)), resolve=True)
    return {str(key): value for key, value in content.items()}


def _without_resolvers(value: Any) -> Any:
    """Return a value in which resolvers are escaped, so that they are not called."""
    if isinstance(value, dict):
        return {key: _without_resolvers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_resolvers(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) and ":" in value else value


def read_overrides(folder: Path) -> dict[str, str]:
    """Read the overrides of a run's command line, without `sweep`, which says only how jobs are launched."""
    path = folder / ".hydra" / "overrides.yaml"
    pairs = [str(item).partition("=") for item in OmegaConf.load(path)] if path.exists() else []
    return {key.lstrip("+"): value for key, _, value in pairs if key != "sweep"}


def read_launch_folder(folder: Path) -> Path | None:
    """Read the folder in which a run's command was given."""
    path = folder / ".hydra" / "hydra.yaml"
    return Path(str(OmegaConf.select(OmegaConf.load(path), "hydra.runtime.cwd"))) if path.exists() else None


def read_result(folder: Path) -> RunResult | None:
    """Read how a run ended, from result.json."""
    content = read_json(folder / "result.json")
    return None if content is None else RunResult.from_json(content)


def read_ended(folder: Path) -> RunResult | None:
    """Read the result of a run that need not be run again; None for another, or where the result is damaged."""
    try:
        result = read_result(folder)
    except _DAMAGED:
        return None
    return result if result is not None and result.has_ended else None


_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)
"""What a damaged JSON file makes its reader raise."""


def read_comparison(folder: Path) -> Summary | None:
    """Read comparison.json."""
    content = read_json(folder / "comparison.json")
    return None if content is None else Summary.from_json(content)


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Read the whole lines of metrics.jsonl; the run may be writing another."""
    path = folder / "metrics.jsonl"
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def read_latest(folder: Path, event: str) -> dict[str, Any] | None:
    """Read the latest record of an event from the end of metrics.jsonl; None where it is not near the end."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        lines = file.read().split(b"\n")
    start = json.dumps({"event": event})[:-1].encode()
    found = next((line for line in reversed(lines[:-1]) if line.startswith(start)), None)
    return None if found is None else dict(json.loads(found))


def read_log(path: Path) -> list[LogRecord]:
    """Read the records of a log file; none where it does not exist."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return [
        LogRecord(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), message)
        for at, message in LOG_LINE.findall(text)
    ]


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        job: the name of its folder.
        values: of its overrides, or of those that differ between the jobs.
        status: completed, diverged, failed or stopped.
        kept: whether its result is older than the start of the sweep.
        result: None where it left none.
        error: why it failed; None where it did not.
    """

    job: str
    values: dict[str, str]
    status: str
    kept: bool = False
    result: RunResult | None = None
    error: str | None = None

    @property
    def score(self) -> float:
        """What its sweep minimises; NaN where it left none."""
        return math.nan if self.result is None else self.result.score

    @property
    def metrics(self) -> dict[str, Interval]:
        """Its metrics after the last step, by name."""
        return {} if self.result is None else self.result.metrics

    def figure(self, key: str) -> Interval | None:
        """Return its `final` loss, `sum` of losses, or a metric; None where it has none."""
        if self.result is None:
            return None
        return {"final": self.result.final, "sum": self.result.sum}.get(key, self.metrics.get(key))

    def to_json(self) -> dict[str, Any]:
        figures = {key: self.figure(key) for key in ("final", "sum")}
        return {
            "job": self.job,
            "values": self.values,
            "kept": self.kept,
            "score": self.score,
            **{key: None if value is None else value.to_json() for key, value in figures.items()},
            "error": self.error,
            "metrics": {name: value.to_json() for name, value in self.metrics.items()},
            "status": self.status,
        }


def read_jobs(folder: Path, kept: Collection[str] = (), stopped: bool = False) -> list[SweepJob]:
    """Read the jobs of a sweep, sorted by the names of their folders.

    Args:
        folder: of the sweep.
        kept: names of the jobs whose results are older than the start of the sweep.
        stopped: whether the sweep was stopped: if so, jobs without a result count as stopped, else as failed.
    """
    jobs = []
    for path in sorted(_jobs(folder), key=lambda path: sort_key(path.name)):
        job = SweepJob(path.name, read_overrides(path), "stopped", path.name in kept)
        try:
            result = read_result(path)
        except _DAMAGED as error:
            jobs.append(replace(job, status="failed", error=f"its result.json cannot be read ({reason(error)})"))
            continue
        if result is not None:
            job = replace(job, status=result.status, result=result, error=result.error)
        elif not stopped:
            job = replace(job, status="failed", error="it left no result")
        jobs.append(job)
    return jobs


def _jobs(folder: Path) -> Iterable[Path]:
    return (path.parents[1] for path in folder.glob("*/.hydra/overrides.yaml"))


def keep_swept(jobs: Sequence[SweepJob]) -> list[SweepJob]:
    """Return the jobs with those of their `values` that differ between jobs; with all where none does."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.values))
    swept = [key for key in keys if len({job.values.get(key) for job in jobs}) > 1] or keys
    return [replace(job, values={key: job.values.get(key, "default") for key in swept}) for job in jobs]
