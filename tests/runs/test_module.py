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


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


class Counting(nn.Sequential):
    """Its normalisation keeps running statistics."""

    def __init__(self) -> None:
        norm = nn.InstanceNorm2d(1, affine=True, track_running_stats=True)
        super().__init__(norm, nn.Flatten(), nn.Linear(64, 10))


class Sized(nn.Sequential):
    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))


class Pair(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return super().forward(x), x


def unannotated():
    return DigitsConvNet()


def annotated() -> nn.Module:
    return DigitsConvNet()


# What cannot be

GOOGLENET = ["optimizee.model._target_=torchvision.models.googlenet"]
BAD = [
    (["optimizee.labels=[1,10]"], ["optimizee.labels[1] is 10", "< 10"]),
    (["optimizee.labels=[1,-1]"], ["optimizee.labels[1] is -1", "≥ 0"]),
    (["optimizee.labels=[1]"], ["optimizee.labels is [1]", "two or more"]),
    (["optimizee.labels=[1,2,1]"], ["optimizee.labels is [1, 2, 1]", "all different"]),
    (["optimizee.labels=3"], ["optimizee.labels is 3", "list"]),
    (["optimizee.labels=[1,2,3]"], ["returns [2, 10]", "expected scores [2, 3]", "num_classes=3"]),
    (["optimizee.model=3"], ["optimizee.model is 3", "group of keys"]),
    (["~optimizee.model._target_"], ["optimizee.model._target_ is None", "import path"]),
    (["optimizee.model._target_=3"], ["optimizee.model._target_ is 3", "import path"]),
    (["optimizee.model._target_=no.such"], ["optimizee.model._target_ is 'no.such'", "No module named"]),
    (["optimizee.model._target_=torchvision.models.resnet81"], ["resnet81", "isn't there"]),
    (["optimizee.model._target_=os.getcwd"], ["'os.getcwd'", "nn.Module"]),
    ([f"optimizee.model._target_={__name__}.unannotated"], ["unannotated", "annotation"]),
    (["optimizee.model.sides=3"], ["could not be built", "sides"]),
    (["optimizee.model._target_=l2l_runner.models.resnet.CifarResNet", "optimizee.model.depth=21"], ["depth is 21"]),
    (["optimizee.model._target_=l2l_runner.models.resnet.CifarResNet"], ["cannot compute images [2, 1, 8, 8]"]),
    (["optimizee.model._target_=torch.nn.ReLU"], ["no parameter that requires a gradient"]),
    (
        ["optimizee.model._target_=torch.nn.Linear", "optimizee.model.in_features=8", "optimizee.model.out_features=3"],
        ["returns [2, 1, 8, 3]", "[2, 10]"],
    ),
    (
        [*GOOGLENET, "optimizee.model.init_weights=false", "optimizee.data=cifar10"],
        ["returns a GoogLeNetOutputs", "[2, 10]"],
    ),
    ([f"optimizee.model._target_={__name__}.Pair"], ["returns a tuple", "[2, 10]"]),
    ([f"optimizee.model._target_={__name__}.Counting"], ["changes its buffer 0.running_mean"]),
    ([f"optimizee.model._target_={__name__}.Normed", "optimizee.minibatch=1", "optimizee.resize=3"], ["[1, 1, 3, 3]"]),
    (["optimizee.model._target_=torch.nn.LazyLinear", "optimizee.model.out_features=10"], ["weight open", "lazy"]),
    (["optimizee.data=cifar100"], ["optimizee.data", "cifar10", "digits"]),
    (["optimizee.mean=[0.5,0.5]"], ["optimizee.mean has 2 numbers", "expected 1"]),
    (["optimizee.std=[0]"], ["optimizee.std[0]", "> 0"]),
    (["optimizee.resize=0"], ["optimizee.resize", "≥ 1"]),
    (["optimizee.batch_norm=none"], ["optimizee.batch_norm", "batch, frozen"]),
    (["optimizee.weights=nowhere.pt"], ["optimizee.weights", "nowhere.pt", "hub/checkpoints"]),
]


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_module_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    ended = train(tmp_path / "run", "optimizee=module", *SMALL, "evaluate=false", *arguments)
    assert_one_sentence(ended, *words)


# Whole runs


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
