"""The LSTM optimizer in plain PyTorch: the reference for the fused kernels, and the fallback where they cannot run."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from l2l_runner.kernels.base import Kernel, Network, State
from l2l_runner.kernels.preprocessing import preprocess


class Cell(NamedTuple):
    """The values of one layer in one step; the backward pass needs all of them.

    Attributes:
        h: [hidden, columns].
        c: [hidden, columns].
        inputs: x above h of the step before, [inputs + hidden, columns].
        c_before: [hidden, columns].
        gates: σ of the input, forget and output gates and of twice the candidate, [4 hidden, columns].
        tanh_c: [hidden, columns].
    """

    h: Tensor
    c: Tensor
    inputs: Tensor
    c_before: Tensor
    gates: Tensor
    tanh_c: Tensor


def lstm_cell(weight: Tensor, bias: Tensor, x: Tensor, h: Tensor, c: Tensor) -> Cell:
    """Compute one LSTM step in [features, columns] layout (Hochreiter & Schmidhuber 1997, with forget gate).

    With the gates in rows, each gate is one contiguous block of memory. tanh is computed as 2 σ(2x) − 1, because
    PyTorch's σ is several times faster on a CPU.

    Args:
        weight: [4 hidden, inputs + hidden], the gates in the order input, forget, output, candidate, and the
            candidate's part doubled (see `_doubled`).
        bias: [4 hidden], likewise.
        x: [inputs, columns].
        h: [hidden, columns].
        c: [hidden, columns].
    """
    inputs = torch.cat([x, h])
    gates = torch.addmm(bias.unsqueeze(1), weight, inputs).sigmoid()
    i, f, o, s = gates.chunk(4)
    following = torch.addcmul(f * c, i, 2 * s - 1)
    tanh_c = 2 * torch.sigmoid(2 * following) - 1
    return Cell(o * tanh_c, following, inputs, c, gates, tanh_c)


class TorchKernel(Kernel):
    """Plain PyTorch: any device, any precision, differentiable."""

    name = "torch"
    chunk = 4096  # keeps a window's intermediate results in or near the cache
    recordable = 1 << 19  # some 0.7 GB for 2 × 20 units in single precision; a record spares 10 to 25 % of a window

    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        return self.record_step(network, grads, state, [])

    def record_step(
        self, network: Network, grads: Tensor, state: State, record: list[list[Cell]]
    ) -> tuple[Tensor, State]:
        cells, updates = _step(_doubled(network), grads, state)
        record.append(cells)
        return updates, _state(cells)

    @torch.no_grad()
    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        record: list[list[Cell]] = []
        doubled = _doubled(network)
        for step_grads in grads:
            cells, _ = _step(doubled, step_grads, state)
            record.append(cells)
            state = _state(cells)
        return self.backward(network, record, cotangents)

    @torch.no_grad()
    def backward(self, network: Network, record: list[list[Cell]], cotangents: Tensor) -> tuple[Tensor, ...]:
        into_parameters = [torch.zeros_like(parameter) for parameter in network.parameters]
        layers = len(network.weights)
        into_readout, into_readout_bias = into_parameters[:2]
        into_weights, into_biases = into_parameters[2 : 2 + layers], into_parameters[2 + layers :]
        into_h = [torch.zeros_like(cell.h) for cell in record[-1]]  # by way of the step after
        into_c = [torch.zeros_like(cell.c) for cell in record[-1]]
        for cells, cotangent in zip(reversed(record), cotangents.flip(0), strict=True):
            into_out = cotangent * network.output_scale
            if network.squash:
                into_out = into_out * (1 - _read_out(network, cells[-1].h).square())
            into_readout.addmm_(into_out, cells[-1].h.T)
            into_readout_bias += into_out.sum(1)
            into_x = network.readout_weight.T @ into_out
            for layer in reversed(range(layers)):
                cell = cells[layer]
                into_raw, into_c[layer] = _cell_backward(cell, into_h[layer] + into_x, into_c[layer])
                into_weights[layer].addmm_(into_raw, cell.inputs.T)
                into_biases[layer] += into_raw.sum(1)
                into_x, into_h[layer] = (network.weights[layer].T @ into_raw).tensor_split([-network.hidden])
        return tuple(into_parameters)


def _state(cells: list[Cell]) -> State:
    return tuple(tensor for cell in cells for tensor in (cell.h, cell.c))


def _step(network: Network, grads: Tensor, state: State) -> tuple[list[Cell], Tensor]:
    """Return the values of each layer, and the updates; `network` is the result of `_doubled`."""
    x = preprocess(grads, network.preprocessing, network.p).flatten(0, 1)
    cells: list[Cell] = []
    for layer, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        cells.append(lstm_cell(weight, bias, x, state[2 * layer], state[2 * layer + 1]))
        x = cells[-1].h
    return cells, _read_out(network, x) * network.output_scale


def _read_out(network: Network, h: Tensor) -> Tensor:
    """Return the read-out [width, columns], before it is scaled."""
    out = torch.addmm(network.readout_bias.unsqueeze(1), network.readout_weight, h)
    return out.tanh() if network.squash else out


def _doubled(network: Network) -> Network:
    """Return the network with the candidate's weights and biases, the last quarter of the rows, doubled."""
    factors = torch.ones(4, 1, 1, dtype=network.readout_bias.dtype, device=network.readout_bias.device)
    factors[3] = 2

    def double(rows: Tensor) -> Tensor:
        return (rows.view(4, network.hidden, -1) * factors).view_as(rows)

    return network._replace(weights=tuple(map(double, network.weights)), biases=tuple(map(double, network.biases)))


def _cell_backward(cell: Cell, into_h: Tensor, into_c: Tensor) -> tuple[Tensor, Tensor]:
    """Return derivatives by the gates before their nonlinearities [4 hidden, columns], and by c of the step before.

    The candidate is 2 s − 1 with s = σ(2 raw), and so its slope is 4 s (1 − s).
    """
    i, f, o, s = cell.gates.chunk(4)
    into_c = torch.addcmul(into_c, into_h * o, 1 - cell.tanh_c.square())
    into_gates = torch.empty_like(cell.gates)
    for part, (one, other) in zip(
        into_gates.chunk(4),
        [(into_c, 2 * s - 1), (into_c, cell.c_before), (into_h, cell.tanh_c), (into_c, 4 * i)],
        strict=True,
    ):
        torch.mul(one, other, out=part)
    into_raw = into_gates.mul_(cell.gates)
    return into_raw.addcmul_(into_raw, cell.gates, value=-1), into_c * f
