"""Optimizers whose rates learn while they train: against plain autograd and finite differences."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from l2l_runner.optim import (
    LearnableOptimizer,
    MetaSGD,
)
from small_nets import TRANSFORMS, loss_of, net, scattered

# LearnableOptimizer


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_next_backward_gives_one_step_hypergradients(kind: str) -> None:
    model = net()
    learnable = LearnableOptimizer(model, lambda param: scattered(TRANSFORMS[kind](param)), lr=0.1)
    loss_of(model, 0).backward()
    first = [parameter.grad.clone() for parameter in model.parameters()]
    learnable.step()
    learnable.zero_grad()
    for parameter in learnable.parameters():
        parameter.grad = None
    loss_of(model, 1).backward()
    # −lr · g' · ∂T(g), by plain autograd
    for transform, grad, parameter in zip(learnable.transforms, first, model.parameters(), strict=True):
        learned = list(transform.parameters())
        expected = torch.autograd.grad(transform(grad), learned, -0.1 * parameter.grad)
        for one, other in zip(learned, expected, strict=True):
            torch.testing.assert_close(one.grad, other, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1.0), st.floats(0.1, 2.0))
def test_hypergradients_are_finite_differences(lr: float, rate: float) -> None:
    def after(change: float) -> tuple[Tensor, LearnableOptimizer]:
        torch.manual_seed(0)
        model = net()
        learnable = LearnableOptimizer(model, lambda param: MetaSGD(param, lr=rate, per="tensor"), lr=lr)
        loss_of(model, 0).backward()
        with torch.no_grad():
            learnable.transforms[0].rate.add_(change)
        learnable.step()
        with torch.no_grad():
            learnable.transforms[0].rate.sub_(change)
        learnable.zero_grad()
        return loss_of(model, 1), learnable

    loss, learnable = after(0.0)
    loss.backward()
    size = 1e-5
    difference = (after(size)[0] - after(-size)[0]).item() / (2 * size)
    assert learnable.transforms[0].rate.grad.item() == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_the_first_backward_gives_zeros() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    loss_of(model, 0).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in learnable.parameters())


def test_parameters_stay_parameters_and_everything_can_be_copied() -> None:
    model = net()
    before = list(model.parameters())
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.01)
    loss_of(model, 0).backward()
    learnable.step()
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert all(isinstance(parameter, nn.Parameter) and parameter.is_leaf for parameter in model.parameters())
    buffer = io.BytesIO()
    torch.save((model, learnable), buffer)
    buffer.seek(0)
    pairs = [copy.deepcopy((model, learnable)), torch.load(buffer, weights_only=False), (model, learnable)]
    states = []
    for one, optimizer in pairs:
        assert optimizer.info["model"] is one
        optimizer.zero_grad()
        loss_of(one, 1).backward()
        optimizer.step()
        states.append([*one.parameters(), *(parameter.grad for parameter in optimizer.parameters())])
    for state in states[:2]:
        assert all(torch.equal(one, other) for one, other in zip(state, states[2], strict=True))
    twin = LearnableOptimizer(net(), MetaSGD)
    twin.load_state_dict(learnable.state_dict())
    assert [name for name, _ in learnable.named_parameters()] == [f"transforms.{i}.rate" for i in range(4)]


def test_a_step_is_sgd_and_takes_a_closure() -> None:
    model, plain = net(), net()
    plain.load_state_dict(model.state_dict())
    learnable, sgd = LearnableOptimizer(model, MetaSGD, lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(5):

        def closure(step: int = step) -> Tensor:
            learnable.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        sgd.zero_grad()
        expected = loss_of(plain, step)
        expected.backward()
        sgd.step()
        assert learnable.step(closure).item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_a_changed_model_is_refused_before_anything_changes() -> None:
    for change in ("added", "reshaped"):
        model = net()
        learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
        loss_of(model, 0).backward()
        if change == "added":
            model.append(nn.Linear(2, 2))
        else:
            model[0] = nn.Linear(1, 1)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        with pytest.raises(RuntimeError, match=r"The model has parameters of the shapes .*make another one after"):
            learnable.step()
        assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


def test_a_transform_that_fails_leaves_all_parameters() -> None:
    class Fails(nn.Module):
        def forward(self, grad: Tensor) -> Tensor:
            raise ValueError("no")

    model = net()
    learnable = LearnableOptimizer(model, {"0.*": MetaSGD, "*": lambda param: Fails()}, lr=0.1)
    loss_of(model, 0).backward()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="no"):
        learnable.step()
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before, strict=True))


def test_what_is_frozen_or_unused_stays() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(2):
        learnable.zero_grad()
        loss_of(model, step).backward()
        learnable.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"0.weight", "3.weight", "3.bias"}


def test_zero_grad_is_for_the_model_alone() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    for step in range(2):
        loss_of(model, step).backward()
        learnable.step()
    found = [parameter.grad.clone() for parameter in learnable.parameters()]
    learnable.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    grads: list[Any] = [parameter.grad for parameter in learnable.parameters()]
    assert all(torch.equal(one, grad) for one, grad in zip(grads, found, strict=True))
    assert any(grad.any() for grad in found)


def test_what_is_unfrozen_or_replaced_later_is_heard() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
    for step in range(4):
        if step == 1:
            model[0].bias.requires_grad_(True)
            model[3].bias = nn.Parameter(model[3].bias.detach().clone())
        for parameter in learnable.parameters():
            parameter.grad = None
        learnable.zero_grad()
        loss_of(model, step).backward()
        learnable.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learnable.parameters())


def test_a_hypergradient_is_of_the_rate_that_was_used() -> None:
    grads = []
    for lr in (0.1, 0.01):
        torch.manual_seed(0)
        model = net()
        learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
        loss_of(model, 0).backward()
        learnable.step()
        learnable.zero_grad()
        learnable.lr = lr  # for the next step
        loss_of(model, 1).backward()
        grads.append([parameter.grad for parameter in learnable.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_model_does_not_keep_its_optimizer_alive() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    gone = weakref.ref(learnable)
    del learnable
    gc.collect()
    assert gone() is None
    loss_of(model, 0).backward()
