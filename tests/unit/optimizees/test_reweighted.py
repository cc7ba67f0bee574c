"""The weights of examples against their definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l2l_runner import streams
from l2l_runner.layout import Params
from l2l_runner.optimizees import Imbalance, ImbalanceProblem
from l2l_runner.optimizees.reweighted import Reweighted, example_weights
from problems import RUNTIME, optimizee, scattered

DIGITS: dict[str, Any] = {"data": "digits", "images": 60, "side": 16, "clean": 3, "minibatch": 6}


def problem(count: int = 1, **changes: Any) -> ImbalanceProblem:
    """Imbalanced digits, in float64."""
    found = optimizee("imbalance", **{**DIGITS, "proportion": 0.8, **changes})
    assert isinstance(found, Imbalance)
    return found.sample(streams.seeds(0, "train", 0, count), RUNTIME)


def normalised(useful: Tensor) -> Tensor:
    useful = useful.clamp(min=0)
    return useful / useful.sum() if useful.sum() > 0 else useful


def after_virtual_step(
    losses: Callable[[Params], Tensor], clean: Callable[[Params], Tensor], params: Params, epsilon: Tensor, lr: float
) -> Tensor:
    """The clean loss after the virtual SGD step on Σ ε ℓ, as algorithm 1 of Ren et al. 2018 has it; with its graph."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    grads = torch.autograd.grad((epsilon * losses(leaves)).sum(), list(leaves.values()), create_graph=True)
    return clean({name: leaves[name] - lr * g for name, g in zip(leaves, grads, strict=True)}).sum()


def toy(seed: int, examples: int = 7) -> tuple[Callable[[Params], Tensor], Callable[[Params], Tensor], Params]:
    """A small smooth network's losses on random examples, and on random clean ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, y, clean_x, clean_y = draw(examples, 3), draw(examples), draw(4, 3), draw(4)

    def errors(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ params["w"]).tanh() @ params["v"] - y).square()

    params = {"w": draw(3, 5), "v": draw(5)}
    return lambda p: errors(p, x, y), lambda p: errors(p, clean_x, clean_y).mean(), params


@given(st.integers(0, 10_000), st.floats(1e-4, 10))
@settings(deadline=None, max_examples=30)
def test_weights_are_their_definition_by_a_virtual_step_and_double_backward(seed: int, lr: float) -> None:
    losses, clean, params = toy(seed)
    epsilon = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    (grads,) = torch.autograd.grad(after_virtual_step(losses, clean, params, epsilon, lr), epsilon)
    weights = example_weights(losses, clean, params)
    torch.testing.assert_close(weights, normalised(-grads), rtol=1e-10, atol=1e-14)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_weights_agree_with_finite_differences(seed: int) -> None:
    losses, clean, params = toy(seed)
    h, unit = 1e-5, torch.eye(7, dtype=torch.float64)
    drops = torch.stack(
        [
            after_virtual_step(losses, clean, params, -h * e, 0.1)
            - after_virtual_step(losses, clean, params, h * e, 0.1)
            for e in unit
        ]
    )
    weights = example_weights(losses, clean, params)
    torch.testing.assert_close(weights, normalised(drops.detach()), rtol=1e-5, atol=1e-8)


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_weights_are_no_less_than_zero_and_sum_to_one_or_are_all_zero(seed: int, examples: int) -> None:
    weights = example_weights(*toy(seed, examples))
    assert weights.shape == (examples,)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1) or not weights.any()


@pytest.mark.parametrize("harm", [0.0, -1.0, -1e-300])
def test_weights_are_all_zero_where_no_example_helps(harm: float) -> None:
    _, clean, params = toy(0)
    weights = example_weights(lambda p: harm * torch.stack([clean(p)] * 3), clean, params)
    assert weights.tolist() == [0, 0, 0]


def test_an_example_that_helps_alone_has_all_the_weight() -> None:
    _, clean, params = toy(0)
    factors = torch.tensor([-1.0, 0.0, 1e-200, -5.0], dtype=torch.float64)
    assert example_weights(lambda p: factors * clean(p), clean, params).tolist() == [0, 0, 1, 0]


def test_examples_weigh_in_proportion_to_what_they_help() -> None:
    _, clean, params = toy(0)
    factors = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    weights = example_weights(lambda p: factors * clean(p), clean, params)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0, 0.75], dtype=torch.float64))


def test_weights_have_no_graph_and_leave_none() -> None:
    losses, clean, params = toy(0)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    weights = example_weights(losses, clean, leaves)
    assert not weights.requires_grad
    assert all(leaf.grad is None for leaf in leaves.values())
    assert torch.equal(weights, example_weights(losses, clean, params))
    with torch.no_grad():
        assert torch.equal(weights, example_weights(losses, clean, params))


def test_weights_of_lenet_are_their_definition_problem_by_problem() -> None:
    several = problem(2)
    views = several.layout.views(scattered(several))
    weights = example_weights(lambda p: several.example_losses(p, 3), several.clean_loss, views)
    epsilon = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    loss = after_virtual_step(lambda p: several.example_losses(p, 3), several.clean_loss, views, epsilon, 1e-3)
    (grads,) = torch.autograd.grad(loss, epsilon)
    expected = torch.stack([normalised(-own) for own in grads])
    assert 0 < (expected > 0).sum() < 12  # some help, some do not
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-13)


def test_the_real_step_is_on_the_weighted_losses_with_weights_held_constant() -> None:
    one = problem()
    flat = scattered(one, scale=0.1).requires_grad_()
    views = one.layout.views(flat)
    loss = Reweighted(one).loss(views, 2)
    weights = example_weights(lambda p: one.example_losses(p, 2), one.clean_loss, views)
    expected = (weights * one.example_losses(views, 2)).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(value.sum(), flat, retain_graph=True)[0] for value in (loss, expected))
    assert mine.abs().max() > 0
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)
