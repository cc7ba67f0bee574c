"""The folder of a sweep: a job has the folder in it that belongs to what the job computes, whatever its number is.

So a sweep that is started again, with more values or fewer, finds what is there. Folders are handed out by a resolver
of `hydra.sweep.subdir`, before Hydra writes anything into them, in whichever process the job is run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from l2l_runner.errors import StorageError
from l2l_runner.runs.folder import WHERE_KEYS
from l2l_runner.stopping import POLL, Stopped, relayed


def identity(config: Mapping[str, Any], swept: Collection[str]) -> str:
    """A name for what a job computes.

    Args:
        config: all that it was composed of.
        swept: the keys that its sweep goes over.
    """

    def is_swept(key: str) -> bool:
        return any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in swept)

    free = [key for key in WHERE_KEYS if not is_swept(key)]
    counting = json.dumps(_without(config, free), sort_keys=True, default=str)
    return hashlib.sha256(counting.encode()).hexdigest()[:16]


def _without(config: Mapping[str, Any], free: Collection[str], path: str = "") -> dict[str, Any]:
    return {
        str(key): _without(value, free, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{path}{key}" not in free
    }


def without_hydra(config: DictConfig) -> dict[str, Any]:
    """What a job is composed of, interpolations resolved."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return dict(OmegaConf.to_container(own, resolve=True))  # type: ignore[arg-type]


class SweepFolder:
    """A sweep's folder, with what the processes of its jobs must agree on in `.sweep/`.

    Attributes:
        path: the folder.
        own: `.sweep/` in it.
        stop: a file that is there from a request to stop until the sweep is started again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.own = path / ".sweep"
        self.stop = self.own / "stop"

    def begin(self, swept: Collection[str], handed_out: bool = True, program: str = "train") -> None:
        """Start a sweep over these keys, or go on with one.

        Args:
            swept: the keys.
            handed_out: whether jobs have the folders that `folder_of` gives them, and not others of the user's.
            program: whose jobs they are: train, or eval.

        Raises:
            StorageError: the folder belongs to something else, or cannot be written.
        """
        others = {".run": "a run", "multirun.yaml": "a sweep of an older version"}
        owner = next((owner for mark, owner in others.items() if (self.path / mark).exists()), None)
        if owner is not None and not self.own.exists():
            raise StorageError(
                f"{self.path} already belongs to {owner}: give the new sweep its own with hydra.sweep.dir=FOLDER."
            )
        before = self.own / "program"
        if before.exists() and before.read_text() != program:
            raise StorageError(
                f"{self.path} already belongs to a sweep of {before.read_text()}: give that of {program} its own with "
                "hydra.sweep.dir=FOLDER."
            )
        if not (handed_out and self.own.exists()) and any(self.path.glob("*/.run")):
            raise StorageError(
                f"{self.path} already holds runs, which a sweep goes on with only if they are its own jobs, without "
                "hydra.sweep.subdir: give the new sweep a folder of its own with hydra.sweep.dir=FOLDER."
            )
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            self.stop.unlink(missing_ok=True)
            (self.own / "swept.json").write_text(json.dumps(sorted(swept)))
            before.write_text(program)
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written ({error.strerror}): choose another with hydra.sweep.dir=FOLDER."
            ) from error

    def folder_of(self, config: Mapping[str, Any], number: int) -> str:
        """The name of a job's folder: the one that it had before, or a free one, its number if that is free."""
        with FileLock(self.own / "lock"):
            entry = self._entry(config)
            if entry.exists() and self._still(entry):
                return entry.read_text()
            numbers = itertools.chain([number], itertools.count())
            folder = next(str(n) for n in numbers if not (self.path / str(n)).exists())
            (self.path / folder).mkdir()
            (self.own / "new").write_text(folder)
            os.replace(self.own / "new", entry)
            return folder

    def is_of(self, folder: str, config: Mapping[str, Any]) -> bool:
        """Whether a folder was handed out to a job."""
        entry = self._entry(config)
        return entry.exists() and entry.read_text() == folder

    def _entry(self, config: Mapping[str, Any]) -> Path:
        """The file that holds the name of a job's folder, where it has one."""
        return self.own / identity(config, json.loads((self.own / "swept.json").read_text()))

    def _still(self, entry: Path) -> bool:
        """Whether a folder's run is what it was; one that was resumed by itself, for longer, say, is another now."""
        folder = self.path / entry.read_text()
        config = folder / ".hydra" / "config.yaml"
        if not config.exists():
            return folder.is_dir()
        return self._entry(without_hydra(OmegaConf.create(config.read_text()))) == entry  # type: ignore[arg-type]

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """Have a job's folder for oneself: another job that computes the same comes after or before.

        Raises:
            Stopped: the sweep is to stop.
        """
        lock = FileLock(self.own / f"{folder}.lock", timeout=POLL)
        while not lock.is_locked:  # not for long at a time, so that a stop is heard
            if self.stop.exists():
                raise Stopped("Not started.", 130)
            with suppress(Timeout):
                lock.acquire()
        try:
            with relayed(self.stop):
                yield
        finally:
            lock.release()
