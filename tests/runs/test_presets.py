"""Every choice of every group of conf/ composes and runs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from l2l_runner.meta import METAS
from l2l_runner.meta.base import MetaTrainingConfig
from problems import NEEDS, OPTIMIZEE_FILES, given, needs_cifar, needs_mnist
from running import ROOT, assert_one_sentence, evaluate, last, read_json, records, train

pytestmark = pytest.mark.usefixtures("sketches")

SHORT = ["meta.steps=2", "meta.validate_every=1", "unroll.steps=4"]
FEW = ["optimizee.batch=2", "optimizee.validation_problems=2", "optimizee.test_problems=2"]
FEWER = ["optimizee.minibatch=4", "optimizee.test_images=4"]  # for networks that take their time
CPU = ["device=cpu", "device.threads=1"]
CRUDE = ["evaluation.tune.per_decade=1", "evaluation.tune.refinements=0", "evaluation.tune.low=0.01"]
ESTIMATORS = [name for name, settings in METAS.items() if issubclass(settings, MetaTrainingConfig)]
ONCE = ["meta.runs=1", "meta.read_every=2", "unroll.steps=4"]  # where trajectories are run, not meta-trained on


def choices(group: str) -> list[str]:
    found = sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))
    assert found, group
    return found


def marked(name: str, *needs: pytest.MarkDecorator) -> object:
    return pytest.param(name, marks=needs_cifar if "cifar" in name else needs if "mnist" in name else ())


def holds(whole: Any, part: Any, but: Collection[str], path: str) -> bool:
    """Whether a nested dictionary has all that another one has, but what lies at some paths."""
    if isinstance(part, dict):
        return all(key in whole and holds(whole[key], value, but, f"{path}.{key}") for key, value in part.items())
    return bool(whole == part) or path in but


@pytest.mark.parametrize("name", [marked(name, needs_mnist) for name in choices("experiment")])
def test_every_experiment_runs(tmp_path: Path, name: str) -> None:
    run = tmp_path / "run"
    preset: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "experiment" / f"{name}.yaml"))
    (meta,) = [choice["override /meta"] for choice in preset["defaults"] if "override /meta" in choice] or ["tbptt"]
    grown = ["meta.curriculum=[2]"] if "curriculum" in preset.get("meta", {}) else []
    few = [*(SHORT if meta in ESTIMATORS else ONCE), *grown, *FEW, *CRUDE, *given(name)]
    more = {"cifar": FEWER, "omniglot": ["optimizee.filters=4", "optimizee.minibatch=4"], "maze": ["unroll.length=2"]}
    few += [setting for part, settings in more.items() if part in name for setting in settings]
    ended = train(run, f"experiment={name}", *few, *CPU)
    assert ended.code == 0, ended.err
    if meta in ESTIMATORS:
        assert len(records(run, "meta_step") + records(run, "imitation")) == 2
        assert len(read_json(run / "comparison.json")["optimizers"]) == 5
    else:
        assert [record["step"] for record in records(run, "reading")[:3]] == [0, 2, 4]
    # What the file says is what was run.
    config = last(run)["config"]
    for group in ("optimizee", "optimizer"):
        assert holds(config[group], preset.get(group, {}), [item.split("=")[0] for item in few], group)


PAIRS = {
    "quadratic": "none",
    "rosenbrock": "adam",
    "digits": "rnnprop",
    "art": "lstm",
    "module": "groups",
    "imbalance": "metasgd",
    "omniglot": "warp_leap",
    "maze": "warp_rnn",
}
"""Whole runs of some pairs; all pairs are tried in tests/unit/test_presets.py."""


DIGITS = ["optimizee.data=digits", "optimizee.images=60", "optimizee.side=16", "optimizee.proportion=0.8"]


@pytest.mark.parametrize("optimizee", [pytest.param(name, marks=NEEDS.get(name, ())) for name in PAIRS])
def test_an_optimizer_runs_on_every_optimizee(tmp_path: Path, optimizee: str) -> None:
    run, optimizer = tmp_path / "run", PAIRS[optimizee]
    arguments = [f"optimizee={optimizee}", f"optimizer={optimizer}", *given(optimizee), *CPU]
    arguments += DIGITS if optimizee == "imbalance" else ["optimizee.filters=4"] if optimizee == "omniglot" else []
    arguments += ["unroll.length=2", *ONCE] if optimizer == "warp_rnn" else [*SHORT, *FEW, "evaluate=false"]
    ended = train(run, *arguments)
    assert ended.code == 0, ended.err
    result = read_json(run / "result.json")
    assert result["status"] == "completed"
    assert result["score"] <= 0 if optimizee == "maze" else result["score"] > 0  # minus a return, or a loss
    if optimizer in ("lstm", "rnnprop", "groups", "metasgd", "warp_leap"):
        assert last(run)["progress"]["step"] == 2


@pytest.mark.parametrize(
    ("optimizee", "optimizer", "words"),
    [
        ("quadratic", "warp_rnn", ["optimizer=warp_rnn gates recurrent cells", "optimizee=maze"]),
        ("rosenbrock", "finetune", ["optimizer.own", "optimizee=omniglot"]),
        ("digits", "warp", ["optimizer.warp", "optimizee=omniglot"]),
    ],
)
def test_an_optimizer_says_which_optimizees_it_needs(
    tmp_path: Path, optimizee: str, optimizer: str, words: list[str]
) -> None:
    assert_one_sentence(train(tmp_path / "run", f"optimizee={optimizee}", f"optimizer={optimizer}", *CPU), *words)


@pytest.mark.parametrize("name", [name for name in choices("device") if name != "cuda"])
def test_every_device_that_is_everywhere_runs(tmp_path: Path, name: str) -> None:
    assert train(tmp_path / "run", f"device={name}", "device.threads=1", *SHORT, *FEW, "evaluate=false").code == 0


@pytest.mark.draws
def test_digits_from_end_to_end(tmp_path: Path) -> None:
    # Real images that come with a package: trained, compared, and evaluated on a network of another size.
    run = tmp_path / "run"
    small = ["optimizee=digits", "optimizee.hidden=[]", "optimizee.minibatch=16", *FEW, *CRUDE, *CPU]
    ended = train(run, *small, "meta.steps=20", "meta.validate_every=10", "unroll.steps=20", "unroll.length=10")
    assert ended.code == 0, ended.err
    scores = [record["score"] for record in records(run, "validation")]
    assert min(scores[1:]) < scores[0]  # it learns
    comparison = read_json(run / "comparison.json")
    for entry in comparison["optimizers"].values():
        assert 0 <= entry["metrics"]["accuracy"]["mean"] <= 1
    assert "accuracy" in ended.out
    with Image.open(run / "learning.gif") as animation:
        assert animation.n_frames == 3  # type: ignore[attr-defined]
    more = ["optimizee.hidden=[3,4]", "optimizee.activation=relu", "tune.enabled=false", *CPU]
    assert evaluate(tmp_path / "eval", f"checkpoint={run}", *more).code == 0
    assert len(read_json(tmp_path / "eval" / "comparison.json")["optimizers"]["lstm"]["curve"]) == 21


@needs_mnist
@pytest.mark.draws
def test_mnist_from_end_to_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["optimizee=mnist", "optimizee.hidden=[3]", "optimizee.minibatch=8", *FEW, *CRUDE, *CPU]
    ended = train(run, *SHORT, *small)
    assert ended.code == 0, ended.err
    assert read_json(run / "comparison.json")["optimizee"] == "mnist"
    assert evaluate(tmp_path / "eval", f"checkpoint={run}", "tune.enabled=false", *CPU).code == 0
    mine, theirs = (read_json(folder / "comparison.json")["optimizers"]["lstm"] for folder in (run, tmp_path / "eval"))
    assert mine["curve"] == theirs["curve"]
    assert mine["metrics"] == theirs["metrics"]


@pytest.mark.parametrize("module", ["train", "eval"])
def test_help_is_quick_because_it_imports_no_torch(module: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", f"l2l_runner.{module}", "--help"]
    ended = subprocess.run(command, text=True, capture_output=True, check=False)
    assert ended.returncode == 0
    imported = set(re.findall(r"\| +([\w.]+)$", ended.stderr, re.MULTILINE))
    assert "hydra" in imported
    assert not imported & {"torch", "numpy", "scipy", "sklearn", "matplotlib", "torchvision"}
    choices = f"optimizee: {', '.join(OPTIMIZEE_FILES)}"
    for words in (f"python -m l2l_runner.{module}", choices, "experiment:"):
        assert words in ended.stdout
    assert not re.search(r"\b_(meta|adaptation|launch)", ended.stdout), "files that only share keys are no choices"
