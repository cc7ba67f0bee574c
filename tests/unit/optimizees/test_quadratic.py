"""Quadratics: their formula and their distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from l2l_runner.optimizees import OPTIMIZEES
from problems import (
    EVERY_OPTIMIZEE,
    OPTIMIZEE_FILES,
    needs_mnist,
    problems,
    scattered,
)

# Quadratics


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_quadratic_is_its_formula(distribution):
    problem = problems("quadratic", 5, distribution=distribution)
    flat = scattered(problem)
    weight, target, theta = problem.weight.numpy(), problem.target.numpy(), flat.numpy()
    expected = [np.linalg.norm(weight[i] @ theta[i] - target[i]) ** 2 for i in range(5)]
    np.testing.assert_allclose(problem.loss({"theta": flat}, 0).numpy(), expected, rtol=1e-12)
    leaf = flat.clone().requires_grad_()
    (grads,) = torch.autograd.grad(problem.loss({"theta": leaf}, 0).sum(), leaf)
    by_hand = [2 * weight[i].T @ (weight[i] @ theta[i] - target[i]) for i in range(5)]
    np.testing.assert_allclose(grads.numpy(), by_hand, rtol=1e-10)


def test_quadratics_do_not_change_with_the_step():
    problem = problems("quadratic", 3)
    start = problem.init()
    assert torch.equal(problem.loss(start, 0), problem.loss(start, 77))


@pytest.mark.parametrize(
    ("distribution", "mean", "variance"),
    [("gaussian", 0.0, 1.0), ("uniform", 0.5, 1 / 12)],
    ids=["gaussian", "uniform"],
)
def test_quadratics_are_distributed_as_they_say(distribution, mean, variance):
    problem = problems("quadratic", 2000, distribution=distribution, dim=10)
    for values in (problem.weight.flatten(), problem.target.flatten()):
        error = 5 * (variance / len(values)) ** 0.5
        assert values.mean().item() == pytest.approx(mean, abs=error)
        assert values.var().item() == pytest.approx(variance, rel=0.04)
        if distribution == "uniform":
            assert 0 <= values.min() < 0.01
            assert 0.99 < values.max() < 1
        else:
            assert values.min() < -3
            assert values.max() > 3


def test_weight_and_target_are_independent():
    problem = problems("quadratic", 5000, dim=1)
    pairs = torch.stack([problem.weight.flatten(), problem.target.flatten(), problem.init()["theta"].flatten()])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 5 / 5000**0.5


STARTS = [
    pytest.param(stem, marks=needs_mnist if stem == "mnist" else ())
    for stem in OPTIMIZEES
    if "init_scale" in OPTIMIZEE_FILES[stem]
]


@pytest.mark.parametrize("stem", STARTS)
@pytest.mark.parametrize("scale", [0.0, 0.01, 2.0])
def test_starts_have_the_standard_deviation_that_is_asked_for(stem, scale):
    problem = problems(stem, 500, init_scale=scale)
    start = problem.layout.flatten(problem.init())
    assert start.std().item() == pytest.approx(scale, rel=5 / (2 * start.numel()) ** 0.5)
    assert start.mean().item() == pytest.approx(0, abs=5 * scale / start.numel() ** 0.5)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_no_two_coordinates_start_alike(stem):
    # As those of two layers of one shape would, if they were drawn from the same numbers. Batch norm's are 1 and 0.
    changes: dict[str, Any] = {"hidden": [4, 4, 4]} if "hidden" in OPTIMIZEE_FILES[stem] else {}
    problem = problems(stem, 3, **changes)
    start = torch.cat([value.flatten() for name, value in problem.init().items() if ".norm." not in name])
    assert len(start.unique()) == start.numel()
