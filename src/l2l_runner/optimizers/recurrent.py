"""The base of update rules that are stacked LSTM layers and a linear read-out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel, pick_kernel
from l2l_runner.optimizers.base import LearnedRule, Recording

Step = Callable[[Network, Tensor, State], tuple[Tensor, State]]
"""A kernel's way from a network, what it reads in a step and a state to updates and the next state."""


class Recurrent(LearnedRule):
    """A rule that a kernel computes: a `Network` that runs in columns, on what `read` makes of the gradients.

    A column is a coordinate of one of the problems (coordinatewise) or a whole problem. The state is (h, c) of each
    layer in turn, each [hidden, columns], followed by the rule's own memory: tensors [any, columns] that do not depend
    on the network's parameters.

    Attributes:
        kernel: computes updates and replays without a graph; plain PyTorch computes updates with one.
        settings: the last fields of a `Network`, from `preprocessing` on.
    """

    def __init__(
        self,
        *,
        rows: int,
        width: int,
        hidden: int,
        layers: int,
        output_scale: float,
        generator: torch.Generator,
        preprocessing: str = "none",
        p: float = 1.0,
        squash: bool = False,
    ):
        """Draw the parameters as PyTorch does for an LSTM, uniformly within ±1/√hidden.

        Args:
            rows: numbers that a column reads per step.
            width: updates of a column per step.
            hidden: units of each layer.
            layers: stacked LSTM layers.
            output_scale: as in `Network`.
            generator: draws the parameters.
            preprocessing: as in `Network`.
            p: as in `Network`.
            squash: as in `Network`.
        """
        super().__init__()
        self.kernel: Kernel = TorchKernel()
        self.settings = preprocessing, p, output_scale, squash
        inputs = [rows * FEATURES[preprocessing]] + [hidden] * (layers - 1)
        self.weights = nn.ParameterList(torch.empty(4 * hidden, size + hidden) for size in inputs)
        self.biases = nn.ParameterList(torch.empty(4 * hidden) for _ in inputs)
        self.readout_weight = nn.Parameter(torch.empty(width, hidden))
        self.readout_bias = nn.Parameter(torch.empty(width))
        bound = hidden**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    @abstractmethod
    def read(self, grads: Tensor, memory: State) -> tuple[Tensor, State]:
        """Turn gradients [steps, problems, coordinates] into what the network reads.

        Args:
            grads: of a window.
            memory: before its first step.

        Returns:
            What it reads, [steps, rows, columns], and the memory after the last step.
        """

    @property
    def kernel_name(self) -> str:  # type: ignore[override]
        return self.kernel.name

    @property
    def chunk(self) -> int | None:  # type: ignore[override]
        return self.kernel.chunk

    def use_kernel(self, name: str) -> None:
        self.kernel = pick_kernel(name, self._network())

    def init(self, params: Tensor) -> State:
        hidden = self.readout_weight.shape[1]
        return tuple(params.new_zeros(hidden, self._count(params)) for _ in range(2 * len(self.weights)))

    def select(self, state: State, columns: Tensor | slice) -> State:
        return tuple(tensor[:, columns] for tensor in state)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        kernel = TorchKernel() if torch.is_grad_enabled() else self.kernel
        return self._step(kernel.step, grads, state)

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        seen, carried, _ = self._read(grads, state)
        return self.kernel.replay(self._network(), seen, carried, self._columns(cotangents))

    def recording(self, params: Tensor, steps: int) -> Recording | None:
        return _Recording(self) if self._count(params) * steps <= self.kernel.recordable else None

    def _step(self, step: Step, grads: Tensor, state: State) -> tuple[Tensor, State]:
        """Return updates [problems, coordinates] and the next state, with a kernel's way to compute a step."""
        seen, carried, memory = self._read(grads.unsqueeze(0), state)
        updates, following = step(self._network(), seen[0], carried)
        rows = updates.view_as(grads) if self.coordinatewise else updates.T
        return rows, following + memory

    def _network(self) -> Network:
        return Network(tuple(self.weights), tuple(self.biases), self.readout_weight, self.readout_bias, *self.settings)

    def _read(self, grads: Tensor, state: State) -> tuple[Tensor, State, State]:
        """Return what the network reads, its state, and the memory after the last step."""
        carried = 2 * len(self.weights)
        seen, memory = self.read(grads, state[carried:])
        return seen, state[:carried], memory

    def _count(self, params: Tensor) -> int:
        """Return the number of columns for params [problems, coordinates]."""
        return params.numel() if self.coordinatewise else len(params)

    def _columns(self, rows: Tensor) -> Tensor:
        """Return [..., problems, coordinates] as [..., width, columns]."""
        return rows.flatten(-2).unsqueeze(-2) if self.coordinatewise else rows.transpose(-1, -2)


class _Recording(Recording):
    """A recording in the kernel's own form."""

    def __init__(self, rule: Recurrent):
        self.rule = rule
        self.record: list[Any] = []

    def init(self, params: Tensor) -> State:
        return self.rule.init(params)

    @torch.no_grad()
    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        return self.rule._step(partial(self.rule.kernel.record_step, record=self.record), grads, state)

    def backward(self, cotangents: Tensor) -> tuple[Tensor, ...]:
        return self.rule.kernel.backward(self.rule._network(), self.record, self.rule._columns(cotangents))
