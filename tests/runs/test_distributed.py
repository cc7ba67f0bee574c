"""Several processes train what one would: the same to rounding, stopped and resumed alike, and reported once."""

from __future__ import annotations

import math
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from l2l_runner import distributed
from l2l_runner.meta import TBPTT, Estimate
from problems import lstm, problems
from running import (
    QUICK,
    SERVER,
    TINY,
    Death,
    Ended,
    assert_one_sentence,
    best,
    die_when_replacing,
    finish,
    last,
    lines,
    read_json,
    records,
    sketch,
    snapshot,
    train,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("sketches")

# Five problems for two processes, and fewer test problems than that; in float64, so that rounding is all there is.
DOUBLE = ["device.dtype=float64", "meta_batch=5", "optimizee.validation_problems=3"]
CASES = {
    "evaluated": [*TINY, *DOUBLE, "optimizee.test_problems=2", "evaluation.chunk=6"],
    "sampled": [*QUICK, *DOUBLE, "meta.coordinates=4", "meta.steps=4"],
    "imitating": [*QUICK, *DOUBLE, "meta.imitation=0.5"],
    "pes": [*QUICK, *DOUBLE, "meta=pes", "meta.pairs=2", "meta.steps=2"],
    "curriculum": [
        *QUICK,
        *DOUBLE,
        "meta.curriculum=[4]",
        "meta.advance=1",
        "meta.lr=1",
        "meta.scaling=1",
        "meta.second_order=true",
    ],
    "maml": [*(item for item in QUICK if "hidden" not in item), *DOUBLE, "optimizer=maml"],
    "spoilt": [*QUICK, *DOUBLE],
    "resumed": [*QUICK, *DOUBLE],
}
WRONG = {
    "alone-in-a-batch": [*QUICK, "meta_batch=1"],
    "no-checkpoint": [*QUICK, "init=nowhere"],
    "unknown": ["optimzer=lstm"],
}


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second meta-gradient of the second trajectory is not finite."""
    honest, steps = TBPTT.estimates, iter(range(1000))

    def estimates(self: TBPTT, *arguments: Any) -> Iterator[Estimate]:
        step = next(steps)
        for window, one in enumerate(honest(self, *arguments)):
            bad = (step, window) == (1, 1)
            yield replace(one, grads=tuple(grad * math.nan for grad in one.grads)) if bad else one

    monkeypatch.setattr(TBPTT, "estimates", estimates)


def take_part(rank: int, ports: list[int], folder: Path) -> None:
    """All cases as one of two processes, one after the other."""
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"})
    ended = {}
    for (name, settings), port in zip((CASES | WRONG).items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        run = folder / name
        with pytest.MonkeyPatch.context() as patched:
            sketch(patched)
            if name == "spoilt" and rank == 1:
                spoil(patched)
            resumes = name == "resumed"
            ended[name] = train(None, f"resume={run}") if resumes else train(run, *settings)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(ended))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases, by one process each."""
    folder = tmp_path_factory.mktemp("alone")
    for name, settings in CASES.items():
        with pytest.MonkeyPatch.context() as patched:
            sketch(patched)
            if name == "spoilt":
                spoil(patched)
            ended = train(folder / name, *settings)
        assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Ended]]]:
    """The cases, by two processes, and what each of them printed."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        die_when_replacing(patched, "last.pt", 3)
        with pytest.raises(Death):
            train(folder / "resumed", *CASES["resumed"])
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in CASES | WRONG]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    processes = [SERVER.Process(target=take_part, args=(rank, ports, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(1500)
    assert [process.exitcode for process in processes] == [0, 0]
    return folder, [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2)]


def assert_close(mine: Any, theirs: Any, rtol: float = 1e-9) -> None:
    """The same but for rounding."""
    if isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=rtol / 1e3)
    elif isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            if key != "metrics_bytes":  # the digits of a number differ in length
                assert_close(mine[key], theirs[key], rtol)
    elif isinstance(theirs, (list, tuple)):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_close(one, other, rtol)
    elif isinstance(theirs, float):
        assert mine == pytest.approx(theirs, rel=rtol, abs=rtol / 1e3)
    else:
        assert mine == theirs


def assert_same_training(mine: Path, theirs: Path, rtol: float = 1e-9) -> None:
    """Two runs that came to the same but for rounding, which grows from one meta-step to the next."""
    for read in (best, last):
        for part in ("optimizer", "meta_optimizer", "progress"):
            assert_close(read(mine)[part], read(theirs)[part], rtol)
    assert_close(records(mine), records(theirs), rtol)
    assert_close(read_json(mine / "result.json"), read_json(theirs / "result.json"), rtol)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one(alone: Path, together: tuple[Path, list[dict[str, Ended]]], name: str) -> None:
    folder, ended = together
    assert [one[name].code for one in ended] == [0, 0], ended
    assert_same_training(folder / name, alone / name)
    files, expected = (set(snapshot(root / name)) for root in (folder, alone))
    assert {file for file in files ^ expected if not file.startswith(".hydra/")} == set()
    if name == "evaluated":
        assert_close(*(read_json(root / name / "comparison.json") for root in (folder, alone)))


def test_the_cases_have_what_they_are_for(alone: Path) -> None:
    assert {record["event"] for record in records(alone / "imitating")} >= {"imitation", "meta_step"}
    assert {record["horizon"] for record in records(alone / "curriculum")} == {4, 10}
    assert last(alone / "spoilt")["progress"]["skipped"] == 1


def test_only_the_first_process_reports(together: tuple[Path, list[dict[str, Ended]]]) -> None:
    folder, (first, second) = together
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {*CASES, *WRONG} - {"unknown"}
    for name in CASES:
        assert "on cpu × 2" in first[name].out
        assert second[name].out + second[name].err == ""


@pytest.mark.parametrize("name", WRONG)
def test_an_error_is_reported_once(together: tuple[Path, list[dict[str, Ended]]], name: str) -> None:
    _, ended = together
    first, second = (one[name] for one in ended)
    assert first.code == 1
    assert second.code == (0 if name == "unknown" else 1)  # which only the first one reads
    word = {"alone-in-a-batch": "meta_batch=1", "no-checkpoint": "nowhere", "unknown": "optimzer"}[name]
    assert_one_sentence(Ended(1, "", first.err + second.err), word)


# --- torchrun itself -------------------------------------------------------------------------------------------------

LONG = [*QUICK, *DOUBLE, "meta.steps=100000", "meta.validate_every=100000", "meta.schedule=constant"]


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Two processes of torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, "l2l_runner.train", *arguments], text=True, stdout=pipe, stderr=pipe)


def workers(process: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found if b"l2l_runner.train" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def settings_of(text: str) -> list[str]:
    """The settings of the command that goes on with a run."""
    found = re.search(r"^  torchrun --nproc-per-node=2 -m l2l_runner\.train (.*)$", text, re.MULTILINE)
    assert found is not None, text
    return shlex.split(found[1])


def as_one_to(steps: int, run: Path) -> None:
    """One process's run of so many meta-steps."""
    assert train(run, *LONG, f"meta.steps={steps}").code == 0


def test_ctrl_c_stops_all_after_the_same_meta_step_and_one_process_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(*LONG, f"hydra.run.dir={run}")
    wait_until(process, lambda: lines(run) > 3)
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code != 0
    assert "lost contact" not in ended.err
    steps = last(run)["progress"]["step"]
    assert f"Stopped at meta-step {steps} of 100000" in ended.out
    assert lines(run) == steps + 1
    assert train(None, *settings_of(ended.out), f"meta.steps={steps + 2}").code == 0
    as_one_to(steps + 2, tmp_path / "expected")
    assert_same_training(run, tmp_path / "expected", 1e-5)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the processes of torchrun are found in /proc")
def test_a_process_that_dies_ends_the_job_and_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = torchrun(*LONG, "meta.validate_every=20", f"hydra.run.dir={run}")
    wait_until(process, lambda: lines(run) > 25)
    os.kill(workers(process)[1], signal.SIGKILL)
    ended = finish(process)
    assert ended.code != 0
    assert ended.err.count("Error: Process 0 of 2 lost contact with another one, which was stopped or has died") == 1
    steps = last(run)["progress"]["step"]
    assert steps > 0
    assert steps % 20 == 0
    assert train(None, *settings_of(ended.err), f"meta.steps={steps + 2}").code == 0
    expected = tmp_path / "expected"
    assert train(expected, *LONG, "meta.validate_every=20", f"meta.steps={steps + 2}").code == 0
    assert_same_training(run, expected, 1e-5)


def test_processes_with_unequal_shares_ask_one_another_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    # One that could record what it computes must not leave out what another one asks, which has more problems.
    optimizer, asked = lstm(4), []
    monkeypatch.setattr(type(optimizer.kernel), "recordable", 4 * 3)
    monkeypatch.setattr(distributed, "sum_over_ranks", lambda number: asked.append(number) or 3 * 4)
    for share in (1, 2):
        list(TBPTT(length=3, steps=3, coordinates=99).estimates(optimizer, problems("quadratic", share)))
    assert len(set(asked)) == 2
    assert asked.count(asked[0]) == asked.count(asked[-1])
