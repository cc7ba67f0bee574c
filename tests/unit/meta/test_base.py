"""Estimators: what they do before and after the inner part."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from l2l_runner.errors import ConfigError
from l2l_runner.meta import METAS, TBPTT, Joint, MetaGradient, Unroll
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import LearnedRule
from l2l_runner.unroll import start
from problems import problems, yaml_group
from rules import Momentum


class _Counting(Momentum):
    adapted = 0

    def adapt(self, problem: Problem) -> Problem:
        self.adapted += 1
        return problem


def test_an_estimator_adapts_its_problems() -> None:
    rule, problem = _Counting(), problems("quadratic", 2)
    list(TBPTT(length=2, steps=4).estimates(rule, problem))
    assert rule.adapted == 1


def test_joint_training_adapts_its_problems_once_per_step(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, problem = _Counting(), problems("quadratic", 2)
    monkeypatch.setattr("l2l_runner.meta.joint.through_start", lambda *_: (None, None, None))
    list(Joint(steps=3).estimates(rule, problem))
    assert rule.adapted == 3


def test_an_estimator_is_given_the_seed_of_the_meta_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Seeds(MetaGradient):
        description = "none"

        def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor):
            seen.append(seed)
            return iter(())

    problem = problems("quadratic", 3)
    Seeds().estimates(Momentum(), problem)
    assert torch.equal(seen[0], problem.seeds[:1])
    monkeypatch.setattr("l2l_runner.distributed.broadcast", lambda tensor: tensor + 1)
    Seeds().estimates(Momentum(), problem)
    assert torch.equal(seen[1], problem.seeds[:1] + 1)


def test_a_window_can_be_taken_from_any_point() -> None:
    rule, problem = Momentum(), problems("quadratic", 2)
    tbptt = TBPTT(length=2, steps=4)
    windows = [estimate for estimate, _ in tbptt.windows(rule, problem, start(problem, rule))]
    for one, other in zip(windows, tbptt.estimates(rule, problem), strict=True):
        assert torch.equal(one.meta_loss, other.meta_loss)


# Curricula


TBPTT_FILE = yaml_group("meta")["tbptt"]


def settings(**changes: Any) -> Any:
    return METAS["tbptt"](**{**TBPTT_FILE, **changes})


@pytest.mark.parametrize(
    ("curriculum", "steps", "horizons"),
    [
        (None, 100, (100,)),
        ((), 100, (100,)),
        ((100,), 100, (100,)),
        ((10, 20), 100, (10, 20, 100)),
        ((10, 20, 100), 100, (10, 20, 100)),
    ],
)
def test_the_last_horizon_is_the_whole_trajectory(curriculum, steps, horizons):
    assert settings(curriculum=curriculum).horizons(Unroll(length=20, steps=steps)) == horizons


@pytest.mark.parametrize("curriculum", [(20, 10), (10, 10), (10, 200), (100, 100)])
def test_horizons_that_do_not_grow_are_refused(curriculum):
    with pytest.raises(ConfigError, match=re.escape(f"meta.curriculum is {list(curriculum)}")):
        settings(curriculum=curriculum).horizons(Unroll(length=20, steps=100))
