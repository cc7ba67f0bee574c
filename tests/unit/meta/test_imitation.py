"""Imitation of Adam: its gradients against autograd, and which meta-steps imitate."""

from __future__ import annotations

import pytest
import torch

from l2l_runner import streams
from l2l_runner.meta import TBPTT, Imitation
from l2l_runner.optimizers import LEARNED, Adam, Optimizer
from l2l_runner.unroll import start, unroll
from problems import UPDATE_RULES, any_optimizer, lstm, problems
from running import same_bits

ADAM = Adam(lr=0.05, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)


def imitation(fraction=1.0, **changes):
    return Imitation(tbptt=TBPTT(**{"length": 3, "steps": 8, **changes}), expert=ADAM, fraction=fraction)


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads])


def plain_estimates(optimizer, problem, length, steps):
    """Distances, gradients and losses of the windows, by torch.optim.Adam and autograd, all problems side by side."""
    theta = problem.layout.flatten(problem.init()).detach().requires_grad_()
    adam = torch.optim.Adam([theta], lr=ADAM.lr)
    state, found = optimizer.init(theta.detach()), []
    for step in range(steps):
        if step % length == 0:
            state = tuple(tensor.detach() for tensor in state)
            distance, scale, losses = 0.0, 0.0, []
        (theta.grad,) = torch.autograd.grad(problem.loss(problem.layout.views(theta), step).sum(), theta)
        with torch.enable_grad():
            update, state = optimizer.update(theta.grad.clone(), state, theta.detach())
        before = theta.detach().clone()
        adam.step()
        expected = theta.detach() - before
        distance, scale = distance + (update - expected).square().sum(1), scale + expected.square().sum(1)
        losses.append(problem.loss(problem.layout.views(theta.detach()), step + 1))
        if (step + 1) % length == 0 or step + 1 == steps:
            mean = (distance / scale).mean()
            grads = torch.autograd.grad(mean, list(optimizer.parameters()))
            found.append((mean.item(), flat(grads), torch.stack(losses)))
    return found


def assert_plain(estimates, expected, relative=1e-9):
    assert len(estimates) == len(expected)
    for estimate, (distance, grads, losses) in zip(estimates, expected, strict=True):
        assert estimate.imitates
        assert estimate.meta_loss.item() == pytest.approx(distance, rel=1e-6)
        assert (flat(estimate.grads) - grads).abs().max() <= relative * grads.abs().max()
        torch.testing.assert_close(estimate.losses, losses, rtol=1e-6, atol=0)


@pytest.mark.parametrize("stem", [stem for stem in LEARNED if stem in UPDATE_RULES])
@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_gradients_are_those_of_autograd(name, stem):
    problem = problems(name, 3)
    optimizer = any_optimizer(stem, problem.layout)
    estimates = list(imitation().estimates(optimizer, problem))
    assert_plain(estimates, plain_estimates(optimizer, problem, 3, 8), 1e-6)


@pytest.mark.parametrize("length", [1, 5, 20])
def test_windows_of_any_length_give_them(length):
    optimizer, problem = lstm(4), problems("quadratic", 3)
    estimates = list(imitation(length=length).estimates(optimizer, problem))
    assert_plain(estimates, plain_estimates(optimizer, problem, length, 8), 1e-6)


@pytest.mark.parametrize("changes", [{}, {"chunk": 5}, {"engine": "graph"}, {"engine": "graph", "second_order": True}])
@pytest.mark.parametrize("kernel", ["torch", "cpp", "whole problem"])
def test_every_kernel_chunk_and_engine_gives_them(kernel, changes):
    problem = problems("quadratic", 3)
    optimizer = lstm(4, coordinatewise=kernel != "whole problem")
    expected = plain_estimates(optimizer, problem, 3, 8)
    if kernel == "cpp":
        optimizer.use_kernel(kernel)
    assert_plain(list(imitation(**changes).estimates(optimizer, problem)), expected, 1e-6)


def test_a_sample_of_coordinates_is_unbiased(monkeypatch):
    # Systematic sampling has one random number, its offset: the mean over a fine grid of offsets is the expectation.
    optimizer, problem, offsets = lstm(4), problems("quadratic", 3), 100
    exact = [flat(estimate.grads) for estimate in imitation().estimates(optimizer, problem)]
    sums, deviations = [0.0] * 3, [0.0] * 3
    for i in range(offsets):
        offset = torch.tensor([[(i + 0.5) / offsets]], dtype=torch.float64)
        monkeypatch.setattr(streams, "uniform", lambda *args, offset=offset, **kwargs: offset)
        for window, estimate in enumerate(imitation(coordinates=2).estimates(optimizer, problem)):
            grads = flat(estimate.grads)
            sums[window] = sums[window] + grads / offsets
            deviations[window] = max(deviations[window], (grads - exact[window]).norm().item())
    for mean, deviation, whole in zip(sums, deviations, exact, strict=True):
        assert deviation > 0.05 * whole.norm()
        assert (mean - whole).norm() < 0.02 * whole.norm()


class Mimic(Optimizer):
    """An expert that does what the learned optimizer does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def init(self, params):
        return self.optimizer.init(params)

    def update(self, grads, state, params):
        return self.optimizer.update(grads, state, params)


def test_the_distance_to_oneself_is_none():
    optimizer, problem = lstm(4), problems("quadratic", 2)
    estimator = Imitation(tbptt=TBPTT(length=4, steps=8), expert=Mimic(optimizer), fraction=1.0)
    for estimate in estimator.estimates(optimizer, problem):
        assert estimate.meta_loss == 0
        assert (flat(estimate.grads) == 0).all()
    *_, (_, point) = unroll(problem, optimizer, start(problem, optimizer), 8)
    assert torch.equal(estimate.losses[-1], point.loss)


@pytest.mark.slow
def test_an_optimizer_learns_to_answer_as_adam_does():
    optimizer, estimator = lstm(4, hidden=8), imitation(length=10, steps=20)
    meta_optimizer = torch.optim.Adam(optimizer.parameters(), lr=0.01)
    distances = []
    for step in range(60):
        problem = problems("quadratic", 8, seed=step)
        for estimate in estimator.estimates(optimizer, problem):
            for parameter, grad in zip(optimizer.parameters(), estimate.grads, strict=True):
                parameter.grad = grad
            meta_optimizer.step()
            distances.append(estimate.meta_loss.item())
    assert sum(distances[-10:]) / 10 < 0.5 < distances[0]


# Which meta-steps imitate


@pytest.mark.parametrize("fraction", [0.2, 0.7])
def test_as_many_imitate_as_are_to(fraction):
    optimizer, estimator, count = lstm(4), imitation(fraction, length=1, steps=1), 400
    imitates = []
    for seed in range(count):
        (estimate,) = estimator.estimates(optimizer, problems("quadratic", 1, seed=seed))
        imitates.append(estimate.imitates)
    assert sum(imitates) / count == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / count) ** 0.5)


def test_those_that_do_not_are_tbptt():
    optimizer, problem = lstm(4), problems("quadratic", 3)
    for one, other in zip(
        imitation(0.0).estimates(optimizer, problem),
        TBPTT(length=3, steps=8).estimates(optimizer, problem),
        strict=True,
    ):
        assert same_bits(one.grads, other.grads)
        assert not one.imitates
