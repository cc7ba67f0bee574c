"""The folder of a sweep: each job's folder follows from what the job computes, not from its number.

So a sweep that is started again, with more values or fewer, finds the results that exist. A resolver of
`hydra.sweep.subdir` assigns the folders before Hydra writes into them, in whichever process the job runs.
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
    """Return a hash of what a job computes.

    Keys that say where it is computed don't count, unless the sweep varies them.

    Args:
        config: the composed configuration of the job.
        swept: the keys that the sweep varies.
    """

    def is_swept(key: str) -> bool:
        return any(f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}.") for other in swept)

    ignored = [key for key in WHERE_KEYS if not is_swept(key)]
    content = json.dumps(_without(config, ignored), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _without(config: Mapping[str, Any], ignored: Collection[str], path: str = "") -> dict[str, Any]:
    return {
        str(key): _without(value, ignored, f"{path}{key}.") if isinstance(value, Mapping) else value
        for key, value in config.items()
        if f"{path}{key}" not in ignored
    }


def without_hydra(config: DictConfig) -> dict[str, Any]:
    """Return the composed configuration of a job without Hydra's own part, with all interpolations resolved."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return dict(OmegaConf.to_container(own, resolve=True))  # type: ignore[arg-type]


class SweepFolder:
    """A sweep's folder; the processes of the jobs share their state in `.sweep/`.

    Attributes:
        path: the folder.
        state: the folder `.sweep/` in it.
        stop: a file that exists from a stop request until the sweep is started again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.state = path / ".sweep"
        self.stop = self.state / "stop"

    def begin(self, swept: Collection[str], assigned: bool = True, program: str = "train") -> None:
        """Start or resume a sweep.

        Args:
            swept: the keys that it varies.
            assigned: whether `folder_of` assigns the folders of the jobs; False if the user set hydra.sweep.subdir.
            program: the command of its jobs: train or eval.

        Raises:
            StorageError: the folder belongs to something else, or cannot be written.
        """
        elsewhere = "give the new sweep a folder of its own with hydra.sweep.dir=FOLDER."
        if (self.path / ".run").exists() and not self.state.exists():
            raise StorageError(f"{self.path} already belongs to a run: {elsewhere}")
        owner = self.state / "program"
        if owner.exists() and owner.read_text() != program:
            raise StorageError(f"{self.path} already belongs to a sweep of {owner.read_text()}: {elsewhere}")
        if not (assigned and self.state.exists()) and any(self.path.glob("*/.run")):
            raise StorageError(
                f"{self.path} already holds runs. A sweep resumes only its own jobs, without hydra.sweep.subdir: "
                f"{elsewhere}"
            )
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            self.stop.unlink(missing_ok=True)
            (self.state / "swept.json").write_text(json.dumps(sorted(swept)))
            owner.write_text(program)
        except OSError as error:
            raise StorageError(
                f"{self.path} could not be written ({error.strerror}): choose another with hydra.sweep.dir=FOLDER."
            ) from error

    def folder_of(self, config: Mapping[str, Any], number: int) -> str:
        """Return the name of a job's folder: the one that it had before, else its number or the next free one."""
        with FileLock(self.state / "lock"):
            entry = self._entry(config)
            if entry.exists() and self._is_current(entry):
                return entry.read_text()
            numbers = itertools.chain([number], itertools.count())
            folder = next(str(n) for n in numbers if not (self.path / str(n)).exists())
            (self.path / folder).mkdir()
            (self.state / "new").write_text(folder)
            os.replace(self.state / "new", entry)
            return folder

    def is_of(self, folder: str, config: Mapping[str, Any]) -> bool:
        """Tell whether a folder was assigned to a job."""
        entry = self._entry(config)
        return entry.exists() and entry.read_text() == folder

    def _entry(self, config: Mapping[str, Any]) -> Path:
        """Return the path of the file that holds the name of a job's folder, if the job has one."""
        return self.state / identity(config, json.loads((self.state / "swept.json").read_text()))

    def _is_current(self, entry: Path) -> bool:
        """Tell whether a folder's run is still that job, and was not resumed alone with other settings since."""
        folder = self.path / entry.read_text()
        config = folder / ".hydra" / "config.yaml"
        if not config.exists():
            return folder.is_dir()
        return self._entry(without_hydra(OmegaConf.create(config.read_text()))) == entry  # type: ignore[arg-type]

    @contextmanager
    def locked(self, folder: str) -> Iterator[None]:
        """Lock a job's folder, so that jobs that compute the same run one after another.

        Raises:
            Stopped: the sweep was asked to stop.
        """
        lock = FileLock(self.state / f"{folder}.lock", timeout=POLL)
        while not lock.is_locked:  # with a short timeout, so that a stop request is noticed
            if self.stop.exists():
                raise Stopped("Not started.", 130)
            with suppress(Timeout):
                lock.acquire()
        try:
            with relayed(self.stop):
                yield
        finally:
            lock.release()
