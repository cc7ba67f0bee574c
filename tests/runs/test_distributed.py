"""Several processes train what one would: the same to rounding, stopped and resumed alike, and reported once."""

from __future__ import annotations

import math
import multiprocessing
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
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from l2l_runner import distributed, schema
from l2l_runner.errors import ConfigError
from l2l_runner.launch.hydra import under_torchrun
from l2l_runner.launch.overrides import check_torchrun, conf_folder
from l2l_runner.meta import TBPTT, Estimate
from problems import lstm, problems
from running import (
    QUICK,
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
SERVER = multiprocessing.get_context("forkserver")  # PyTorch is imported once; a fork of this process could hang in it
SERVER.set_forkserver_preload(["running"])


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


# --- refusals, and who takes what ------------------------------------------------------------------------------------


def config(*overrides: str) -> schema.TrainConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed = OmegaConf.to_container(compose("train", [*overrides]), resolve=True)
    return schema.parse_train(composed)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["meta_batch=2"], "meta_batch=2 leaves some of the 3 processes without a problem"),
        (["optimizer=adam"], "with this optimizer"),
        (["optimizer=hypergradient", "meta=online", "unroll=online"], "meta=online"),
        (["optimizer=warp"], "meta=warpgrad need"),
        (["optimizee=imbalance", "optimizer=sgd", "meta=reweight"], "meta=reweight"),
    ],
)
def test_what_cannot_be_shared_is_refused(overrides: list[str], words: str) -> None:
    one = config(*overrides)
    one.check_processes(1)
    with pytest.raises(ConfigError, match=words):
        one.check_processes(3)


def test_an_estimator_has_to_say_that_it_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TBPTT, "shareable", False)
    with pytest.raises(ConfigError, match="meta=tbptt need all problems of a meta-step"):
        config().check_processes(2)


def test_torchrun_is_refused_where_it_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torchrun("train", ["seed=1"])
    for name, arguments in (("eval", []), ("train", ["-m", "seed=1,2"]), ("train", ["hydra.mode=MULTIRUN"])):
        with pytest.raises(ConfigError, match="python -m"):
            check_torchrun(name, arguments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not under_torchrun()  # some other system's, which says nothing of where to meet
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    check_torchrun("train", ["resume=run"])
    with pytest.raises(ConfigError, match="--max-restarts"):
        check_torchrun("train", ["seed=1"])


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_even_and_leave_nothing_out(processes: int, items: int) -> None:
    taken: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "world_size", lambda: processes)
        for place in range(processes):
            patched.setattr(distributed, "rank", lambda place=place: place)
            taken.append(list(range(items))[distributed.shard(items)])
    assert [item for some in taken for item in some] == list(range(items))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.use_device(torch.device("cuda"))  # of one process, whichever is the present one
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    distributed.use_device(torch.device("cpu"))
    assert used == []
    distributed.use_device(torch.device("cuda"))
    assert used == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="--nproc-per-node=2, or device=cpu"):
        distributed.use_device(torch.device("cuda"))
