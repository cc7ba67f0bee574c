"""RNNprop: a learned optimizer that sees gradients as Adam does (Lv, Jiang & Li 2017, arXiv 1703.03633, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner.fields import above, at_least, between, named
from l2l_runner.kernels import State
from l2l_runner.layout import Layout
from l2l_runner.optimizers.base import LearnedConfig
from l2l_runner.optimizers.recurrent import Recurrent


@dataclass(frozen=True, kw_only=True)
class RNNpropConfig(LearnedConfig):
    """The settings of an RNNprop optimizer.

    Attributes:
        hidden: units of each layer.
        layers: stacked LSTM layers.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: gradients much smaller than this are read as zero.
        output_scale: the largest update of a coordinate.
    """

    coordinatewise = True

    name: str = named("rnnprop")
    hidden: int = at_least(1)
    layers: int = at_least(1)
    beta1: float = between(0, 1)
    beta2: float = between(0, 1)
    eps: float = between(1e-18, 1)  # below, eps² is no float32
    output_scale: float = above(0)

    def build(self, layout: Layout, generator: torch.Generator) -> RNNprop:
        return RNNprop(self, generator)


class RNNprop(Recurrent):
    """u = output_scale · tanh(w·h + b), where the LSTM that makes h reads m̂ / √(v̂ + ε²) and g / √(v̂ + ε²).

    m ← β₁ m + (1 − β₁) g and v ← β₂ v + (1 − β₂) g², and m̂ and v̂ are they without their bias towards the start at
    zero, as in Adam (Kingma & Ba 2015). So the network sees no scale, neither of a gradient nor of the loss, and no
    update is larger than output_scale. ε is under the root, so that a gradient of zero has a derivative.

    The paper has a linear layer and an ELU between these two features and the LSTM. Both are left out: the weights of
    the first LSTM layer are already linear in the features.

    The memory is m, v and the number of steps taken, each [1, columns].
    """

    coordinatewise = True

    def __init__(self, config: RNNpropConfig, generator: torch.Generator):
        super().__init__(
            rows=2,
            width=1,
            hidden=config.hidden,
            layers=config.layers,
            output_scale=config.output_scale,
            generator=generator,
            squash=True,
        )
        self.config = config

    def init(self, params: Tensor) -> State:
        return (*super().init(params), *(params.new_zeros(1, params.numel()) for _ in range(3)))

    def read(self, grads: Tensor, memory: State) -> tuple[Tensor, State]:
        beta1, beta2 = self.config.beta1, self.config.beta2
        mean, square, count = memory
        seen = []
        for g in self._columns(grads):
            count = count + 1
            mean = beta1 * mean + (1 - beta1) * g
            square = beta2 * square + (1 - beta2) * g.square()
            size = (square / (1 - beta2**count) + self.config.eps**2).sqrt()
            seen.append(torch.cat([mean / (1 - beta1**count), g]) / size)
        return torch.stack(seen), (mean, square, count)
