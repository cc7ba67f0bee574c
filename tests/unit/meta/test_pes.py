"""Persistent evolution strategies: against a plain re-implementation, and against exact gradients."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from l2l_runner import streams
from l2l_runner.meta import PES, TBPTT
from l2l_runner.optimizers import LEARNED
from l2l_runner.unroll import start, unroll
from problems import RUNTIME, UPDATE_RULES, any_optimizer, lstm, optimizee, problems
from running import same_bits

SETTINGS: dict[str, Any] = {"length": 3, "steps": 8, "pairs": 3, "sigma": 0.01}


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def moved(optimizer, by):
    """A copy with other parameters."""
    other = copy.deepcopy(optimizer)
    torch.nn.utils.vector_to_parameters(flat(other.parameters()) + by, other.parameters())
    return other


def plain_estimates(optimizer, problem, pes, accumulate=True, weight=lambda t: 1.0):
    """Meta-losses and gradients of the windows, pair by pair and step by step; with `accumulate=False` those of plain
    evolution strategies, for which a window's losses are the doing of that window's perturbation alone.
    """
    size = flat(optimizer.parameters()).numel()
    windows = range(0, pes.steps, pes.length)
    meta_losses, grads = [0.0] * len(windows), [torch.zeros(size, dtype=torch.float64) for _ in windows]
    for pair in range(pes.pairs):
        points = [start(problem, optimizer)] * 2
        total = torch.zeros(size, dtype=torch.float64)
        for window, step in enumerate(windows):
            noise = streams.normal(problem.seeds[:1], size, f"perturbation {pair}", step)[0] * pes.sigma
            total = total + noise if accumulate else noise
            for arm, sign in enumerate((1, -1)):
                loss = 0.0
                for _ in range(min(pes.length, pes.steps - step)):
                    (_, points[arm]), *_ = unroll(problem, moved(optimizer, sign * noise), points[arm], 1)
                    loss += weight(points[arm].step) * points[arm].loss.mean().item()
                meta_losses[window] += loss / (2 * pes.pairs)
                grads[window] += sign * loss * total / (2 * pes.sigma**2 * pes.pairs)
    return meta_losses, grads


@pytest.mark.parametrize("weights", ["constant", "linear", "final"])
@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_estimates_are_those_of_a_plain_implementation(name, weights):
    problem = problems(name, 2)
    optimizer = lstm(problem.layout.size, hidden=2)
    pes = PES(**SETTINGS, weights=weights)
    weight = {"constant": lambda t: 1.0, "linear": lambda t: 2 * t / 9, "final": lambda t: 8.0 * (t == 8)}[weights]
    meta_losses, grads = plain_estimates(optimizer, problem, pes, weight=weight)
    estimates = list(pes.estimates(optimizer, problem))
    assert [estimate.meta_loss.item() for estimate in estimates] == pytest.approx(meta_losses, rel=1e-12)
    for estimate, expected in zip(estimates, grads, strict=True):
        torch.testing.assert_close(flat(estimate.grads), expected, rtol=1e-6, atol=1e-6 * flat(grads).abs().max())
        assert [grad.shape for grad in estimate.grads] == [parameter.shape for parameter in optimizer.parameters()]
    assert [len(estimate.losses) for estimate in estimates] == [3, 3, 2]
    assert flat(estimates[-1].grads).abs().max() > 1e-4


def standardised(problem, optimizer, exact, replicates, estimate):
    """How many standard errors the mean of `replicates` independent estimates is off, component by component."""
    seeds, sums = problem.seeds, []
    for replicate in range(replicates):  # these problems are drawn already, so their seeds are the perturbations' alone
        problem.seeds = streams.seeds(replicate, "replicate", 0, len(seeds))
        sums.append(sum(estimate(optimizer, problem)))
    problem.seeds = seeds
    stacked = torch.stack(sums)
    return (stacked.mean(0) - exact) / (stacked.std(0) / math.sqrt(replicates))


@pytest.fixture(scope="module")
def exact():
    """A tiny problem, a tiny optimizer, and the exact gradient of the whole trajectory's meta-loss."""
    problem = problems("quadratic", 1, dim=2)
    optimizer = lstm(2, hidden=1, layers=1, preprocessing="none", output_scale=0.5)
    (whole,) = TBPTT(length=4, steps=4, second_order=True, engine="graph").estimates(optimizer, problem)
    return problem, optimizer, flat(whole.grads)


@pytest.mark.slow
def test_windows_add_up_to_the_exact_gradient(exact):
    problem, optimizer, gradient = exact
    pes = PES(length=1, steps=4, pairs=20, sigma=1e-4)
    off = standardised(problem, optimizer, gradient, 30, lambda *a: [flat(e.grads) for e in pes.estimates(*a)])
    assert off.abs().max() < 4
    assert off.square().mean() < 2.5


@pytest.mark.slow
def test_without_accumulation_they_do_not(exact):
    # Otherwise the test above could pass because there is nothing between windows here.
    problem, optimizer, gradient = exact
    pes = PES(length=1, steps=4, pairs=20, sigma=1e-4)
    off = standardised(
        problem, optimizer, gradient, 10, lambda rule, drawn: plain_estimates(rule, drawn, pes, accumulate=False)[1]
    )
    assert off.abs().max() > 10


def test_a_pairs_arms_are_mirror_images(monkeypatch):
    # With the opposite perturbations its arms change places, and the estimate stays what it is.
    optimizer, problem = lstm(4), problems("quadratic", 2)
    ahead = list(PES(**SETTINGS).estimates(optimizer, problem))
    normal = streams.normal
    monkeypatch.setattr(streams, "normal", lambda *a: -normal(*a))
    for one, other in zip(ahead, PES(**SETTINGS).estimates(optimizer, problem), strict=True):
        torch.testing.assert_close(flat(one.grads), flat(other.grads), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)


def test_pairs_are_a_function_of_problem_window_and_number(monkeypatch):
    optimizer, problem = lstm(4), problems("quadratic", 2)
    one, again = (list(PES(**SETTINGS).estimates(optimizer, problem)) for _ in range(2))
    assert all(same_bits(a.grads, b.grads) for a, b in zip(one, again, strict=True))
    drawn, normal = [], streams.normal
    monkeypatch.setattr(streams, "normal", lambda *a: drawn.append(normal(*a)) or drawn[-1])
    list(PES(**SETTINGS).estimates(optimizer, problem))
    assert len({tuple(noise[0].tolist()) for noise in drawn}) == 3 * 3  # pairs × windows, all different
    few, drawn[:] = list(drawn), []
    list(PES(**{**SETTINGS, "pairs": 5}).estimates(optimizer, problem))
    assert [same_bits(a, b) for a, b in zip(few, [*drawn[:3], *drawn[5:8], *drawn[10:13]], strict=True)] == [True] * 9
    other = list(PES(**SETTINGS).estimates(optimizer, problems("quadratic", 2, seed=1)))
    assert not same_bits(one[0].grads, other[0].grads)


def test_the_parameters_are_what_they_were_between_windows_and_after_errors(monkeypatch):
    optimizer, problem = lstm(4), problems("quadratic", 2)
    before = copy.deepcopy(optimizer.state_dict())
    for _ in PES(**SETTINGS).estimates(optimizer, problem):
        assert same_bits(dict(optimizer.state_dict()), dict(before))
    update, calls = type(optimizer).update, iter(range(100))

    def failing(self, *arguments):
        if next(calls) == 7:
            raise RuntimeError("out of memory")
        return update(self, *arguments)

    monkeypatch.setattr(type(optimizer), "update", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(PES(**SETTINGS).estimates(optimizer, problem))
    assert same_bits(dict(optimizer.state_dict()), dict(before))


def test_an_update_between_windows_counts_in_the_next_one():
    optimizer, problem = lstm(4), problems("quadratic", 2)
    estimates = PES(**SETTINGS).estimates(optimizer, problem)
    (_, kept, *_), first = PES(**SETTINGS).estimates(optimizer, problem), next(estimates)
    with torch.no_grad():
        for parameter, grad in zip(optimizer.parameters(), first.grads, strict=True):
            parameter -= 0.05 * grad / (1e-12 + grad.norm())
    assert not torch.allclose(next(estimates).losses, kept.losses, rtol=1e-6)


@pytest.mark.parametrize("name", ["quadratic", "digits"])
@pytest.mark.parametrize("stem", [stem for stem in LEARNED if stem in UPDATE_RULES])
def test_it_serves_every_learned_optimizer(name, stem):
    problem = problems(name, 2)
    optimizer = any_optimizer(stem, problem.layout)
    pes = PES(length=1, steps=2, pairs=1, sigma=1e-4)
    for estimate in pes.estimates(optimizer, problem):
        assert flat(estimate.grads).isfinite().all()
        assert flat(estimate.grads).abs().max() > 0


@pytest.mark.parametrize("kernel", ["torch", "cpp"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_kernel_gives_the_same(kernel, dtype):
    problem = optimizee("quadratic").sample(streams.seeds(0, "train", 0, 2), replace(RUNTIME, dtype=dtype))
    optimizer = lstm(4).to(dtype)
    expected = list(PES(**SETTINGS).estimates(optimizer, problem))
    optimizer.use_kernel(kernel)
    tolerance = {torch.float32: 1e-2, torch.float64: 1e-8}[dtype]
    for one, other in zip(PES(**SETTINGS).estimates(optimizer, problem), expected, strict=True):
        assert one.meta_loss.dtype == one.grads[0].dtype == dtype
        assert (flat(one.grads) - flat(other.grads)).norm() <= tolerance * flat(other.grads).norm()


def test_what_is_not_finite_is_shown():
    problem = problems("quadratic", 2)
    problem.weight[0] *= 1e200
    estimate, *_ = PES(**SETTINGS).estimates(lstm(4), problem)
    assert not estimate.meta_loss.isfinite()
    assert not flat(estimate.grads).isfinite().all()
    assert estimate.losses[:, 1].isfinite().all()
