"""The LSTM optimizer of "Learning to learn by gradient descent by gradient descent" (arXiv 1606.04474, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, between, choice
from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel, pick_kernel
from l2l_runner.layout import Layout
from l2l_runner.optimizers.base import LearnedConfig, LearnedOptimizer


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(LearnedConfig):
    """What makes an LSTM optimizer.

    Attributes:
        hidden: units of each layer.
        layers: stacked LSTM layers.
        coordinatewise: True: one small network, shared by all coordinates, each with its own state. False: one
            network that sees all coordinates of a problem at once, and fits problems of that size alone.
        preprocessing: none or log_sign.
        p: the range of log_sign: gradients down to e^−p keep their logarithm.
        output_scale: factor of the network's output.
    """

    hidden: int = at_least(1)
    layers: int = at_least(1)
    coordinatewise: bool = field()
    preprocessing: str = choice(*FEATURES)
    p: float = between(0.01, 80)  # beyond, e^p is no float32
    output_scale: float = above(0)

    def build(self, layout: Layout, generator: torch.Generator) -> LSTM:
        return LSTM(self, layout.size, generator)


class LSTM(LearnedOptimizer):
    """θ_{t+1} = θ_t + g_t with (g_t, h_{t+1}) = m(∇f(θ_t), h_t, φ): stacked LSTM layers and a linear read-out.

    The state is (h, c) of each layer in turn, each [hidden, columns], where a column is a coordinate of one of the
    problems (coordinatewise) or a whole problem.

    Attributes:
        kernel: what computes it where no graph is wanted; where one is, plain PyTorch does.
    """

    def __init__(self, config: LSTMConfig, coordinates: int, generator: torch.Generator):
        super().__init__()
        self.config = config
        self.coordinates = coordinates
        self.coordinatewise = config.coordinatewise
        self.kernel: Kernel = TorchKernel()
        width = 1 if config.coordinatewise else coordinates
        inputs = [width * FEATURES[config.preprocessing]] + [config.hidden] * (config.layers - 1)
        rows = 4 * config.hidden
        self.weights = nn.ParameterList(torch.empty(rows, size + config.hidden) for size in inputs)
        self.biases = nn.ParameterList(torch.empty(rows) for _ in inputs)
        self.readout_weight = nn.Parameter(torch.empty(width, config.hidden))
        self.readout_bias = nn.Parameter(torch.empty(width))
        bound = config.hidden**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def check(self, layout: Layout) -> None:
        self._check(layout.size)

    def _check(self, coordinates: int) -> None:
        """Refuse problems of a size that this network wasn't built for.

        Raises:
            ConfigError: not coordinatewise, and of another size.
        """
        if not self.config.coordinatewise and coordinates != self.coordinates:
            raise ConfigError(
                f"This LSTM is not coordinatewise and was built for problems of {self.coordinates} coordinates, but "
                f"the optimizee has {coordinates}: evaluate it on the optimizee that it was trained on, or train one "
                "with optimizer.coordinatewise=true."
            )

    def use_kernel(self, name: str) -> None:
        self.kernel = pick_kernel(name, self._network())

    @property
    def recordable(self) -> int:  # type: ignore[override]
        return self.kernel.recordable

    def init(self, params: Tensor) -> State:
        problems, coordinates = params.shape
        self._check(coordinates)
        columns = params.numel() if self.config.coordinatewise else problems
        return tuple(params.new_zeros(self.config.hidden, columns) for _ in range(2 * self.config.layers))

    def select(self, state: State, columns: Tensor | slice) -> State:
        return tuple(tensor[:, columns] for tensor in state)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        kernel = TorchKernel() if torch.is_grad_enabled() else self.kernel
        updates, following = kernel.step(self._network(), self._columns(grads), state)
        return self._rows(updates, grads), following

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        return self.kernel.replay(self._network(), self._columns(grads), state, self._columns(cotangents))

    @torch.no_grad()
    def record_update(self, grads: Tensor, state: State, record: list[Any]) -> tuple[Tensor, State]:
        updates, following = self.kernel.record_step(self._network(), self._columns(grads), state, record)
        return self._rows(updates, grads), following

    def backward(self, record: list[Any], cotangents: Tensor) -> tuple[Tensor, ...]:
        return self.kernel.backward(self._network(), record, self._columns(cotangents))

    def _network(self) -> Network:
        return Network(
            tuple(self.weights),
            tuple(self.biases),
            self.readout_weight,
            self.readout_bias,
            self.config.preprocessing,
            self.config.p,
            self.config.output_scale,
        )

    def _columns(self, rows: Tensor) -> Tensor:
        """[…, problems, coordinates] as […, width, columns]."""
        return rows.flatten(-2).unsqueeze(-2) if self.coordinatewise else rows.transpose(-1, -2)

    def _rows(self, updates: Tensor, grads: Tensor) -> Tensor:
        """[width, columns] as [problems, coordinates]."""
        return updates.view_as(grads) if self.coordinatewise else updates.T
