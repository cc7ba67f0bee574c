"""What the update rules that are stacked LSTM layers and a linear read-out share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel, pick_kernel
from l2l_runner.optimizers.base import LearnedRule


class Recurrent(LearnedRule):
    """A rule that a kernel computes: a `Network` that runs in columns, on what the rule makes of the gradients.

    A column is a coordinate of one of the problems (coordinatewise) or a whole problem. The state is (h, c) of each
    layer in turn, each [hidden, columns], and then the rule's own memory, tensors [any, columns] that the network's
    parameters have no part in.

    Attributes:
        kernel: what computes it where no graph is wanted; where one is, plain PyTorch does.
        settings: the last of a `Network`, from `preprocessing` on.
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
        """Parameters drawn as PyTorch draws an LSTM's, uniformly within ±1/√hidden.

        Args:
            rows: numbers that a column reads a step.
            width: updates of a column.
            hidden: units of each layer.
            layers: stacked LSTM layers.
            output_scale: as in `Network`.
            generator: where the parameters are drawn from.
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
        """What the network reads of gradients [steps, problems, coordinates], and the memory after the last step.

        Returns:
            [steps, rows, columns], and the memory.
        """

    def use_kernel(self, name: str) -> None:
        self.kernel = pick_kernel(name, self._network())

    @property
    def recordable(self) -> int:  # type: ignore[override]
        return self.kernel.recordable

    def init(self, params: Tensor) -> State:
        columns = params.numel() if self.coordinatewise else len(params)
        hidden = self.readout_weight.shape[1]
        return tuple(params.new_zeros(hidden, columns) for _ in range(2 * len(self.weights)))

    def select(self, state: State, columns: Tensor | slice) -> State:
        return tuple(tensor[:, columns] for tensor in state)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        kernel = TorchKernel() if torch.is_grad_enabled() else self.kernel
        seen, carried, memory = self._read(grads.unsqueeze(0), state)
        updates, following = kernel.step(self._network(), seen[0], carried)
        return self._rows(updates, grads), following + memory

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        seen, carried, _ = self._read(grads, state)
        return self.kernel.replay(self._network(), seen, carried, self._columns(cotangents))

    @torch.no_grad()
    def record_update(self, grads: Tensor, state: State, params: Tensor, record: list[Any]) -> tuple[Tensor, State]:
        seen, carried, memory = self._read(grads.unsqueeze(0), state)
        updates, following = self.kernel.record_step(self._network(), seen[0], carried, record)
        return self._rows(updates, grads), following + memory

    def backward(self, record: list[Any], cotangents: Tensor) -> tuple[Tensor, ...]:
        return self.kernel.backward(self._network(), record, self._columns(cotangents))

    def _network(self) -> Network:
        return Network(tuple(self.weights), tuple(self.biases), self.readout_weight, self.readout_bias, *self.settings)

    def _read(self, grads: Tensor, state: State) -> tuple[Tensor, State, State]:
        """What the network reads, its state, and the memory to come."""
        carried = 2 * len(self.weights)
        seen, memory = self.read(grads, state[carried:])
        return seen, state[:carried], memory

    def _columns(self, rows: Tensor) -> Tensor:
        """[…, problems, coordinates] as […, width, columns]."""
        return rows.flatten(-2).unsqueeze(-2) if self.coordinatewise else rows.transpose(-1, -2)

    def _rows(self, updates: Tensor, grads: Tensor) -> Tensor:
        """[width, columns] as [problems, coordinates]."""
        return updates.view_as(grads) if self.coordinatewise else updates.T
