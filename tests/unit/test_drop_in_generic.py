"""What PyTorch states of all of its optimizers, of the shipped ones beside Adam."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

import l2l_runner

Make = Callable[..., Any]


def learned(name: str) -> Make:
    def make(params: Any, **options: Any) -> torch.optim.Optimizer:
        return l2l_runner.LearnedOptimizer(params, name, **options)

    return make


OPTIMIZERS: dict[str, Make] = {name: learned(name) for name in ("quadratic", "mnist", "robust")}
OPTIMIZERS["adam"] = torch.optim.Adam

pytestmark = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in [(3, 2), (2,), ()]]


def loss_of(params: list[nn.Parameter], step: int = 0) -> Tensor:
    return sum(((index + 1) * p - step % 3).square().sum() for index, p in enumerate(params))  # type: ignore[return-value]


def take(params: list[nn.Parameter], optimizer: torch.optim.Optimizer, steps: int, begin: int = 0) -> None:
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()


def equal(params: list[nn.Parameter], others: list[nn.Parameter]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(params, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_goes_on_from_a_state_dict(make: Make, dtype: torch.dtype) -> None:
    params = parameters(dtype)
    optimizer = make(params, lr=0.1)
    take(params, optimizer, 2)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    other = make(twins, lr=0.7)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert other.param_groups[0]["lr"] == 0.1
    take(params, optimizer, 2, begin=2)
    take(twins, other, 2, begin=2)
    assert equal(params, twins)


@pytest.mark.parametrize("way", ["copied", "pickled"])
def test_a_copy_goes_on_by_itself(make: Make, way: str) -> None:
    params = parameters()
    optimizer = make(params, lr=0.1)
    take(params, optimizer, 2)
    before = [p.detach().clone() for p in params]
    buffer = io.BytesIO()
    torch.save((params, optimizer), buffer)
    buffer.seek(0)
    pair: Any = copy.deepcopy((params, optimizer)) if way == "copied" else torch.load(buffer, weights_only=False)
    take(pair[0], pair[1], 2, begin=2)
    assert all(torch.equal(p, value) for p, value in zip(params, before, strict=True))
    take(params, optimizer, 2, begin=2)
    assert equal(params, pair[0])


def test_a_group_is_an_optimizer_with_its_options(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizer = make([{"params": params[:1], "lr": 0.3}, {"params": params[1:]}], lr=0.1)
    apart = [make(twins[:1], lr=0.3), make(twins[1:], lr=0.1)]
    for step in range(3):
        optimizer.zero_grad()
        loss_of(params, step).backward()
        optimizer.step()
        for one in apart:
            one.zero_grad()
        loss_of(twins, step).backward()
        for one in apart:
            one.step()
    assert equal(params, twins)


def test_a_group_can_be_added_later(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizer = make(params[:1], lr=0.1)
    optimizer.add_param_group({"params": params[1:]})
    assert optimizer.param_groups[1]["lr"] == 0.1
    take(params, optimizer, 2)
    take(twins, make(twins, lr=0.1), 2)
    assert equal(params, twins)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": params[:1]})
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    with pytest.raises(TypeError):
        make(params[0])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=4),
        lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=6, cycle_momentum=False),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
        ),
    ],
    ids=["step", "cosine", "one cycle", "sequential"],
)
def test_schedulers_set_the_lr_and_resume(make: Make, schedule: Callable[[Any], Any]) -> None:
    params = parameters()
    optimizer = make(params, lr=0.1)
    scheduler = schedule(optimizer)
    seen = []
    for step in range(4):
        if step == 2:
            state, kept = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict())), copy.deepcopy(params)
        take(params, optimizer, 1, begin=step)
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert len(set(seen)) > 1
    other = make(kept, lr=0.1)
    resumed = schedule(other)
    other.load_state_dict(state[0])
    resumed.load_state_dict(state[1])
    for step in range(2, 4):
        take(kept, other, 1, begin=step)
        resumed.step()
    assert equal(params, kept)


def test_a_closure_runs_with_gradients_once(make: Make) -> None:
    params, twins = parameters(), parameters()
    optimizer = make(params, lr=0.1)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure).item() == loss_of(twins).item()
    assert calls == [True]
    take(twins, make(twins, lr=0.1), 1)
    assert equal(params, twins)


def test_without_gradients_nothing_moves_and_no_state_begins(make: Make) -> None:
    params, before = parameters(), parameters()
    optimizer = make(params)
    assert optimizer.step() is None
    assert equal(params, before)
    assert not optimizer.state
    loss_of(params).backward()
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    loss_of(params).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(p.grad is not None and not p.grad.any() for p in params)


def test_layout_in_memory_does_not_matter(make: Make) -> None:
    whole, strided = (nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    strided.data = torch.arange(6.0).reshape(2, 3).T.contiguous().T
    assert not strided.is_contiguous()
    for param in (whole, strided):
        optimizer = make([param], lr=0.1)
        take([param], optimizer, 3)
    torch.testing.assert_close(whole, strided, rtol=1e-6, atol=1e-7)


def test_precisions_can_stand_in_one_group(make: Make) -> None:
    mixed = [parameters(dtype)[0] for dtype in (torch.float64, torch.float32, torch.bfloat16)]
    apart = copy.deepcopy(mixed)
    take(mixed, make(mixed, lr=0.1), 3)
    for index, (param, twin) in enumerate(zip(mixed, apart, strict=True)):
        optimizer = make([twin], lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            ((index + 1) * twin - step % 3).square().sum().backward()
            optimizer.step()
        assert param.dtype == twin.dtype
        assert torch.equal(param, twin)


def test_hooks_run_around_a_step(make: Make) -> None:
    params = parameters()
    optimizer = make(params)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    take(params, optimizer, 1)
    assert seen == ["before", "after"]
    assert type(optimizer).__name__ in repr(optimizer)
