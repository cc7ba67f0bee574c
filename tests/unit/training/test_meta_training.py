"""The outer loop: its learning rate, and what it keeps of a validation's curve."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from l2l_runner.meta import METAS
from l2l_runner.training.meta_training import learning_rate, thinned
from problems import yaml_group

TBPTT = METAS["tbptt"](**{**yaml_group("meta")["tbptt"], "steps": 100, "lr": 0.5})


def rates(**changes: Any) -> list[float]:
    """The learning rates of 100 meta-steps."""
    meta: Any = replace(TBPTT, **changes)
    return [learning_rate(meta, step) for step in range(100)]


def test_the_rate_is_constant_or_a_cosine():
    assert rates(schedule="constant", warmup=0.0) == [0.5] * 100
    cosine = [0.25 * (1 + math.cos(math.pi * step / 100)) for step in range(100)]
    assert rates(schedule="cosine", warmup=0.0) == pytest.approx(cosine)


def test_the_rate_rises_in_its_warm_up():
    assert rates(schedule="constant", warmup=0.1) == pytest.approx(
        [*(0.05 * step for step in range(1, 11)), *[0.5] * 90]
    )
    assert rates(schedule="constant", warmup=0.001)[0] == 0.5  # of less than a meta-step


def test_the_curve_of_a_validation_is_thinned_evenly() -> None:
    assert thinned([1.0, 2.0, 3.0]) == {"steps": [0, 1, 2], "loss": [1.0, 2.0, 3.0]}
    curve = thinned([float(step) for step in range(10_001)])
    assert curve["steps"] == list(range(0, 10_001, 200))
    assert json.dumps(curve["loss"]) == json.dumps([float(step) for step in curve["steps"]])
