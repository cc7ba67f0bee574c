"""How optimizers look in pictures."""

from __future__ import annotations

from l2l_runner.plots.style import look_of
from problems import ADAPTATIONS


def test_methods_and_the_baselines_beside_them_can_be_told_apart():
    names = [*ADAPTATIONS, "none", "lstm", "sgd", "nag", "rms", "adam"]
    assert len({look_of(name, names).colour for name in names}) == len(names)
