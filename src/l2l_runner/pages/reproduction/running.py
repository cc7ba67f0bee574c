"""Running the stages: what is finished is skipped, what was stopped goes on, and one failure doesn't end the others."""

from __future__ import annotations

import json
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
from l2l_runner.stopping import stop_requests

log = logging.getLogger(__name__)
POLL = 0.2  # seconds
TAIL = 4096  # bytes


@dataclass
class StageOutcome:
    """How a stage ended.

    Attributes:
        stage: what was run.
        folder: of the run.
        arguments: of its command, without what only says where and with what.
        status: finished, failed, without data, skipped (because of another's failure) or stopped.
        seconds: that it took, in all attempts.
        error: the sentence that says what was wrong.
    """

    stage: Stage
    folder: RunFolder
    arguments: list[str]
    status: str = "stopped"
    seconds: float = 0.0
    error: str | None = None

    @property
    def command(self) -> str:
        """What a user would type."""
        return f"python -m l2l_runner.{self.stage.command} {shlex.join(self.arguments)}"


def run_stages(stages: Sequence[Stage], root: Path, machine: Sequence[str], jobs: int) -> dict[str, StageOutcome]:
    """Run stages, each after those that it needs, as many as `jobs` at once.

    Args:
        stages: in the order in which they are to be run, where that is free.
        root: their folders lie in it.
        machine: arguments that say where and with what all of them are computed.
        jobs: stages at once.

    Returns:
        How each ended, by name. After Ctrl-C or SIGTERM, what isn't finished is `stopped`.

    Raises:
        StorageError: another process is at work in `root`.
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
    folders: dict[str, str] = {}
    for stage in stages:
        arguments = stage.resolved(folders)
        # What a stage is does not depend on where the results lie.
        name = folder_name(stage, stage.resolved({n: Path(path).name for n, path in folders.items()}))
        folder = RunFolder(root / name)
        # As a user in this folder would type it.
        here = folder.path.is_relative_to(Path.cwd())
        folders[stage.name] = str(folder.path.relative_to(Path.cwd()) if here else folder.path)
        outcome = StageOutcome(stage, folder, arguments)
        outcome.seconds = (RunFolder(root).read_json(f"{name}.json") or {"seconds": 0.0})["seconds"]
        if (folder.read_json("result.json") or {"status": "none"})["status"] in ("completed", "diverged"):
            outcome.status = "finished"
        yield outcome


def _start(outcome: StageOutcome, machine: Sequence[str]) -> Popen[bytes]:
    folder = outcome.folder
    if folder.last.exists():
        arguments = [f"resume={folder.path}", *machine]
    else:
        if folder.claimed:  # by an attempt that left nothing to go on from
            shutil.rmtree(folder.path)
        arguments = [*outcome.arguments, *machine, f"hydra.run.dir={folder.path}"]
    with open(_log_of(folder), "wb") as output:
        # In a session of its own: Ctrl-C in a terminal would reach it twice.
        command = [sys.executable, "-m", f"l2l_runner.{outcome.stage.command}", *arguments]
        return Popen(command, stdout=output, stderr=STDOUT, start_new_session=True)


def _reap(running: dict[Popen[bytes], tuple[StageOutcome, float]], bar: tqdm[Any], wait: bool = False) -> None:
    """Note how those have ended that have."""
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
    """What a run said of its failure."""
    lines = output.read_text(errors="replace").splitlines()
    said = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return said[-1] if said else f"It ended with exit code {code}; see {output}."


def _log_of(folder: RunFolder) -> Path:
    return folder.path.with_name(folder.path.name + ".log")


def _where(outcome: StageOutcome) -> str:
    """A running stage with the last figures that it has recorded."""
    if not outcome.folder.metrics.exists():
        return outcome.stage.name
    with open(outcome.folder.metrics, "rb") as file:
        file.seek(max(0, file.seek(0, 2) - TAIL))
        lines = file.read().split(b"\n")
    for line in reversed(lines[:-1]):
        if line.startswith(b'{"event": "meta_step"'):
            record = json.loads(line)
            loss = "diverged" if record["meta_loss"] is None else f"{record['meta_loss']:.3g}"
            return f"{outcome.stage.name} at meta-step {record['step']}, meta-loss {loss}"
    return outcome.stage.name


@contextmanager
def _none_left(running: Iterable[Popen[bytes]]) -> Iterator[None]:
    """End those that an error, or a second Ctrl-C, would leave at work in folders that are then anybody's."""
    try:
        yield
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Be the only one at work in `root`.

    Raises:
        StorageError: another process is.
    """
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise StorageError(
            f"Another process is at work in {root}: wait for its end, or give this one a folder of its own with "
            "folder=FOLDER."
        ) from error
    try:
        yield
    finally:
        lock.release()
