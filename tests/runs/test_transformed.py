"""Whole runs with learned transforms."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import (
    QUICK,
    assert_one_sentence,
    evaluate,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")


def test_they_are_trained_and_evaluated_like_any_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = [item for item in QUICK if not item.startswith("optimizer.")]
    ended = train(run, *quick, "optimizer=metacurvature", "optimizer.patterns={theta:kronecker}")
    assert ended.code == 0, ended.err
    assert "engine replay, kernel torch" in ended.out
    ended = evaluate(tmp_path / "eval", f"checkpoint={run}", "tune.enabled=false")
    assert ended.code == 0, ended.err
    wrong = evaluate(tmp_path / "wrong", f"checkpoint={run}", "optimizee.dim=5")
    assert_one_sentence(wrong, "theta [3]", "theta [5]", "evaluate it on the optimizee that it was trained on")
    for extra in ("meta.coordinates=2", "kernel=cpp", "optimizer.patterns={theta:adam}"):
        assert train(tmp_path / extra, *quick, "optimizer=metacurvature", extra).code == 1
