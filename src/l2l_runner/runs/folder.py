"""A run's folder is its record: never shared by two runs, never overwritten unless resumed."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from l2l_runner import files
from l2l_runner.errors import CheckpointError, FolderTaken, StorageError, reason
from l2l_runner.files import jsonable, with_nan

log = logging.getLogger(__name__)

WHERE_KEYS = ("resume", "data", "device.name", "device.threads", "kernel", "logger")
"""Keys that say where and with what help a run is computed, but not what it computes."""

RESUMING = ".resuming"  # where Hydra writes a resumption's settings until they are accepted


class Tracker:
    """Is told of everything that is written to a run's folder, to show it elsewhere; this one ignores it."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Take note of a new line of metrics.jsonl."""

    def picture(self, path: Path) -> None:
        """Take note of a new picture."""

    def content(self, path: Path, content: Any) -> None:
        """Take note of a new JSON file."""

    def saved(self) -> None:
        """Take note of a new checkpoint, from which the run can be resumed."""

    def end(self, result: Mapping[str, Any]) -> None:
        """Take note of the result, at the end of the run."""

    def close(self, status: str) -> None:
        """Close: the run is FINISHED, was stopped (KILLED) or FAILED."""


class RunFolder:
    """Paths and records of one run, and its tracker."""

    def __init__(self, path: Path):
        self.path = path
        self.tracker = Tracker()
        self.best = path / "checkpoints" / "best.pt"
        self.last = path / "checkpoints" / "last.pt"
        self.metrics = path / "metrics.jsonl"
        self.frames = path / "frames"
        self.resuming = path / RESUMING
        self._run = path / ".run"
        self._owner = path / ".pid"

    def claim(self, exist_ok: bool = False) -> None:
        """Claim the folder for this run.

        Args:
            exist_ok: accept a folder that is claimed already.

        Raises:
            FolderTaken: another run has claimed it.
            StorageError: it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._run.touch(exist_ok=exist_ok)
        except FileExistsError as error:
            raise FolderTaken(self.taken) from error
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written ({error.strerror}): choose another with hydra.run.dir=FOLDER."
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out of the folder; the lock goes with this process, however that ends.

        Raises:
            FolderTaken: another process works in the folder.
        """
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            owner = self._owner.read_text() if self._owner.exists() else ""
            raise FolderTaken(
                f"{self.path} is in use by {f'process {owner}' if owner else 'another process'}: wait until it ends, "
                "or stop it."
            ) from error
        try:
            self._owner.write_text(str(os.getpid()))
            yield
        finally:
            lock.release()

    @property
    def claimed(self) -> bool:
        return self._run.exists()

    @property
    def taken(self) -> str:
        """The message to a second run that wants this folder."""
        return (
            f"{self.path} already belongs to a run: resume it with {self.how_to_resume}, or give the new run a "
            "folder of its own with hydra.run.dir=FOLDER."
        )

    @property
    def how_to_resume(self) -> str:
        """The override that resumes this run, quoted for a shell."""
        return shlex.quote(f"resume={self.path}")

    def accept(self) -> None:
        """Keep the settings of the resumption as the run's own, once they are known to fit."""
        for file in self.resuming.glob("*.yaml"):
            os.replace(file, self.path / ".hydra" / file.name)

    def log(self, record: dict[str, Any]) -> int:
        """Append one line to metrics.jsonl; return the file's size in bytes.

        Raises:
            StorageError: the line could not be written whole.
        """
        try:
            with open(self.metrics, "ab") as file:
                file.write(json.dumps(jsonable(record)).encode() + b"\n")
                file.flush()
                size = file.tell()
        except OSError as error:
            raise StorageError(
                f"{self.metrics} could not be written ({error.strerror}): make room or permit writing there, then "
                f"resume with {self.how_to_resume}; the checkpoints are as they were last saved."
            ) from error
        self.tracker.record(jsonable(record))
        return size

    def truncate(self, size: int) -> None:
        """Drop the lines of metrics.jsonl beyond `size` bytes, which no checkpoint knows of.

        Raises:
            CheckpointError: the file is shorter, so that lines that a checkpoint knows of are lost.
        """
        found = self.metrics.stat().st_size if self.metrics.exists() else 0
        if found < size:
            raise CheckpointError(
                f"{self.metrics} has {found} bytes and had {size} when {self.last} was saved: lines of it are lost. "
                "Restore the file, or start a new run with init=CHECKPOINT."
            )
        if found > size:
            os.truncate(self.metrics, size)

    def records(self) -> list[dict[str, Any]]:
        """Return all lines of metrics.jsonl."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().splitlines()]

    def readings(self) -> list[dict[str, Any]]:
        """Return the fields of all lines of event `reading`, with NaN for null."""
        records = (record for record in self.records() if record["event"] == "reading")
        return [{key: with_nan(value) for key, value in record.items() if key != "event"} for record in records]

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file of the folder, atomically; return its path."""
        path = self.path / name
        files.write_json(path, content)
        self.tracker.content(path, jsonable(content))
        return path

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the folder; None if it does not exist."""
        return files.read_json(self.path / name)

    def draw(self, plot: Callable[..., None], names: str | Sequence[str], *data: Any) -> Path:
        """Draw a picture into the folder with a function of `plots`, under one or several names; return the first path.

        A picture that cannot be drawn is logged and left out: it must not end a run.

        Raises:
            StorageError: it could not be written.
        """
        paths = [self.path / name for name in ([names] if isinstance(names, str) else names)]
        try:
            plot(paths[0] if isinstance(names, str) else paths, *data)
        except StorageError:
            raise
        except Exception as error:
            log.warning("%s could not be drawn (%s).", paths[0].name, reason(error))
            log.debug("The traceback:", exc_info=True)
        else:
            self.tracker.picture(paths[0])
        return paths[0]
