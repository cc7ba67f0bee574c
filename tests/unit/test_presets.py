"""What conf/ offers fits together: every optimizer with every optimizee, every estimator with every option."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from composing import composed, parsed
from l2l_runner.errors import ConfigError
from l2l_runner.evaluation.curves import run
from l2l_runner.meta import METAS, Estimate, OnlineConfig
from l2l_runner.meta.base import MetaTrainingConfig, UnrolledMetaConfig
from l2l_runner.optimizers import HandDesigned, LearnedRule, Optimizer
from l2l_runner.runtime import Runtime
from l2l_runner.schema import TrainConfig, parse_train
from l2l_runner.training.base import new_rule
from l2l_runner.training.meta_step import MetaStep, meta_step
from l2l_runner.unroll import start
from problems import ART_LAYERS, CONF, DATA, EVERY_OPTIMIZEE, OPTIMIZEE_FILES, given, yaml_group

RUNTIME = Runtime(data_root=DATA)
FEW = {"batch": 2, "validation_problems": 2, "test_problems": 2}
SMALLER: dict[str, dict[str, Any]] = {
    "art": ART_LAYERS,
    "imbalance": {"data": "digits", "images": 60, "side": 16, "proportion": 0.8},
    "omniglot": {"filters": 4},
}
TASKS_ONLY = {"finetune": "optimizer.own", "warp": "optimizer.warp", "warp_leap": "optimizer.warp"}
ALIKE = ("fomaml", "reptile", "leap", "none")  # to every optimizee the same as MAML or SGD


@cache
def by_optimizer(optimizer: str, optimizee: str) -> dict[str, Any]:
    """The configuration that an optimizer brings along, at a rate at which none diverges."""
    arguments = [f"optimizer={optimizer}", "unroll.steps=4", "evaluate=false"]
    if optimizer == "groups":  # its patterns are those of convolutional networks
        own = {} if optimizee == "module" else {"linear": "null", "conv.patterns": "[*]"}
        arguments += [f"optimizer.groups.{key}={value}" for key, value in own.items()]
    elif optimizer == "warp_rnn":  # learns online
        arguments = ["optimizer=warp_rnn", "optimizer.lr=1e-4", "unroll.steps=4", "unroll.length=2"]
    elif optimizer not in ("lstm", "rnnprop"):
        arguments.append("optimizer.lr=1e-4")
    return composed(*arguments)


def pair(optimizee: str, optimizer: str) -> TrainConfig:
    """The configuration of two files of conf/, small."""
    small = dict(item.removeprefix("optimizee.").split("=", 1) for item in given(optimizee))
    node = OPTIMIZEE_FILES[optimizee]
    changes = {key: int(value) if value.isdigit() else value for key, value in small.items()}
    node = {**node, **FEW, **changes, **SMALLER.get(optimizee, {})}
    return parse_train({**by_optimizer(optimizer, optimizee), "optimizee": node, "meta_batch": 2})


def a_step(config: TrainConfig, rule: LearnedRule, number: int = 0) -> MetaStep:
    """One meta-step."""
    assert isinstance(config.meta, MetaTrainingConfig)
    seeds = config.optimizee.seeds(config.seed, "train", number * config.meta_batch, config.meta_batch)
    problem = config.meta.training_problem(config.optimizee.sample(seeds, RUNTIME))
    adam = torch.optim.Adam(rule.parameters(), lr=config.meta.lr, fused=True)
    return meta_step(rule, adam, config.meta.estimator(config.unroll, config.optimizer), problem, config.meta.clip)


def needed(optimizee: str, optimizer: str, config: TrainConfig) -> list[str]:
    """What the refusal of a pair says, if the two do not fit."""
    if optimizer == "warp_rnn" and optimizee != "maze":
        return ["optimizer=warp_rnn gates recurrent cells", "optimizee=maze"]
    if optimizer in TASKS_ONLY and optimizee != "omniglot":
        return [TASKS_ONLY[optimizer], "optimizee=omniglot"]
    if optimizer == "module_transform" and max(map(math.prod, config.optimizee.layout().shapes.values())) > 4096:
        return ["optimizer=module_transform", "at most"]
    return []


@pytest.mark.parametrize("optimizer", yaml_group("optimizer"))
@pytest.mark.parametrize("optimizee", EVERY_OPTIMIZEE)
def test_every_optimizer_fits_every_optimizee(optimizee: str, optimizer: str) -> None:
    """It is built, takes a meta-step by its estimator, and optimizes validation problems; or says what it needs."""
    if optimizer in ALIKE and optimizee not in ("quadratic", "omniglot"):
        pytest.skip("as MAML, which is tried")
    config = pair(optimizee, optimizer)
    rule: Optimizer
    if isinstance(config.optimizer, HandDesigned):
        rule = config.optimizer
    else:
        needs = needed(optimizee, optimizer, config)
        if needs:
            with pytest.raises(ConfigError) as refused:
                new_rule(config, RUNTIME)
            assert "\n" not in str(refused.value)
            assert [words for words in needs if words not in str(refused.value)] == []
            return
        rule = new_rule(config, RUNTIME)
        rule.initialise_from(config.optimizee.sample(config.optimizee.seeds(0, "train", 0, 1), RUNTIME))
        if isinstance(config.meta, OnlineConfig):
            for estimate in windows(config, rule):
                assert all(grad is not None and grad.isfinite().all() for grad in estimate.grads)
        else:
            done = a_step(config, rule)
            assert not done.skipped
            assert math.isfinite(done.grad_norm)
    curves = run(rule, config.optimizee, config.optimizee.seeds(0, "validation", 0, 2), 4, RUNTIME, 1 << 18)
    score = curves.score("final")
    assert math.isfinite(score)
    assert score <= 0 if optimizee == "maze" else score > 0  # minus a return, or a loss


def windows(config: TrainConfig, rule: LearnedRule) -> Iterator[Estimate]:
    """The estimates of one trajectory of an optimizer that learns online."""
    assert isinstance(config.meta, OnlineConfig)
    problem = rule.adapt(config.optimizee.sample(config.optimizee.seeds(0, "train", 0, 1), RUNTIME))
    estimator = config.meta.estimator(config.unroll, config.optimizer)
    found = [estimate for estimate, _ in estimator.windows(rule, problem, start(problem, rule))]
    assert len(found) == config.unroll.steps / config.unroll.length
    return iter(found)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("tbptt", ["meta.second_order=true"]),
        ("tbptt", ["meta.engine=graph"]),
        ("tbptt", ["meta.imitation=0.5", "meta.coordinates=3", "meta.chunk=2"]),
        ("tbptt", ["meta.imitation=1", "meta.second_order=true", "meta.expert_lr=1"]),
        ("pes", ["meta.pairs=2", "meta.sigma=0.1", "meta.weights=final"]),
        *itertools.product(
            [name for name, settings in METAS.items() if issubclass(settings, UnrolledMetaConfig)],
            [
                ["meta.weights=linear"],
                ["meta.scaling=3", "meta.curriculum=[2]", "meta.advance=1"],
                ["meta.schedule=constant", "meta.warmup=0.5", "meta.clip=null"],
                ["optimizer.preprocessing=none", "optimizer.layers=1"],
                ["optimizer.coordinatewise=false", "optimizer.layers=3"],
            ],
        ),
    ],
)
def test_every_estimator_takes_every_option(name: str, more: list[str]) -> None:
    config = parsed(f"meta={name}", *more, "unroll.steps=4", "meta_batch=2")
    rule = new_rule(config, RUNTIME)
    for number in range(2):
        done = a_step(config, rule, number)
        assert not done.skipped
        assert done.grad_norm > 0


@pytest.mark.parametrize(
    ("name", "steps", "length"), [("short", 100, 20), ("long", 500, 20), ("full", 100, 100), ("online", 100, 1)]
)
def test_every_unroll_has_its_windows(name: str, steps: int, length: int) -> None:
    config = parsed(f"unroll={name}", "meta_batch=2", "optimizee.dim=2", "optimizer.hidden=2")
    assert (config.unroll.steps, config.unroll.length) == (steps, length)
    assert isinstance(config.meta, MetaTrainingConfig)
    problem = config.optimizee.sample(config.optimizee.seeds(0, "train", 0, 2), RUNTIME)
    estimates = config.meta.estimator(config.unroll, config.optimizer).estimates(new_rule(config, RUNTIME), problem)
    assert len(list(estimates)) == steps / length


def test_every_unroll_is_tried() -> None:
    assert set(yaml_group("unroll")) == {"short", "long", "full", "online"}


def test_full_unrolling_follows_the_number_of_steps() -> None:
    config = parsed("unroll=full", "meta.weights=final", "unroll.steps=4")
    assert (config.unroll.steps, config.unroll.length) == (4, 4)


def rates(recipe: str) -> list[str]:
    """The meta-learning rates that a recipe sets."""
    return re.findall(r"^  lr: ([\d.e-]+)$", (CONF / "recipe" / f"{recipe}.yaml").read_text(), re.MULTILINE)


def lr(*arguments: str) -> float:
    """The meta-learning rate of a command line."""
    meta = parsed(*arguments).meta
    assert isinstance(meta, MetaTrainingConfig)
    return meta.lr


@pytest.mark.parametrize("recipe", yaml_group("recipe"))
def test_a_recipe_is_used_where_it_is_named_and_what_is_given_wins(recipe: str) -> None:
    own = [float(rate) for rate in rates(recipe)] or [lr("optimizee=digits")]
    assert lr("optimizee=digits", f"recipe={recipe}") == own[0]
    assert lr("optimizee=digits", f"recipe={recipe}", "meta.lr=0.123") == 0.123


def test_mnist_takes_its_recipe_by_itself() -> None:
    (own,) = rates("mnist_lstm_tbptt")
    assert lr("optimizee=mnist") == float(own)
    assert lr("optimizee=mnist", "~recipe") == 0.01
