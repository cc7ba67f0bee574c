"""Windows of an optimizer's steps, to be computed by one kernel or another."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel

F32, F64 = torch.float32, torch.float64
NAN, INF = math.nan, math.inf

# Windows to compute


class Case(NamedTuple):
    """A network and a window of it; width is the number of coordinates of a column, reading what it reads of each."""

    hidden: int = 8
    layers: int = 2
    preprocessing: str = "log_sign"
    steps: int = 7
    columns: int = 33
    width: int = 1
    p: float = 10.0
    output_scale: float = 0.1
    reading: int = 1
    squash: bool = False


class Window(NamedTuple):
    """What a replay takes."""

    network: Network
    grads: Tensor
    state: State
    cotangents: Tensor


def draw(case: Case, dtype: torch.dtype = F64, seed: int = 0) -> Window:
    """Gradients over 12 orders of magnitude, a state that was carried, and cotangents as large as the gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, bound = case.hidden, case.hidden**-0.5
    rows = case.reading * case.width
    inputs = [rows * FEATURES[case.preprocessing]] + [hidden] * (case.layers - 1)
    network = Network(
        tuple(bound * normal(4 * hidden, size + hidden).to(dtype) for size in inputs),
        tuple(bound * normal(4 * hidden).to(dtype) for _ in inputs),
        bound * normal(case.width, hidden).to(dtype),
        bound * normal(case.width).to(dtype),
        case.preprocessing,
        case.p,
        case.output_scale,
        case.squash,
    )
    window = (case.steps, rows, case.columns)
    grads = normal(*window) * 10 ** (12 * torch.rand(window, generator=generator) - 10)
    state = tuple(
        (normal(hidden, case.columns) if index % 2 else normal(hidden, case.columns).tanh()).to(dtype)
        for index in range(2 * case.layers)
    )
    return Window(network, grads.to(dtype), state, normal(case.steps, case.width, case.columns).to(dtype))


def double(given: Any) -> Any:
    """The same, nested as it is, with tensors in double precision."""
    if isinstance(given, Tensor):
        return given.double()
    if isinstance(given, tuple):
        parts = [double(part) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return given


def steps(kernel: Kernel, window: Window) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The updates of a window [steps, width, columns], and the states after each of its steps."""
    updates, states, state = [], [], window.state
    for grads in window.grads:
        update, state = kernel.step(window.network, grads, state)
        updates.append(update)
        states += list(state)
    return torch.stack(updates), tuple(states)


def by_autograd(window: Window) -> tuple[Tensor, ...]:
    """∂(Σ_t ⟨cotangent_t, u_t⟩)/∂φ in double precision, by autograd through plain steps."""
    network, grads, state, cotangents = double(window)
    leaves = {id(parameter): parameter.clone().requires_grad_() for parameter in network.parameters}
    network = network._replace(
        weights=tuple(leaves[id(tensor)] for tensor in network.weights),
        biases=tuple(leaves[id(tensor)] for tensor in network.biases),
        readout_weight=leaves[id(network.readout_weight)],
        readout_bias=leaves[id(network.readout_bias)],
    )
    with torch.enable_grad():
        updates, _ = steps(TorchKernel(), Window(network, grads, state, cotangents))
        return torch.autograd.grad((updates * cotangents).sum(), network.parameters)


def replay(kernel: Kernel, window: Window) -> tuple[Tensor, ...]:
    return kernel.replay(*window)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def distance(some: Any, expected: Any) -> float:
    """How far one tensor, or tuple of tensors, is from another, as a part of the other's norm."""
    one, other = (flat(part) if isinstance(part, tuple) else part.flatten() for part in (some, expected))
    assert one.shape == other.shape
    if not other.any():
        return 0.0 if not one.any() else INF
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def same(some: Any, others: Any) -> bool:
    """Whether all bits of two tuples of tensors are alike, those of NaN aside."""
    return all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(some, others, strict=True)) and all(
        torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(some, others, strict=True)
    )


# Against plain PyTorch and against autograd


def name(case: Case) -> str:
    return "-".join(f"{value}" for value in case)
