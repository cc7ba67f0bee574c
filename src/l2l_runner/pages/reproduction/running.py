"""Running the stages: finished stages are skipped, stopped ones resumed, and a failure does not end the others."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import STDOUT, Popen
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from l2l_runner.errors import DataError, StorageError
from l2l_runner.pages.reproduction.stages import Stage, folder_name
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.reading import read_ended, read_latest
from l2l_runner.stopping import stop_requests

log = logging.getLogger(__name__)
POLL = 0.2  # seconds


@dataclass
class StageOutcome:
    """How a stage ended.

    Attributes:
        stage: what was run.
        folder: of the run.
        arguments: of its command, without those that say only where and with what it computes.
        status: finished, failed, without data, skipped (because a stage that it needs failed) or stopped.
        seconds: of all attempts.
        error: one sentence; None where there was no error.
    """

    stage: Stage
    folder: RunFolder
    arguments: list[str]
    status: str = "stopped"
    seconds: float = 0.0
    error: str | None = None

    @property
    def command(self) -> str:
        """The command that a user would type."""
        return f"python -m l2l_runner.{self.stage.command} {shlex.join(self.arguments)}"


def run_stages(stages: Sequence[Stage], root: Path, machine: Sequence[str], jobs: int) -> dict[str, StageOutcome]:
    """Run stages, each after those that it needs.

    Args:
        stages: in their order, where that is free.
        root: the folder of their folders.
        machine: arguments that say where and with what all stages compute.
        jobs: largest number of stages that run at once.

    Returns:
        How each ended, by name. After Ctrl-C or SIGTERM, unfinished stages are `stopped`.

    Raises:
        StorageError: another process works in `root`.
    """
    outcomes = {outcome.stage.name: outcome for outcome in _outcomes(stages, root)}
    waiting = [outcome for outcome in outcomes.values() if outcome.status != "finished"]
    running: dict[Popen[bytes], tuple[StageOutcome, float]] = {}
    bar = tqdm(total=len(outcomes), initial=len(outcomes) - len(waiting), unit="stage", disable=None)
    with _alone(root), stop_requests() as stop, _none_left(running), bar:
        while running or (waiting and not stop):
            if stop:
                for process in running:
                    process.terminate()
                while running:
                    _reap(running, bar, wait=True)
                break
            for outcome in list(waiting):
                broken = [n for n in outcome.stage.needs if outcomes[n].status in ("failed", "without data", "skipped")]
                if broken:
                    outcome.status, outcome.error = "skipped", f"it needs {broken[0]}"
                    waiting.remove(outcome)
                    bar.update()
                elif len(running) < jobs and all(outcomes[n].status == "finished" for n in outcome.stage.needs):
                    waiting.remove(outcome)
                    log.info("%s: %s", outcome.stage.name, outcome.command)
                    running[_start(outcome, machine)] = (outcome, time.monotonic())
            bar.set_postfix_str(", ".join(_where(outcome) for outcome, _ in running.values()))
            _reap(running, bar)
            time.sleep(POLL)
    return outcomes


def _outcomes(stages: Sequence[Stage], root: Path) -> Iterator[StageOutcome]:
    """Find what earlier attempts at the stages left."""
    folders: dict[str, str] = {}
    for stage in stages:
        arguments = stage.resolved(folders)
        # The name of a stage's folder does not depend on the folder of all results.
        name = folder_name(stage, stage.resolved({n: Path(path).name for n, path in folders.items()}))
        folder = RunFolder(root / name)
        # As a user in this folder would type it.
        here = folder.path.is_relative_to(Path.cwd())
        folders[stage.name] = str(folder.path.relative_to(Path.cwd()) if here else folder.path)
        outcome = StageOutcome(stage, folder, arguments)
        outcome.seconds = (RunFolder(root).read_json(f"{name}.json") or {"seconds": 0.0})["seconds"]
        if read_ended(folder.path) is not None:
            outcome.status = "finished"
        yield outcome


def _start(outcome: StageOutcome, machine: Sequence[str]) -> Popen[bytes]:
    folder = outcome.folder
    if folder.last.exists():
        arguments = [f"resume={folder.path}", *machine]
    else:
        if folder.claimed:  # by an attempt that left no checkpoint to resume from
            shutil.rmtree(folder.path)
        arguments = [*outcome.arguments, *machine, f"hydra.run.dir={folder.path}"]
    with open(_log_of(folder), "wb") as output:
        # In a session of its own, because Ctrl-C in a terminal would reach it twice.
        command = [sys.executable, "-m", f"l2l_runner.{outcome.stage.command}", *arguments]
        return Popen(command, stdout=output, stderr=STDOUT, start_new_session=True)


def _reap(running: dict[Popen[bytes], tuple[StageOutcome, float]], bar: tqdm[Any], wait: bool = False) -> None:
    """Record the outcomes of the stages that ended."""
    for process, (outcome, since) in list(running.items()):
        code = process.wait() if wait else process.poll()
        if code is None:
            continue
        del running[process]
        outcome.seconds += time.monotonic() - since
        path = outcome.folder.path
        RunFolder(path.parent).write_json(f"{path.name}.json", {"seconds": outcome.seconds})
        if code == 0:
            outcome.status = "finished"
            log.info("%s: finished after %.0f s", outcome.stage.name, outcome.seconds)
        elif not wait:
            outcome.status = "without data" if code == DataError.exit_code else "failed"
            outcome.error = _error(_log_of(outcome.folder), code)
            log.info("%s: %s. %s", outcome.stage.name, outcome.status, outcome.error)
        bar.update()


def _error(output: Path, code: int) -> str:
    """Return the error that a run printed."""
    lines = output.read_text(errors="replace").splitlines()
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return said[-1] if said else f"It ended with exit code {code}; see {output}."


def _log_of(folder: RunFolder) -> Path:
    return folder.path.with_name(folder.path.name + ".log")


def _where(outcome: StageOutcome) -> str:
    """Return the name of a running stage, with the latest meta-loss that it recorded."""
    record = read_latest(outcome.folder.path, "meta_step")
    if record is None:
        return outcome.stage.name
    loss = "diverged" if record["meta_loss"] is None else f"{record['meta_loss']:.3g}"
    return f"{outcome.stage.name} at meta-step {record['step']}, meta-loss {loss}"


@contextmanager
def _none_left(running: Iterable[Popen[bytes]]) -> Iterator[None]:
    """Terminate the processes that an error, or a second Ctrl-C, would leave working in unlocked folders."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Lock `root` for this process.

    Raises:
        StorageError: another process has locked it.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"Another process works in {root}: wait until it ends, or choose another folder with folder=FOLDER."
        ) from error
    try:
        yield
    finally:
        lock.release()
