"""Running an optimizer on problems: losses, scores and divergence."""

from __future__ import annotations

import math

import pytest
import torch

from l2l_runner import streams
from l2l_runner.evaluation.curves import DIVERGED, Curves, run
from l2l_runner.optimizers import SGD
from problems import EVERY_OPTIMIZEE, RUNTIME, UPDATE_RULES, any_optimizer, lstm, optimizee, plain

WHOLE = 10**6  # coordinates: all problems at once

# Runs


def plain_run(optimizer, distribution, seeds, steps):
    """Losses [steps + 1, problems] and the last parameters, problem by problem."""
    columns, finals = [], []
    for seed in seeds:
        problem = distribution.sample(seed.view(1), RUNTIME)
        theta = problem.layout.flatten(problem.init())
        state, losses = optimizer.init(theta), []
        for step in range(steps + 1):
            leaf = theta.clone().requires_grad_()
            loss = problem.loss(problem.layout.views(leaf), step)
            losses.append(loss.item())
            if step < steps:
                (grads,) = torch.autograd.grad(loss.sum(), leaf)
                with torch.no_grad():
                    update, state = optimizer.update(grads, state, theta)
                    theta = theta + update
        columns.append(losses)
        finals.append(theta)
    return torch.tensor(columns, dtype=torch.float64).T, finals


@pytest.mark.parametrize("stem", UPDATE_RULES)
@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
def test_run_is_a_naive_loop(name, stem):
    distribution, seeds = optimizee(name), streams.seeds(0, "test", 0, 2)
    optimizer = any_optimizer(stem, distribution.layout())
    expected, finals = plain_run(optimizer, distribution, seeds, 3)
    curves = run(optimizer, distribution, seeds, 3, RUNTIME, WHOLE)
    assert curves.losses.shape == (4, 2)
    assert not curves.losses.requires_grad
    torch.testing.assert_close(curves.losses, expected, rtol=1e-9, atol=1e-11)
    for i, theta in enumerate(finals):
        problem = distribution.sample(seeds[i : i + 1], RUNTIME)
        metrics = problem.metrics(problem.layout.views(theta))
        assert set(metrics) == set(curves.metrics)
        for metric, value in metrics.items():
            assert curves.metrics[metric][i].item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("stem", ["lstm", "adam"])
@pytest.mark.parametrize("name", ["quadratic", "digits"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_chunks_change_nothing(name, stem, at_once):
    distribution, seeds = optimizee(name), streams.seeds(0, "test", 0, 5)
    size = distribution.layout().size
    optimizer = any_optimizer(stem, distribution.layout())
    whole = run(optimizer, distribution, seeds, 8, RUNTIME, WHOLE)
    chunked = run(optimizer, distribution, seeds, 8, RUNTIME, at_once * size)
    torch.testing.assert_close(chunked.losses, whole.losses, rtol=1e-10, atol=1e-12)
    assert set(chunked.metrics) == set(whole.metrics)
    for metric in whole.metrics:
        torch.testing.assert_close(chunked.metrics[metric], whole.metrics[metric], rtol=0, atol=1e-12)


def test_a_chunk_holds_as_many_problems_as_fit(monkeypatch):
    distribution = optimizee("quadratic", dim=4)
    sizes = []
    sample = type(distribution).sample
    monkeypatch.setattr(type(distribution), "sample", lambda self, s, r: sizes.append(len(s)) or sample(self, s, r))
    for chunk, expected in [(1, [1] * 5), (4, [1] * 5), (11, [2, 2, 1]), (16, [4, 1]), (1000, [5])]:
        sizes.clear()
        run(SGD(lr=0.01, weight_decay=0), distribution, streams.seeds(0, "test", 0, 5), 1, RUNTIME, chunk)
        assert sizes == expected


@pytest.mark.parametrize(("chunk", "parts"), [(WHOLE, 1), (8, 3)])
def test_progress_is_told_step_by_step(chunk, parts):
    ticks = []
    seeds = streams.seeds(0, "test", 0, 5)
    run(lstm(4), optimizee("quadratic"), seeds, 7, RUNTIME, chunk, on_step=lambda: ticks.append(1))
    assert len(ticks) == 7 * parts


def test_losses_are_kept_in_float64_whatever_they_are_computed_in():
    distribution, seeds = optimizee("quadratic"), streams.seeds(0, "test", 0, 3)
    optimizer = any_optimizer("adam", plain(4))
    single = run(optimizer, distribution, seeds, 5, type(RUNTIME)(), WHOLE)
    assert single.losses.dtype == torch.float64
    torch.testing.assert_close(
        single.losses, run(optimizer, distribution, seeds, 5, RUNTIME, WHOLE).losses, rtol=1e-4, atol=1e-5
    )


# Scores and divergence


def curves_of(*columns, **metrics):
    """Curves of problems given by their losses."""
    losses = torch.tensor(columns, dtype=torch.float64).T
    return Curves(losses, {name: torch.tensor(values, dtype=torch.float64) for name, values in metrics.items()})


def test_sums_finals_and_scores():
    curves = curves_of([4.0, 2.0, 1.0], [8.0, 4.0, 3.0])
    assert curves.sums.tolist() == [6.0, 12.0]  # f(θ_0) … f(θ_{T−1}): the losses that were met on the way
    assert curves.finals.tolist() == [1.0, 3.0]
    assert curves.score("final") == 2.0
    assert curves.score("sum") == 9.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_the_worst(bad):
    assert curves_of([1.0, 1.0, bad], [1.0, 1.0, 1.0]).score("final") == math.inf
    assert curves_of([1.0, bad, 1.0], [1.0, 1.0, 1.0]).score("sum") == math.inf


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.0, 0.5, 0.1], False),
        ([1.0, 50.0, 2.0], False),
        ([1.0, 50.0, 99.0], False),
        ([0.1, 0.1, 0.0], False),
        ([-1.0, -2.0, -3.0], False),
        ([1.0, 50.0, 1.01 * DIVERGED], True),
        ([-1.0, 50.0, 1.01 * DIVERGED], True),
        ([1.0, 0.5, math.nan], True),
        ([1.0, math.nan, 0.5], True),
        ([1.0, 0.5, math.inf], True),
        ([1.0, math.inf, 0.5], True),
        ([1.0, -math.inf, 0.5], True),
        ([math.nan, 1.0, 1.0], True),
    ],
    ids=[
        "healthy",
        "recovering",
        "somewhat-worse",
        "solved",
        "negative",
        "exploding",
        "exploding-from-below-zero",
        "nan-at-the-end",
        "nan-on-the-way",
        "inf-at-the-end",
        "inf-on-the-way",
        "minus-inf-on-the-way",
        "nan-at-the-start",
    ],
)
def test_divergence_is_flagged_and_nothing_else(losses, diverged):
    assert curves_of([1.0, 1.0, 1.0], losses).diverged.tolist() == [False, diverged]


@pytest.mark.parametrize("rate", [1.0, 1e30], ids=["exploding", "not-finite"])
def test_a_rate_that_is_too_high_is_flagged(rate):
    seeds = streams.seeds(0, "test", 0, 4)
    healthy = run(SGD(lr=0.001, weight_decay=0), optimizee("quadratic"), seeds, 30, RUNTIME, WHOLE)
    wild = run(SGD(lr=rate, weight_decay=0), optimizee("quadratic"), seeds, 30, RUNTIME, WHOLE)
    assert not healthy.diverged.any()
    assert wild.diverged.all()
