"""Every optimizee of conf/ is held to the same contract."""

from __future__ import annotations

import pytest
import torch

from l2l_runner import streams
from l2l_runner.optimizees import OPTIMIZEES
from l2l_runner.runtime import Runtime
from problems import (
    DATA,
    EVERY_OPTIMIZEE,
    OPTIMIZEE_FILES,
    RUNTIME,
    optimizee,
    problems,
    scattered,
)

# What holds for every optimizee


def test_every_optimizee_has_a_file_and_every_file_an_optimizee():
    assert set(OPTIMIZEES) <= set(OPTIMIZEE_FILES)
    assert {node["name"] for node in OPTIMIZEE_FILES.values()} == set(OPTIMIZEES)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_shapes_and_precision(stem):
    problem = problems(stem, 3)
    start = problem.init()
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        name: (3, *shape) for name, shape in problem.layout.shapes.items()
    }
    assert optimizee(stem).layout() == problem.layout
    assert all(value.dtype == torch.float64 for value in start.values())
    loss = problem.loss(start, 0)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float64
    assert loss.isfinite().all()
    for value in problem.metrics(start).values():
        assert value.shape == (3,)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_float32_is_float64_rounded(stem):
    # The numbers that make a problem are drawn in float64, whatever it is computed in.
    seeds = streams.seeds(0, "train", 0, 3)
    double = problems(stem, 3)
    single = optimizee(stem).sample(seeds, Runtime(data_root=DATA))
    start = single.init()
    for name, value in double.init().items():
        assert start[name].dtype == torch.float32
        assert torch.equal(start[name], value.float())
    loss = single.loss(start, 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), double.loss(double.init(), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_a_batch_of_problems_is_the_problems_one_by_one(stem):
    problem = problems(stem, 4)
    flat = scattered(problem)
    losses, metrics = problem.loss(problem.layout.views(flat), 3), problem.metrics(problem.layout.views(flat))
    start = problem.layout.flatten(problem.init())
    for i, seed in enumerate(streams.seeds(0, "train", 0, 4)):
        alone = optimizee(stem).sample(seed.view(1), RUNTIME)
        assert torch.equal(alone.layout.flatten(alone.init())[0], start[i])
        views = alone.layout.views(flat[i : i + 1])
        torch.testing.assert_close(alone.loss(views, 3)[0], losses[i], rtol=1e-12, atol=1e-12)
        for name, value in alone.metrics(views).items():
            torch.testing.assert_close(value[0], metrics[name][i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_a_loss_does_not_depend_on_the_other_problems(stem):
    problem = problems(stem, 3)
    flat = scattered(problem).requires_grad_()
    losses = problem.loss(problem.layout.views(flat), 1)
    for i in range(3):
        (grads,) = torch.autograd.grad(losses[i], flat, retain_graph=True)
        others = [j for j in range(3) if j != i]
        assert grads[i].abs().max() > 0
        assert (grads[others] == 0).all()


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_the_same_seed_is_the_same_problem(stem):
    one, other = problems(stem, 2), problems(stem, 2)
    start = one.layout.flatten(one.init())
    assert torch.equal(other.layout.flatten(other.init()), start)
    assert torch.equal(one.layout.flatten(one.init()), start)  # asking twice changes nothing
    views = one.layout.views(scattered(one))
    for step in (0, 5, 0):
        assert torch.equal(one.loss(views, step), other.loss(views, step))


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_other_seeds_are_other_problems(stem):
    one, other = problems(stem, 3, seed=0), problems(stem, 3, seed=1)
    flat = scattered(one)
    same_point = flat[:1].expand_as(flat)  # so that a difference is the problem's, not the point's
    grads: list[torch.Tensor] = []  # losses may be as coarse as the return of a few episodes
    for problem in (one, other):
        leaf = same_point.clone().requires_grad_()
        grads += torch.autograd.grad(problem.loss(problem.layout.views(leaf), 0).sum(), leaf)
    starts = torch.cat([one.layout.flatten(one.init()), other.layout.flatten(other.init())])
    assert len(torch.cat(grads).unique(dim=0)) == 6
    assert len(starts.unique(dim=0)) == 6


DIFFERENTIABLE = [param for param in EVERY_OPTIMIZEE if param.values[0] != "maze"]
"""Those whose gradient is that of their loss, and no estimate of its expectation's, as a policy gradient is."""


@pytest.mark.parametrize("stem", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences(stem):
    problem = problems(stem, 2)
    flat, h = scattered(problem), 1e-7 if stem == "art" else 1e-5  # which has many kinks: ReLUs and maxima
    generator = torch.Generator().manual_seed(1)

    def losses(at):
        return problem.loss(problem.layout.views(at), 2)

    leaf = flat.clone().requires_grad_()
    (grads,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    for _ in range(4):
        direction = torch.randn(flat.shape, dtype=flat.dtype, generator=generator)
        difference = (losses(flat + h * direction) - losses(flat - h * direction)) / (2 * h)
        torch.testing.assert_close((grads * direction).sum(1), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stem", DIFFERENTIABLE)
def test_second_derivatives_agree_with_finite_differences(stem):
    problem = problems(stem, 2)
    flat, h = scattered(problem), 1e-8 if stem == "art" else 1e-6
    direction = torch.randn(flat.shape, dtype=flat.dtype, generator=torch.Generator().manual_seed(1))

    def gradient(at, create_graph=False):
        loss = problem.loss(problem.layout.views(at), 2)
        return torch.autograd.grad(loss.sum(), at, create_graph=create_graph)[0]

    leaf = flat.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(leaf, create_graph=True) * direction).sum(), leaf)
    ahead, behind = (gradient((flat + sign * h * direction).requires_grad_()) for sign in (1, -1))
    assert product.abs().max() > 0
    rounding = 1e-6 if stem == "omniglot" else 1e-7  # of biases before a batch norm, whose gradient is zero
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-5, atol=rounding)
