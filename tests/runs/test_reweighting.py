"""Learning to reweight examples: whole runs, stopped and resumed, and what is refused."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path
from typing import Any

import pytest

from l2l_runner.optimizers import HAND_DESIGNED
from l2l_runner.training.reweighting import ARMS, PUBLISHED
from problems import needs_mnist
from running import (
    Death,
    Fork,
    assert_one_sentence,
    die_when_replacing,
    finish,
    last,
    lines,
    read_json,
    records,
    same_bits,
    snapshot,
    train,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("sketches")

DIGITS: dict[str, Any] = {"data": "digits", "images": 60, "side": 16, "clean": 3, "minibatch": 6}

TINY = ["meta=reweight", "optimizee=imbalance", "optimizer=sgd", "optimizer.lr=0.05", "device=cpu", "device.threads=1"]
TINY += [f"optimizee.{key}={value}" for key, value in DIGITS.items()]
TINY += ["meta.proportions=[0.8,0.9]", "meta.runs=2", "meta.read_every=3", "unroll.steps=7"]
TRAJECTORIES = 2 * 2 * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with its pictures drawn."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = train(folder, *TINY)
    assert ended.code == 0, ended.err
    assert "proportion  runs  plain" in ended.out
    return folder


@pytest.mark.draws
def test_a_run_leaves_its_accuracies_and_a_picture(whole: Path) -> None:
    readings = records(whole, "reading")
    assert len(readings) == TRAJECTORIES * 4
    assert [reading["step"] for reading in readings[:4]] == [0, 3, 6, 7]
    summary = read_json(whole / "reweighting.json")
    assert [entry["proportion"] for entry in summary["proportions"]] == [0.8, 0.9]
    assert summary["settings"]["optimizee"]["images"] == 60
    for entry in summary["proportions"]:
        for arm in ARMS:
            figures = entry["arms"][arm]
            ends = [
                reading["accuracy"]
                for reading in readings
                if (reading["proportion"], reading["arm"], reading["step"]) == (entry["proportion"], arm, 7)
            ]
            assert figures["accuracies"] == ends
            assert figures["mean"] == pytest.approx(sum(ends) / 2)
            assert figures["steps"] == [0, 3, 6, 7]
            assert figures["curve"][-1]["mean"] == figures["mean"]
            assert figures["published"] is None  # of other images
    ends = [reading["accuracy"] for reading in readings if reading["step"] == 7 and reading["arm"] == "reweighted"]
    assert read_json(whole / "result.json")["score"] == pytest.approx(1 - sum(ends) / len(ends))
    assert (whole / "reweighting.png").read_bytes().startswith(b"\x89PNG")


def test_both_arms_start_at_the_same_point_of_the_same_problem(whole: Path) -> None:
    readings = records(whole, "reading")
    starts = {(r["run"], r["proportion"], r["arm"]): (r["loss"], r["accuracy"]) for r in readings if r["step"] == 0}
    assert len(starts) == TRAJECTORIES
    for (run, proportion, arm), (_, accuracy) in starts.items():
        assert accuracy == starts[run, proportion, "plain"][1], arm


def assert_same_run(mine: Path, theirs: Path) -> None:
    for part in ("progress", "point", "pending"):
        assert same_bits(last(mine)[part], last(theirs)[part])
    files, expected = snapshot(mine), snapshot(theirs)
    for name in ("metrics.jsonl", "result.json"):
        assert files[name] == expected[name], name
    (mine_summary, their_summary) = (read_json(folder / "reweighting.json") for folder in (mine, theirs))
    assert mine_summary == their_summary


@pytest.mark.parametrize(
    ("name", "time"),
    [("last.pt", 1), ("last.pt", 2), ("last.pt", 4), ("last.pt", 5), ("reweighting.json", 3), ("result.json", 1)],
)
def test_a_run_that_died_is_resumed_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        die_when_replacing(patched, name, time)
        with pytest.raises(Death):
            train(run, *TINY)
    ended = train(None, f"resume={run}")
    assert ended.code == 0, ended.err
    assert_same_run(run, whole)


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    longer = [*TINY, "unroll.steps=60", "meta.read_every=50", "meta.runs=1", "meta.proportions=[0.8]"]
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert train(reference, *longer).code == 0
    process = Fork(*longer, f"hydra.run.dir={run}")
    wait_until(process, lambda: lines(run) > 3)  # in the second trajectory
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130, ended.err
    assert "everything is saved" in ended.out
    (command,) = [line for line in ended.out.splitlines() if "resume=" in line]
    ended = train(None, *shlex.split(command)[3:])
    assert ended.code == 0, ended.err
    assert_same_run(run, reference)


@pytest.mark.parametrize("optimizer", HAND_DESIGNED)
def test_every_hand_designed_optimizer_takes_the_real_step(tmp_path: Path, optimizer: str) -> None:
    one = ["meta.runs=1", "meta.proportions=[0.8]", "optimizer.lr=0.001"]
    ended = train(tmp_path / "run", *TINY, f"optimizer={optimizer}", *one)
    assert ended.code == 0, ended.err
    assert len({reading["loss"] for reading in records(tmp_path / "run", "reading")}) == 8
    assert read_json(tmp_path / "run" / "result.json")["status"] == "completed"


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *TINY, "optimizer.lr=1e30", "meta.runs=1", "meta.proportions=[0.8]")
    assert ended.code == 0, ended.err
    assert "diverged" in ended.out
    assert read_json(tmp_path / "run" / "result.json")["status"] == "diverged"


def test_weights_find_the_rare_class(tmp_path: Path) -> None:
    # Plain training says that all images are of the frequent class; weighted by a few clean ones, it tells them apart.
    learning = ["optimizer=adam", "optimizer.lr=0.001", "optimizee.minibatch=40", "optimizee.images=100"]
    more = ["optimizee.clean=5", "unroll.steps=60", "meta.proportions=[0.97]", "meta.runs=1", "meta.read_every=60"]
    assert train(tmp_path / "run", *TINY, *learning, *more).code == 0
    (entry,) = read_json(tmp_path / "run" / "reweighting.json")["proportions"]
    plain, reweighted = (entry["arms"][arm]["mean"] for arm in ARMS)
    assert plain < 0.7
    assert reweighted > 0.85


def test_more_images_than_there_are_is_one_sentence(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *TINY, "optimizee.images=3000")
    assert_one_sentence(ended, "optimizee.images=3000", "class 9", "digits")


def test_other_settings_are_refused_when_resumed(whole: Path) -> None:
    before = snapshot(whole)
    assert_one_sentence(train(None, f"resume={whole}", "optimizer.lr=0.1"), "cannot be resumed", "optimizer.lr")
    assert snapshot(whole) == before


@needs_mnist
def test_the_experiment_is_that_of_the_paper(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ["unroll.steps=2", "meta.runs=1", "meta.proportions=[0.99]", "device=cpu", "device.threads=1"]
    ended = train(run, "experiment=reweight_mnist", *short)
    assert ended.code == 0, ended.err
    (entry,) = read_json(run / "reweighting.json")["proportions"]
    assert {arm: entry["arms"][arm]["published"] for arm in ARMS} == {arm: PUBLISHED[arm].get(0.99) for arm in ARMS}
    config = last(run)["config"]
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("sgd", 1e-3)
    assert (config["optimizee"]["images"], config["optimizee"]["clean"], config["optimizee"]["side"]) == (5000, 5, 32)
