"""RNNprop: against a plain re-computation, its engines against each other, and what its inputs promise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from l2l_runner import LearnedOptimizer
from l2l_runner.meta import TBPTT
from l2l_runner.unroll import start, unroll
from problems import OPTIMIZER_FILES, PlainLSTM, lstm, problems, rnnprop


def some_grads(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def updates(optimizer: Any, grads: Tensor) -> Tensor:
    """The updates for gradients [steps, problems, coordinates]."""
    state, out = optimizer.init(grads[0]), []
    for g in grads:
        update, state = optimizer.update(g, state, g)
        out.append(update)
    return torch.stack(out).detach()


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def distance(some: Any, others: Any) -> float:
    one, other = flat(some), flat(others)
    return ((one - other).norm() / other.norm().clamp(min=1e-300)).item()


class PlainRNNprop(PlainLSTM):
    """The same once more, of nn.LSTMCell and of moments as Adam's authors write them."""

    def __init__(self, optimizer: Any):
        super().__init__(optimizer)
        self.past: list[Tensor] = []

    def features(self, grads: Tensor) -> Tensor:
        self.past.append(grads)
        t = len(self.past)

        def average(values: list[Tensor], beta: float) -> Tensor:
            weights = [(1 - beta) * beta ** (t - 1 - i) for i in range(t)]
            return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0) / (1 - beta**t)

        size = (average([g**2 for g in self.past], self.config.beta2) + self.config.eps**2) ** 0.5
        return torch.stack([average(self.past, self.config.beta1) / size, grads / size], dim=1)

    def update(self, grads: Tensor) -> Tensor:
        scale = self.config.output_scale
        return scale * torch.tanh(super().update(grads) / scale)


@pytest.mark.parametrize("changes", [{}, {"layers": 1, "beta1": 0.9, "beta2": 0.999}, {"hidden": 7, "eps": 0.1}])
def test_it_is_a_plain_recomputation(changes: dict[str, Any]) -> None:
    optimizer = rnnprop(**changes)
    reference, grads = PlainRNNprop(optimizer), some_grads(30, 1, 5) * torch.logspace(-9, 3, 5, dtype=torch.float64)
    grads[:3, 0, 1] = 0
    expected = torch.stack([reference.update(g[0]) for g in grads]).detach()
    torch.testing.assert_close(updates(optimizer, grads)[:, 0], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("weights", ["constant", "linear", "final"])
@pytest.mark.parametrize(("length", "steps"), [(5, 5), (3, 10), (1, 4)])
@pytest.mark.parametrize("more", [{}, {"chunk": 5}], ids=["recorded", "chunks"])
@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_replay_is_graph(kernel: str, more: dict[str, Any], length: int, steps: int, weights: str) -> None:
    optimizer, problem = rnnprop(), problems("quadratic", 3)
    optimizer.use_kernel(kernel)
    settings: dict[str, Any] = {"length": length, "steps": steps, "weights": weights}
    replayed = list(TBPTT(**settings, **more).estimates(optimizer, problem))
    differentiated = list(TBPTT(**settings, engine="graph").estimates(optimizer, problem))
    for one, other in zip(replayed, differentiated, strict=True):
        assert distance(one.grads, other.grads) < 1e-12
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)
    assert flat(replayed[-1].grads).abs().max() > 1e-6


def test_samples_of_coordinates_take_their_moments_with_them() -> None:
    # Of gradients that are the same in all coordinates, any sample's replay is as good as that of all.
    optimizer, problem = rnnprop(), problems("quadratic", 3)
    point = start(problem, optimizer)
    *_, (_, point) = unroll(problem, optimizer, point, 3)
    order = torch.tensor([7, 2, 11])
    grads, cotangents = some_grads(4, 1, 12), some_grads(4, 1, 12, seed=4)
    cotangents[..., [i for i in range(12) if i not in order]] = 0
    sampled = optimizer.replay(grads[..., order], optimizer.select(point.state, order), cotangents[..., order])
    assert distance(sampled, optimizer.replay(grads, point.state, cotangents)) < 1e-12


@pytest.mark.parametrize("second_order", [False, True])
def test_meta_gradients_with_second_derivatives_are_finite_differences(second_order: bool) -> None:
    # Some gradients are exactly zero: no image of a digit has ink in its corners.
    optimizer, problem = rnnprop(output_scale=0.05, eps=1e-3), problems("digits", 1)
    assert (start(problem, optimizer).grads == 0).any()
    (estimate,) = TBPTT(length=4, steps=4, engine="graph", second_order=second_order).estimates(optimizer, problem)
    direction = [some_grads(*parameter.shape) for parameter in optimizer.parameters()]

    def meta_loss(shift: float) -> float:
        moved = copy.deepcopy(optimizer)
        with torch.no_grad():
            for parameter, along in zip(moved.parameters(), direction, strict=True):
                parameter += shift * along
        return sum(point.loss.item() for _, point in unroll(problem, moved, start(problem, moved), 4))

    slope = sum((grad * along).sum().item() for grad, along in zip(estimate.grads, direction, strict=True))
    measured = (meta_loss(1e-5) - meta_loss(-1e-5)) / 2e-5
    assert (slope == pytest.approx(measured, rel=1e-6)) is second_order
    assert slope == pytest.approx(measured, rel=0.5)


@pytest.mark.parametrize("factor", [1e-5, 1e6])
def test_the_scale_of_gradients_is_not_seen(factor: float) -> None:
    optimizer, grads = rnnprop(), some_grads(10, 2, 3)
    torch.testing.assert_close(updates(optimizer, factor * grads), updates(optimizer, grads), rtol=1e-4, atol=1e-9)
    assert distance([updates(lstm(3), factor * grads)], [updates(lstm(3), grads)]) > 0.02


def test_no_update_is_larger_than_the_output_scale() -> None:
    optimizer = rnnprop(output_scale=0.03)
    with torch.no_grad():
        optimizer.readout_weight *= 1000
    sizes = updates(optimizer, 1e9 * some_grads(10, 2, 3)).abs()
    assert 0.02 < sizes.max() <= 0.03


def test_gradients_of_zero_are_nothing_and_of_nan_are_nan() -> None:
    grads = torch.zeros(3, 1, 2, dtype=torch.float64)
    grads[2, 0, 1] = torch.nan
    optimizer = rnnprop()
    assert torch.equal(optimizer.read(grads[:2], optimizer.init(grads[0])[4:])[0], torch.zeros(2, 2, 2).double())
    assert updates(optimizer, grads).isnan().flatten().tolist() == [False] * 5 + [True]


def test_what_a_window_reads_is_what_its_steps_read() -> None:
    optimizer, grads = rnnprop(), some_grads(5, 2, 3)
    memory = optimizer.init(grads[0])[4:]
    whole, last = optimizer.read(grads, memory)
    for step in range(5):
        alone, memory = optimizer.read(grads[step : step + 1], memory)
        assert torch.equal(alone[0], whole[step])
    assert all(torch.equal(one, other) for one, other in zip(memory, last, strict=True))


def test_shapes() -> None:
    optimizer = rnnprop(hidden=5)
    params = torch.zeros(3, 4, dtype=torch.float64)
    state = optimizer.init(params)
    assert [tuple(tensor.shape) for tensor in state] == [(5, 12)] * 4 + [(1, 12)] * 3
    update, following = optimizer.update(params + 1, state, params)
    assert update.shape == params.shape
    assert [tensor.shape for tensor in following] == [tensor.shape for tensor in state]
    assert [tuple(tensor.shape) for tensor in optimizer.select(following, slice(2, 4))] == [(5, 2)] * 4 + [(1, 2)] * 3


def test_in_anybodys_loop_it_takes_the_same_steps() -> None:
    rule, param = rnnprop(), torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.float64))
    optimizer, grads = LearnedOptimizer([param], rule), some_grads(6, 2, 3)
    for step, g in enumerate(grads):
        if step == 3:  # saved and loaded on the way
            saved, optimizer = optimizer.state_dict(), LearnedOptimizer([param], rule)
            optimizer.load_state_dict(saved)
        param.grad = g
        optimizer.step()
    expected = updates(rule, grads.view(6, 1, 6)).sum(0).view(2, 3)
    torch.testing.assert_close(param.detach(), expected, rtol=1e-10, atol=1e-13)


def test_the_file_holds_the_papers_settings() -> None:
    node = OPTIMIZER_FILES["rnnprop"]
    assert {key: node[key] for key in ("hidden", "layers", "beta1", "beta2", "output_scale")} == {
        "hidden": 20,
        "layers": 2,
        "beta1": 0.95,
        "beta2": 0.95,
        "output_scale": 0.1,
    }
