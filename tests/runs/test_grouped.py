"""Whole runs with groups of parameters, each with an optimizer of its own."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
from torch import nn

from l2l_runner import streams
from l2l_runner.evaluation.curves import run
from l2l_runner.runs import checkpoint
from l2l_runner.runtime import Runtime
from problems import (
    DATA,
    parse_optimizee,
)
from running import SMALL, assert_one_sentence, best, evaluate, read_json, same_bits, train

pytestmark = pytest.mark.usefixtures("sketches")

# Whole runs

GROUPS = [
    "optimizee=module",
    "optimizee.minibatch=8",
    "optimizee.test_images=8",
    "optimizer=groups",
    "optimizer.groups.conv.optimizer.hidden=3",
]
GROUPS += ["optimizer.groups.linear.optimizer.hidden=2", *SMALL]


def test_a_run_is_trained_compared_and_evaluated(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = train(folder, *GROUPS, "meta.coordinates=20")
    assert ended.code == 0, ended.err
    assert next(iter(read_json(folder / "comparison.json")["optimizers"])) == "groups"
    saved = best(folder)["optimizer"]
    assert {name.split(".")[1] for name in saved} == {"/conv", "/linear"}
    assert saved["rules./conv.readout_weight"].shape == (1, 3)
    assert saved["rules./linear.readout_weight"].shape == (1, 2)
    ended = evaluate(tmp_path / "eval", f"checkpoint={folder}", "tune.enabled=false", "device=cpu")
    assert ended.code == 0, ended.err
    mine, theirs = (
        read_json(place / "comparison.json")["optimizers"]["groups"] for place in (folder, tmp_path / "eval")
    )
    assert mine["curve"] == theirs["curve"]
    other = evaluate(tmp_path / "other", f"checkpoint={folder}", "optimizee=digits", "device=cpu")
    assert_one_sentence(other, "the parameter 0.weight fits none of them", "conv: *conv*; linear: *linear*")


def test_init_takes_the_parameters_of_groups_of_the_same_names(tmp_path: Path) -> None:
    first = [*GROUPS, "evaluate=false", "meta.steps=2"]
    assert train(tmp_path / "first", *first).code == 0
    assert train(tmp_path / "second", *GROUPS, "evaluate=false", "meta.steps=0", f"init={tmp_path / 'first'}").code == 0
    assert same_bits(best(tmp_path / "first")["optimizer"], best(tmp_path / "second")["optimizer"])
    other = train(tmp_path / "third", *GROUPS, "optimizer.groups.conv.optimizer.hidden=4", f"init={tmp_path / 'first'}")
    assert_one_sentence(other, "another architecture", "rules./conv.readout_weight")


def test_init_gives_every_group_what_one_optimizer_has_learned(tmp_path: Path) -> None:
    assert train(tmp_path / "one", "optimizee=digits", *SMALL, "optimizer.hidden=3", "evaluate=false").code == 0
    both = [*GROUPS, "optimizer.groups.linear.optimizer.hidden=3", "evaluate=false", "meta.steps=0"]
    ended = train(tmp_path / "both", *both, f"init={tmp_path / 'one'}")
    assert ended.code == 0, ended.err
    learned, started = (best(tmp_path / name)["optimizer"] for name in ("one", "both"))
    for group in ("conv", "linear"):
        assert same_bits({name: started[f"rules./{group}.{name}"] for name in learned}, learned)
    assert len(started) == 2 * len(learned)
    wide = [argument.replace("conv.optimizer.hidden=3", "conv.optimizer.hidden=4") for argument in both]
    assert_one_sentence(train(tmp_path / "wide", *wide, f"init={tmp_path / 'one'}"), "another architecture")


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path: Path) -> None:
    arguments = [*GROUPS, "evaluate=false", "meta.schedule=constant"]
    assert train(tmp_path / "whole", *arguments).code == 0
    assert train(tmp_path / "parts", *arguments, "meta.steps=4").code == 0
    assert train(None, f"resume={tmp_path / 'parts'}", "meta.steps=6").code == 0
    for part in ("optimizer", "meta_optimizer", "progress"):
        assert same_bits(best(tmp_path / "whole")[part], best(tmp_path / "parts")[part])


def test_groups_are_made_on_the_command_line(tmp_path: Path) -> None:
    mixed = ["optimizer.groups.conv.patterns=[conv.weight]", "optimizer@optimizer.groups.linear.optimizer=rms"]
    mixed += ["+optimizer@optimizer.groups.biases.optimizer=sgd", "optimizer.groups.biases.patterns=[conv.bias]"]
    mixed += ["optimizer.groups.biases.optimizer.lr=0.5"]
    arguments = [item for item in GROUPS if "linear.optimizer" not in item]
    ended = train(tmp_path / "run", *arguments, *mixed, "evaluate=false")
    assert ended.code == 0, ended.err
    content = best(tmp_path / "run")
    assert {name.split(".")[1] for name in content["optimizer"]} == {"/conv"}
    assert content["config"]["optimizer"]["groups"]["biases"]["optimizer"]["lr"] == 0.5


class Net(nn.Sequential):
    """A convolution and a linear layer for digits, with any number of classes."""

    def __init__(self, classes: int) -> None:
        layers = {"conv": nn.Conv2d(1, 2, 3), "tanh": nn.Tanh(), "flatten": nn.Flatten()}
        super().__init__(OrderedDict({**layers, "linear": nn.Linear(72, classes)}))


def test_what_learned_on_some_labels_is_tried_on_others(tmp_path: Path) -> None:
    model = [f"optimizee.model._target_={__name__}.Net", "++optimizee.model.classes=5"]
    ended = train(tmp_path / "run", *GROUPS, *model, "optimizee.labels=[5,6,7,8,9]", "evaluate=false")
    assert ended.code == 0, ended.err
    content = best(tmp_path / "run")
    seeds = streams.seeds(0, "test", 0, 4)
    for labels in ([0, 1, 2, 3, 4], [0, 1]):
        folder = tmp_path / str(len(labels))
        other = [f"optimizee.labels={labels}".replace(" ", ""), f"optimizee.model.classes={len(labels)}"]
        ended = evaluate(folder, f"checkpoint={tmp_path / 'run'}", *other, "tune.enabled=false", "device=cpu")
        assert ended.code == 0, ended.err
        shown = read_json(folder / "comparison.json")["optimizers"]["groups"]["curve"]
        changes = {"labels": labels, "model": {"_target_": f"{__name__}.Net", "classes": len(labels)}}
        distribution = parse_optimizee({**content["config"]["optimizee"], **changes})
        optimizer = checkpoint.restore_rule(content, tmp_path).fitted(distribution.layout())
        curves = run(optimizer, distribution, seeds, 10, Runtime(data_root=DATA), 10**6)
        assert shown == pytest.approx(curves.losses.mean(1).tolist(), rel=1e-4)
    wrong = evaluate(tmp_path / "wrong", f"checkpoint={tmp_path / 'run'}", "optimizee.labels=[0,1]")
    assert_one_sentence(wrong, "returns [2, 5]", "expected scores [2, 2]")
