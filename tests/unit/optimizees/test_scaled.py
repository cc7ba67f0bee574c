"""Random scaling of parameters: the wrapped problems."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from l2l_runner import streams
from l2l_runner.meta import TBPTT
from l2l_runner.optimizees import Scaled
from l2l_runner.optimizers import HAND_DESIGNED, HandDesigned
from l2l_runner.unroll import start, unroll
from problems import (
    EVERY_OPTIMIZEE,
    RUNTIME,
    UPDATE_RULES,
    any_optimizer,
    lstm,
    optimizee,
    problems,
    scattered,
)


def factors(problem):
    """c, [problems, coordinates], from where problems start; for those that don't start at 0."""
    return problem.problem.layout.flatten(problem.problem.init()) / problem.layout.flatten(problem.init())


@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
def test_scaled_problems_are_the_same_in_other_coordinates(name):
    problem = problems(name, 2)
    scaled = Scaled(problem, 3.0)
    c = scaled.layout.flatten(scaled.factors)
    assert c.shape == (2, problem.layout.size)
    assert ((c > math.exp(-3)) & (c < math.exp(3))).all()
    assert scaled.layout == problem.layout
    start_ = problem.layout.flatten(problem.init())
    torch.testing.assert_close(scaled.layout.flatten(scaled.init()) * c, start_, rtol=1e-14, atol=0)
    at = (scattered(problem) / c).requires_grad_()
    losses, plain = scaled.loss(scaled.layout.views(at), 3), problem.loss(problem.layout.views(at * c), 3)
    # Equal but for rounding: kernels may add up in another order where the memory is aligned in another way.
    torch.testing.assert_close(losses, plain, rtol=1e-13, atol=0)
    (grads,) = torch.autograd.grad(losses.sum(), at)
    origin = scattered(problem).requires_grad_()
    (expected,) = torch.autograd.grad(problem.loss(problem.layout.views(origin), 3).sum(), origin)
    torch.testing.assert_close(grads, c * expected, rtol=1e-8, atol=1e-12)
    metrics = scaled.metrics(scaled.layout.views(at.detach()))
    expected_metrics = problem.metrics(problem.layout.views(at.detach() * c))
    torch.testing.assert_close(metrics, expected_metrics, rtol=1e-13, atol=0, equal_nan=True)


def test_factors_are_log_uniform_and_follow_from_the_problems_seed():
    together = torch.cat([factors(Scaled(problems("quadratic", 50, dim=20), 2.0)).log().flatten()])
    assert together.abs().max() < 2
    assert together.mean().item() == pytest.approx(0, abs=4 * 2 / math.sqrt(3 * 1000))
    assert together.var().item() == pytest.approx(4 / 3, rel=0.15)
    assert len(together.unique()) == 1000  # a factor for each coordinate of each problem
    one, other = (Scaled(problems("quadratic", count), 2.0) for count in (3, 1))
    assert torch.equal(one.factors["theta"][:1], other.factors["theta"])
    assert not torch.equal(one.factors["theta"], Scaled(problems("quadratic", 3, seed=1), 2.0).factors["theta"])


def test_factors_stand_in_the_precision_of_the_problem():
    problem = optimizee("digits").sample(streams.seeds(0, "train", 0, 2), replace(RUNTIME, dtype=torch.float32))
    scaled = Scaled(problem, 3.0)
    point = start(scaled, lstm(problem.layout.size).float())
    assert {point.params.dtype, point.loss.dtype, point.grads.dtype} == {torch.float32}
    torch.testing.assert_close(point.loss, problem.loss(problem.init(), 0))


@pytest.mark.parametrize("stem", UPDATE_RULES)
def test_every_optimizer_runs_on_scaled_problems(stem):
    problem = problems("quadratic", 2)
    scaled = Scaled(problem, 1.0)
    optimizer = any_optimizer(stem, problem.layout)
    *_, (_, point) = unroll(scaled, optimizer, start(scaled, optimizer), 5)
    assert point.loss.isfinite().all()
    *_, (_, unscaled) = unroll(problem, optimizer, start(problem, optimizer), 5)
    assert not torch.allclose(point.loss, unscaled.loss, rtol=1e-4)
    assert isinstance(optimizer, HandDesigned) == (stem in HAND_DESIGNED)


def test_gradient_descent_on_scaled_problems_is_descent_with_squared_factors():
    # θ' ← θ' − lr c ∇f(cθ') is θ ← θ − lr c² ∇f(θ) in the problem's own coordinates.
    problem = problems("quadratic", 2)
    scaled, lr = Scaled(problem, 1.0), 0.01
    sgd = any_optimizer("sgd", problem.layout)
    *_, (_, point) = unroll(scaled, sgd, start(scaled, sgd), 4)
    theta, c = problem.layout.flatten(problem.init()), scaled.factors["theta"]
    for step in range(4):
        theta = theta.detach().requires_grad_()
        (grads,) = torch.autograd.grad(problem.loss({"theta": theta}, step).sum(), theta)
        theta = theta - lr * c.square() * grads
    torch.testing.assert_close(point.params * c, theta.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_replay_is_graph_on_scaled_problems(name):
    problem = Scaled(problems(name, 2), 3.0)
    optimizer = lstm(problem.layout.size)
    for one, other in zip(
        *(TBPTT(length=3, steps=8, engine=engine).estimates(optimizer, problem) for engine in ("replay", "graph")),
        strict=True,
    ):
        for replayed, differentiated in zip(one.grads, other.grads, strict=True):
            torch.testing.assert_close(replayed, differentiated, rtol=1e-9, atol=1e-12)
