"""What the tests of whole runs need: tiny settings, `train` and `eval` in this process or in one of their own, and
comparisons of run folders, bit for bit.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from PIL import Image

from l2l_runner import eval as eval_module
from l2l_runner import files, plots
from l2l_runner import train as train_module
from l2l_runner.runs import checkpoint

ROOT = Path(__file__).parents[1]

# A run of less than a second: small problems, short trajectories, one thread.
SMALL = ["optimizee.batch=4", "optimizee.validation_problems=4", "optimizee.test_problems=4", "unroll.steps=10"]
SMALL += ["meta.steps=6", "meta.validate_every=2", "unroll.length=4"]
SMALL += ["evaluation.tune.per_decade=1", "evaluation.tune.refinements=0", "device=cpu", "device.threads=1"]
QUADRATIC = ["optimizee.dim=3", *SMALL]
TINY = [*QUADRATIC, "optimizer.hidden=4"]
QUICK = [*TINY, "evaluate=false"]
EVAL = ["tune.per_decade=1", "tune.refinements=0", "device=cpu", "device.threads=1"]

PLUGINS = {
    "joblib": "hydra_joblib_launcher",
    "slurm": "hydra_submitit_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "ray": "hydra_ray_launcher",
    "optuna": "hydra_optuna_sweeper",
}
"""Hydra's plugins, by what they are chosen by on the command line."""


def has_plugin(name: str) -> bool:
    """Whether what is chosen by this name is installed."""
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{PLUGINS[name]}") is not None


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def train(folder: Path | None, *arguments: str) -> Ended:
    """`python -m l2l_runner.train`, in this process, in `folder` where one is given."""
    return call(train_module.main, folder, arguments)


def evaluate(folder: Path | None, *arguments: str) -> Ended:
    """`python -m l2l_runner.eval`, likewise."""
    return call(eval_module.main, folder, arguments)


def call(main: Callable[[], object], folder: Path | None, arguments: Sequence[str]) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    handlers, level, raising, argv = root.handlers[:], root.level, logging.raiseExceptions, sys.argv
    code: Any = 0
    try:
        sys.argv = ["l2l_runner", *arguments, *([] if folder is None else [f"hydra.run.dir='{folder}'"])]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), composed_once():
            main()
    except SystemExit as end:
        code = end.code
    finally:
        # Hydra hangs its own handlers on the root logger, which hold the log file and the captured stdout.
        for handler in root.handlers[:]:
            if handler not in handlers:
                root.removeHandler(handler)
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)
        logging.raiseExceptions, sys.argv = raising, argv
        GlobalHydra.instance().clear()
    return Ended(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def composed_once() -> Iterator[None]:
    """Keep Hydra from composing twice: before each run it composes everything in search of `hydra.mode`."""
    honest = Hydra.get_mode

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        return honest(self, config_name, overrides) if any("hydra.mode" in item for item in overrides) else None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hydra, "get_mode", get_mode)
        yield


def spawn(*arguments: str, module: str = "l2l_runner.train", cwd: Path | None = None) -> subprocess.Popen[str]:
    """The same in a process of its own, which hears Ctrl-C even where the tests are run in the background."""
    command = [sys.executable, "-m", module, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, text=True, stdout=pipe, stderr=pipe, preexec_fn=_hear_ctrl_c)


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SERVER = multiprocessing.get_context("forkserver")  # PyTorch is imported once; a fork of this process could hang in it
SERVER.set_forkserver_preload(["running"])


class Fork:
    """`train` in a process of its own that need not import PyTorch first; it has what is used of a Popen."""

    def __init__(self, *arguments: str, cwd: Path | None = None):
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("out", "err")]
        self._process = SERVER.Process(target=_run_forked, args=(arguments, cwd, self._outputs))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train", timeout or 0)
        out, err = (path.read_text() for path in self._outputs)
        self._folder.cleanup()
        return out, err


def _run_forked(arguments: Sequence[str], cwd: Path | None, outputs: Sequence[Path]) -> None:
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = ["l2l_runner.train", *arguments]
    if cwd is not None:
        os.chdir(cwd)
    train_module.main()


def finish(process: subprocess.Popen[str] | Fork) -> Ended:
    """Wait for a process, which is killed if it hangs."""
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"The process hangs: {process.communicate()}") from None
    assert process.returncode is not None
    return Ended(process.returncode, out, err)


def wait_until(process: subprocess.Popen[str] | Fork, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; it is an error if the process ends before."""
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"The process ended too early, with {process.returncode}: {process.communicate()}")
        time.sleep(0.002)


def lines(folder: Path) -> int:
    """Whole lines of a run's metrics.jsonl so far."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def records(folder: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, of one kind or all."""
    found = [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in found if event is None or record["event"] == event]


def strict_json(text: str) -> Any:
    """Parse JSON as the standard has it: Python's NaN and Infinity are errors."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def read_json(path: Path) -> Any:
    """The same, of a file."""
    return strict_json(path.read_text())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def best(folder: Path) -> dict[str, Any]:
    """The content of best.pt."""
    return checkpoint.load(folder / "checkpoints" / "best.pt")


def last(folder: Path) -> dict[str, Any]:
    """The content of last.pt."""
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested values are the same, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same_bits(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same_bits(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


PICTURES = ("learning.png", "learning.gif", "comparison.png")
RESULTS = ("metrics.jsonl", "comparison.json", "comparison.csv", "result.json")


def assert_same_run(mine: Path, theirs: Path) -> None:
    """Two runs left the same: parameters, Adam's state, progress, metrics, pictures, frames and comparison."""
    for read in (best, last):
        for part in ("optimizer", "meta_optimizer", "progress"):
            assert same_bits(read(mine)[part], read(theirs)[part]), f"{part} of {read.__name__}.pt"
    files, expected = snapshot(mine), snapshot(theirs)
    names = {name for name in (*files, *expected) if name.startswith("frames/") or name in (*PICTURES, *RESULTS)}
    assert {name for name in names if files.get(name) != expected.get(name)} == set()


def assert_one_sentence(ended: Ended, *words: str, code: int = 1) -> None:
    """A user's error: an exit code, and nothing on stderr but one sentence that holds the words."""
    assert ended.code == code
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.startswith("Error: "), ended.err
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.endswith("\n"), ended.err
    for word in words:
        assert word in ended.err


def sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing but the hash of what would be drawn: most of a tiny run's time goes into its pictures.

    Two sketches are the same where the data of the two pictures are.
    """

    def sketched(paths: Path | Sequence[Path], *data: Any) -> None:
        buffer = io.BytesIO()
        Image.frombytes("L", (8, 4), hashlib.sha256(repr(data).encode()).digest()).save(buffer, format="PNG")
        for path in [paths] if isinstance(paths, Path) else paths:
            files.write_atomically(path, buffer.getvalue())

    for name in ("learning", "comparison", "single_curve", "sweep", "online", "reweighting", "pictures"):
        monkeypatch.setattr(plots, name, sketched)


def run_command(command: Sequence[str], output: str) -> None:
    """`python -m l2l_runner.train …` or eval in this process, which ends with its exit code, with sketched pictures."""
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        ended = {"l2l_runner.train": train, "l2l_runner.eval": evaluate}[command[2]](None, *command[3:])
    Path(output).write_text(ended.out + ended.err)
    sys.exit(ended.code)


class Spy(Callback):
    """Hydra's callback that notes what each job returns to a sweeper."""

    returned: list[Any] = []  # noqa: RUF012 - Hydra builds the instance, the test reads the class

    def on_job_end(self, config: Any, job_return: JobReturn, **kwargs: Any) -> None:
        self.returned.append(job_return.return_value)


class Death(BaseException):
    """The process is gone at once: no handler of the program catches this."""


def die_when_replacing(monkeypatch: Any, name: str, time: int) -> None:
    """Die instead of putting the file `name` in its place for the given time."""
    count, replace = 0, os.replace

    def dying(source: Any, target: Any) -> None:
        nonlocal count
        count += Path(target).name == name
        if count == time:
            raise Death
        replace(source, target)

    monkeypatch.setattr(os, "replace", dying)
