"""The LSTM optimizer of "Learning to learn by gradient descent by gradient descent" (arXiv 1606.04474, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, between, choice
from l2l_runner.optimizers.base import LearnedOptimizer, State
from l2l_runner.optimizers.preprocessing import FEATURES, preprocess


@dataclass(frozen=True, kw_only=True)
class LSTMConfig:
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
    coordinatewise: bool
    preprocessing: str = choice(*FEATURES)
    p: float = between(0.01, 80)  # beyond, e^p is no float32
    output_scale: float = above(0)

    def build(self, coordinates: int, generator: torch.Generator) -> LSTM:
        return LSTM(self, coordinates, generator)


def lstm_cell(weight: Tensor, bias: Tensor, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """One LSTM step in [features, columns] layout (Hochreiter & Schmidhuber 1997, with forget gate).

    Args:
        weight: [4 hidden, inputs + hidden], the gates in the order input, forget, output, candidate.
        bias: [4 hidden].
        x: [inputs, columns].
        h: [hidden, columns].
        c: [hidden, columns].

    Returns:
        The next h and c. With the gates in rows, each gate is one contiguous block of memory.
    """
    hidden = h.shape[0]
    gates = torch.addmm(bias.unsqueeze(1), weight, torch.cat([x, h]))
    i, f, o = torch.sigmoid(gates[: 3 * hidden]).chunk(3)
    c = f * c + i * _tanh(gates[3 * hidden :])
    return o * _tanh(c), c


def _tanh(x: Tensor) -> Tensor:
    """tanh, by way of the sigmoid, which PyTorch computes several times faster on a CPU."""
    return 2 * torch.sigmoid(2 * x) - 1


class LSTM(LearnedOptimizer):
    """θ_{t+1} = θ_t + g_t with (g_t, h_{t+1}) = m(∇f(θ_t), h_t, φ): stacked LSTM layers and a linear read-out.

    The state is (h, c) of each layer in turn, each [hidden, columns], where a column is a coordinate of one of the
    problems (coordinatewise) or a whole problem.
    """

    def __init__(self, config: LSTMConfig, coordinates: int, generator: torch.Generator):
        super().__init__()
        self.config = config
        self.coordinates = coordinates
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

    def check(self, coordinates: int) -> None:
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

    def init(self, params: Tensor) -> State:
        problems, coordinates = params.shape
        self.check(coordinates)
        columns = params.numel() if self.config.coordinatewise else problems
        return tuple(params.new_zeros(self.config.hidden, columns) for _ in range(2 * self.config.layers))

    def select(self, state: State, columns: Tensor) -> State:
        return tuple(tensor[:, columns] for tensor in state)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        config = self.config
        columns = grads.reshape(1, -1) if config.coordinatewise else grads.T
        x = preprocess(columns, config.preprocessing, config.p).flatten(0, 1)
        following: list[Tensor] = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x, c = lstm_cell(weight, bias, x, state[2 * layer], state[2 * layer + 1])
            following += [x, c]
        out = torch.addmm(self.readout_bias.unsqueeze(1), self.readout_weight, x) * config.output_scale
        return (out.view_as(grads) if config.coordinatewise else out.T), tuple(following)
