"""Rosenbrock's function: its formula and its distribution."""

from __future__ import annotations

import pytest
import torch

from problems import (
    problems,
    scattered,
)

# Rosenbrock


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock_is_its_formula(dim):
    problem = problems("rosenbrock", 3, dim=dim)
    theta = scattered(problem)
    for i in range(3):
        x, b = theta[i].tolist(), problem.steepness[i].item()
        expected = sum((1 - x[j]) ** 2 + b * (x[j + 1] - x[j] ** 2) ** 2 for j in range(dim - 1))
        assert problem.loss({"theta": theta}, 0)[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock_has_its_minimum_of_zero_at_ones(dim):
    problem = problems("rosenbrock", 3, dim=dim)
    ones = torch.ones(3, dim, dtype=torch.float64, requires_grad=True)
    loss = problem.loss({"theta": ones}, 0)
    assert (loss == 0).all()
    assert (torch.autograd.grad(loss.sum(), ones)[0] == 0).all()
    assert (problem.loss({"theta": scattered(problem)}, 0) > 0).all()


def test_rosenbrock_steepness_is_log_uniform():
    steepness = problems("rosenbrock", 5000, steepness=100.0).steepness
    assert steepness.min() >= 1
    assert steepness.max() < 100
    logs = steepness.log10()
    assert logs.mean().item() == pytest.approx(1, abs=0.05)
    assert logs.var().item() == pytest.approx(4 / 12, rel=0.05)
