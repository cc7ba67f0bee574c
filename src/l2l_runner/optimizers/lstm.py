"""The LSTM optimizer of "Learning to learn by gradient descent by gradient descent" (arXiv 1606.04474, section 2.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, between, choice, named
from l2l_runner.kernels import FEATURES, State
from l2l_runner.layout import Layout
from l2l_runner.optimizers.base import LearnedConfig
from l2l_runner.optimizers.recurrent import Recurrent


@dataclass(frozen=True, kw_only=True)
class LSTMConfig(LearnedConfig):
    """The settings of an LSTM optimizer.

    Attributes:
        hidden: units of each layer.
        layers: stacked LSTM layers.
        coordinatewise: True: all coordinates share one small network, each with its own state. False: one network sees
            all coordinates of a problem at once, and fits only problems of that size.
        preprocessing: none or log_sign.
        p: the range of log_sign: gradients down to e^−p keep their logarithm.
        output_scale: factor of the network's output.
    """

    name: str = named("lstm")
    hidden: int = at_least(1)
    layers: int = at_least(1)
    coordinatewise: bool = field()
    preprocessing: str = choice(*FEATURES)
    p: float = between(0.01, 80)  # beyond, e^p is no float32
    output_scale: float = above(0)

    def build(self, layout: Layout, generator: torch.Generator) -> LSTM:
        return LSTM(self, layout.size, generator)


class LSTM(Recurrent):
    """θ_{t+1} = θ_t + g_t with (g_t, h_{t+1}) = m(∇f(θ_t), h_t, φ): stacked LSTM layers and a linear read-out."""

    def __init__(self, config: LSTMConfig, coordinates: int, generator: torch.Generator):
        width = 1 if config.coordinatewise else coordinates
        super().__init__(
            rows=width,
            width=width,
            hidden=config.hidden,
            layers=config.layers,
            output_scale=config.output_scale,
            generator=generator,
            preprocessing=config.preprocessing,
            p=config.p,
        )
        self.config = config
        self.coordinates = coordinates
        self.coordinatewise = config.coordinatewise

    def fitted(self, layout: Layout) -> LSTM:
        self._check(layout.size)
        return self

    def _check(self, coordinates: int) -> None:
        """Refuse problems of another size than this network was built for, unless it is coordinatewise.

        Raises:
            ConfigError: the size differs.
        """
        if not self.config.coordinatewise and coordinates != self.coordinates:
            raise ConfigError(
                f"This LSTM is not coordinatewise and was built for problems of {self.coordinates} coordinates, but "
                f"the optimizee has {coordinates}: evaluate it on the optimizee that it was trained on, or train one "
                "with optimizer.coordinatewise=true."
            )

    def init(self, params: Tensor) -> State:
        self._check(params.shape[1])
        return super().init(params)

    def read(self, grads: Tensor, memory: State) -> tuple[Tensor, State]:
        return self._columns(grads), ()
