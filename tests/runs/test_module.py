"""Whole runs on modules of the user."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from torch import nn

from l2l_runner.models.convnet import DigitsConvNet
from running import SMALL, assert_one_sentence, evaluate, read_json, train


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 10))


class Sized(nn.Sequential):
    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))


def annotated() -> nn.Module:
    return DigitsConvNet()


@pytest.mark.usefixtures("sketches")
def test_a_module_is_trained_on_from_end_to_end(tmp_path: Path) -> None:
    model = ["optimizee.model._target_=torch.nn.Sequential"]
    assert_one_sentence(train(tmp_path / "no", "optimizee=module", *SMALL, *model), "no parameter")
    few = ["optimizee.minibatch=8", "meta.steps=2", "optimizer.hidden=4"]
    dropping = [f"optimizee.model._target_={__name__}.Dropping", "evaluation.tune.enabled=false"]
    ended = train(tmp_path / "run", "optimizee=module", *SMALL, *few, *dropping)
    assert ended.code == 0, ended.err
    summary = read_json(tmp_path / "run" / "comparison.json")
    assert summary["optimizee"] == "module"
    assert 0 <= summary["optimizers"]["lstm"]["metrics"]["accuracy"]["mean"] <= 1
    assert math.isfinite(summary["optimizers"]["lstm"]["final"]["mean"])
    changes = [f"optimizee.model._target_={__name__}.annotated", "problems=2", "tune.enabled=false"]
    ended = evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'run'}", *changes, "device=cpu", "device.threads=1")
    assert ended.code == 0, ended.err


@pytest.mark.usefixtures("sketches")
def test_a_sweep_over_a_models_keyword(tmp_path: Path) -> None:
    model = [f"optimizee.model._target_={__name__}.Sized", "optimizee.model.width=3,5"]
    ended = train(None, "-m", "optimizee=module", "optimizer=adam", *SMALL, *model, f"hydra.sweep.dir={tmp_path}")
    assert ended.code == 0, ended.err
    jobs = read_json(tmp_path / "sweep.json")
    assert [job["values"]["optimizee.model.width"] for job in jobs] == ["3", "5"]
    assert jobs[0]["score"] != jobs[1]["score"]
