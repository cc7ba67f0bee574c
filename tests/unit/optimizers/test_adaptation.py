"""Rules that adapt to a task by gradient descent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from composing import built, refusal
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout
from l2l_runner.optimizers import AdaptationConfig
from l2l_runner.optimizers.transformed import MetaSGDConfig
from problems import problems
from regression import LAYOUT, LR, TASKS, WARP, WIDTH, Regression, adaptation, tasks


def test_fresh_parameters_start_as_the_problem_says():
    optimizer = adaptation(fresh=("head.*",))
    problem = optimizer.adapt(tasks())
    assert torch.equal(problem.init()["head.b"], tasks().init()["head.b"])
    assert torch.equal(problem.init()["w"], Regression(torch.tensor([5])).init()["w"].expand(TASKS, -1, -1))
    assert [name for name, _ in optimizer.named_parameters()] == ["start./w"]


@pytest.mark.parametrize("changes", [{"own": True, "fresh": ("theta",)}, {"warp": WARP}])
def test_what_an_optimizee_cannot_give_is_refused(changes):
    config = {"lr": LR, "start": "learned", "fresh": (), "own": False, "warp": None, "transform": "none", **changes}
    with pytest.raises(ConfigError, match="optimizee"):
        AdaptationConfig(**config).build(problems("quadratic", 1).layout, torch.Generator())


def test_an_optimizer_without_anything_to_learn_is_refused():
    with pytest.raises(ConfigError, match="nothing to learn"):
        adaptation(start="random")


def test_another_network_is_refused():
    optimizer = adaptation(warp=WARP)
    optimizer.fitted(replace(LAYOUT, tasks=None))
    with pytest.raises(ConfigError, match="network that it was trained on"):
        optimizer.fitted(Layout({"w": (WIDTH, 2)}))
    with pytest.raises(ConfigError, match="network that it was trained on"):
        optimizer.fitted(replace(LAYOUT, sites={}))
    adaptation().fitted(replace(LAYOUT, sites={}))


def test_a_transform_fits_whatever_number_of_tasks_there_is():
    transform = MetaSGDConfig(lr=0.1, patterns=None).build(LAYOUT, torch.Generator())
    transform.fitted(replace(LAYOUT, tasks=None, sites={}))
    with pytest.raises(ConfigError, match="trained on"):
        transform.fitted(Layout({"w": (WIDTH, 2)}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer=maml", "meta=tbptt"], ["meta=tbptt", "a starting point", "leave meta out"]),
        (["optimizer=leap", "meta=pes"], ["meta=pes", "a starting point"]),
        (["optimizer=leap", "meta=online", "unroll=online"], ["meta=online", "a starting point"]),
        (["optimizer=lstm", "meta=maml"], ["meta=maml", "optimizer=lstm", "a starting point"]),
        (["optimizer=leap", "meta=warpgrad"], ["meta=warpgrad", "optimizer=leap", "warp layers"]),
        (["optimizer=leap", "optimizer.transform=metasgd"], ["meta=leap", "a starting point and updates"]),
        (["optimizer=leap", "meta.inner_steps=5", "meta.curriculum=[10]"], ["meta.inner_steps=5", "meta.curriculum"]),
        (["optimizer=leap", "optimizer.fresh=[body.*]"], ["optimizer.fresh", "body.*", "theta"]),
        (["optimizer=leap", "optimizer.fresh=[*]"], ["optimizer.fresh=['*']", "no part of the start"]),
        (["optimizer=leap", "optimizer.own=true"], ["optimizer.own=true", "optimizer.fresh"]),
        (["optimizer=warp", "optimizer.fresh=[head.*]"], ["optimizer.start=random", "optimizer.fresh"]),
        (
            ["optimizer=warp", "optimizer.transform=metasgd", "meta.approximate=true"],
            ["meta.approximate=true", "optimizer.transform"],
        ),
        (
            ["optimizer=groups", "optimizer@optimizer.groups.linear.optimizer=leap"],
            ["optimizer.groups.linear.optimizer", "a starting point"],
        ),
        (["optimizer=maml", "kernel=cpp"], ["kernel=cpp", "kernel=auto"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_what_makes_no_sense_is_refused(arguments, words):
    sentence = refusal(arguments, built)
    assert [word for word in words if word not in sentence] == []
