"""The curriculum of growing horizons: when it advances, from where, and that a resumption knows where it stands."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from l2l_runner.evaluation.curves import Curves
from l2l_runner.evaluation.evaluator import Evaluator
from l2l_runner.meta import TBPTT, Estimate
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from running import (
    QUICK,
    TINY,
    Death,
    assert_same_run,
    best,
    die_when_replacing,
    last,
    read_json,
    records,
    same_bits,
    sketch,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")

# So fast a meta-optimizer that no horizon is without a step back.
GROWING = ["unroll.steps=10", "meta.curriculum=[2,5]", "meta.advance=1", "meta.validate_every=2", "meta.steps=24"]
GROWING += ["meta.lr=0.3", "meta.schedule=constant"]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes through all its horizons."""
    folder = tmp_path_factory.mktemp("grown") / "run"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert train(folder, *QUICK, *GROWING).code == 0
    assert [record["horizon"] for record in records(folder, "validation")][-1] == 10
    return folder


def test_horizons_advance_exactly_when_validations_stall(grown: Path) -> None:
    horizons, best_score, ended = [2, 5, 10], math.inf, False
    for record in records(grown):
        if record["event"] == "meta_step":
            assert not ended, "a validation without a better score leads to the next horizon"
        elif ended:
            assert record["horizon"] == horizons.pop(0)
            assert record["best_step"] == record["step"]  # nothing else is comparable
            best_score, ended = record["score"], False
        else:
            horizons = [horizon for horizon in horizons if horizon > record["horizon"]]
            ended = record["score"] >= best_score and bool(horizons)
            best_score = min(best_score, record["score"])
            assert record["best_score"] == best_score
    assert horizons == []


def test_training_and_validation_use_the_present_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    validated: list[int] = []
    estimates, validate = TBPTT.estimates, Evaluator.validate

    def spied(self: TBPTT, *arguments: Any) -> Iterator[Estimate]:
        steps = 0
        for estimate in estimates(self, *arguments):
            steps += len(estimate.losses)
            yield estimate
        seen.append(steps)

    def validating(self: Evaluator, *arguments: Any) -> Curves:
        curves = validate(self, *arguments)
        validated.append(len(curves.losses) - 1)
        return curves

    monkeypatch.setattr(TBPTT, "estimates", spied)
    monkeypatch.setattr(Evaluator, "validate", validating)
    run = tmp_path / "run"
    assert train(run, *QUICK, *GROWING).code == 0
    assert seen == [record["horizon"] for record in records(run, "meta_step")]
    assert set(seen) == {2, 5, 10}
    expected = [record["horizon"] for record in records(run, "validation")]
    assert validated == [*expected, 10]  # and the best once more at the end


def test_the_next_horizon_starts_from_the_best_of_the_last(grown: Path, tmp_path: Path) -> None:
    # Stopped where the first horizon ends, best.pt is what the second one begins with, Adam's state included.
    moves = [record for record in records(grown, "validation") if record["horizon"] == 5]
    before = [record for record in records(grown, "validation") if record["horizon"] == 2]
    reached = moves[0]["step"]
    assert before[-1]["step"] == reached > before[-1]["best_step"]
    short, moved = tmp_path / "short", tmp_path / "moved"
    assert train(short, *QUICK, *GROWING, f"meta.steps={reached}").code == 0
    assert best(short)["progress"]["step"] == before[-1]["best_step"]
    assert last(short)["progress"]["stage"] == 0
    assert train(moved, *QUICK, *GROWING, f"meta.steps={reached}").code == 0
    with pytest.MonkeyPatch.context() as patched:
        die_when_replacing(patched, "last.pt", 2)  # after the first validation at the new horizon, saved once
        with pytest.raises(Death):
            train(None, f"resume={moved}", "meta.steps=24")
    assert last(moved)["progress"]["stage"] == 1
    assert last(moved)["progress"]["step"] == reached
    for part in ("optimizer", "meta_optimizer"):
        assert same_bits(last(moved)[part], best(short)[part])
        assert same_bits(best(moved)[part], best(short)[part])


def test_best_is_the_best_of_the_last_horizon(grown: Path) -> None:
    final = [record for record in records(grown, "validation") if record["horizon"] == 10]
    scores = {record["step"]: record["score"] for record in final}
    reached = min(scores, key=scores.__getitem__)
    assert best(grown)["progress"]["step"] == reached
    assert best(grown)["progress"]["stage"] == 2
    assert read_json(grown / "result.json")["score"] == scores[reached]


def test_advances_are_logged(grown: Path) -> None:
    log = (grown / "train.log").read_text()
    assert "problems × 2, then 5, then 10 steps" in log
    first = next(record for record in records(grown, "validation") if record["horizon"] == 5)
    assert (
        f"Meta-step {first['step']}: no better score in 1 validations of 2 steps; continuing with 5 steps from" in log
    )
    assert "Ended at a horizon" not in log


def test_a_curriculum_that_meta_steps_cut_short_says_so_and_is_scored_on_whole_trajectories(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended = train(run, *QUICK, *GROWING, "meta.steps=2", "meta.advance=5")
    assert "Ended at a horizon of 2 steps, before the horizon of 10 was reached" in ended.out
    assert {record["horizon"] for record in records(run)} == {2}
    assert train(whole, *QUICK, "meta.steps=0", f"init={run}").code == 0
    assert read_json(run / "result.json")["score"] == read_json(whole / "result.json")["score"]


def test_patience_counts_at_the_last_horizon_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train(run, *QUICK, *GROWING, "meta.advance=2", "meta.patience=1", "meta.steps=400", "meta.lr=1")
    assert "no better score in 1 validations." in ended.out
    final = [record for record in records(run, "validation") if record["horizon"] == 10]
    assert final[-1]["step"] < 400
    assert [record["best_step"] == record["step"] for record in final] == [True] * (len(final) - 1) + [False]


def test_a_curriculum_of_one_horizon_is_none(quick: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "meta.curriculum=[10]").code == 0
    assert_same_run(run, quick)


# Resuming


def test_a_run_that_dies_again_and_again_ends_as_one_that_does_not(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    command: tuple[Path | None, list[str]] = (run, [*QUICK, *GROWING])
    deaths = 0
    while True:
        with monkeypatch.context() as patched:
            die_when_replacing(patched, "last.pt", 4)
            try:
                assert train(command[0], *command[1]).code == 0
                break
            except Death:
                deaths += 1
        command = (None, [f"resume={run}"])
    assert deaths > 1
    assert_same_run(run, grown)


def test_a_run_that_dies_between_the_horizons_is_resumed_exactly(
    grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # best.pt is of the new horizon already, last.pt still of the old one.
    run, save = tmp_path / "run", checkpoint.save

    def dying(path: Path, content: dict[str, Any]) -> None:
        if path.name == "last.pt" and content["progress"]["stage"] == 1:
            raise Death
        save(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save", dying)
        with pytest.raises(Death):
            train(run, *QUICK, *GROWING)
    assert (best(run)["progress"]["stage"], last(run)["progress"]["stage"]) == (1, 0)
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, grown)


def test_stops_on_the_way_change_nothing(grown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log = tmp_path / "run", RunFolder.log
    command: tuple[Path | None, list[str]] = (run, [*QUICK, *GROWING])

    def interrupting(self: RunFolder, record: dict[str, Any]) -> int:
        if record["event"] == "meta_step" and record["step"] % 5 == 0:
            signal.raise_signal(signal.SIGINT)
        return log(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", interrupting)
        while train(command[0], *command[1]).code == 130:
            command = (None, [f"resume={run}"])
    assert_same_run(run, grown)


def test_a_horizon_is_longer_for_more_meta_steps(grown: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for steps in (4, 10, 24):
        arguments = [*QUICK, *GROWING] if steps == 4 else [f"resume={run}"]
        assert train(run if steps == 4 else None, *arguments, f"meta.steps={steps}").code == 0
    for read in (best, last):
        for part in ("optimizer", "meta_optimizer", "progress"):
            assert same_bits(read(run)[part], read(grown)[part])
    assert (run / "metrics.jsonl").read_bytes() == (grown / "metrics.jsonl").read_bytes()


# Pictures


@pytest.mark.draws
def test_the_picture_shows_curves_of_different_lengths(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *TINY, *GROWING, "meta.steps=8").code == 0
    with Image.open(run / "learning.png") as picture:
        assert picture.size == (900, 360)
    frames = {int(frame.stem) for frame in (run / "frames").iterdir()}
    assert frames == {record["step"] for record in records(run, "validation")}
    assert torch.isfinite(torch.tensor([record["score"] for record in records(run, "validation")])).all()
