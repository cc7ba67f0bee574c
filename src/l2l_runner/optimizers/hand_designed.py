"""SGD, momentum, NAG, RMSprop and Adam, step for step as in torch.optim, as pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from l2l_runner.fields import above, at_least, between, named
from l2l_runner.layout import Layout
from l2l_runner.optimizers.base import Optimizer, RuleConfig, State


def root(square: Tensor) -> Tensor:
    """Return √square with a derivative of 0 at 0, where that of the root is infinite.

    A coordinate that has had no gradient yet would otherwise make every second derivative NaN: 0 · ∞.
    """
    if not square.requires_grad:
        return square.sqrt()
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


@dataclass(frozen=True, kw_only=True)
class HandDesigned(RuleConfig, Optimizer):
    """The settings that all of them share; they are also the rule.

    Attributes:
        held_out: whether a run of it by itself is compared with tuned baselines on held-out problems, as runs of
            learned rules are. Others run on validation problems alone, where their learning rate can be chosen.
        lr: learning rate.
        weight_decay: factor of the parameters that is added to the gradient.
    """

    coordinatewise = True
    held_out: ClassVar[bool] = False

    lr: float = above(0)
    weight_decay: float = at_least(0)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset()

    def build(self, layout: Layout, generator: torch.Generator) -> HandDesigned:
        return self

    def decayed(self, grads: Tensor, params: Tensor) -> Tensor:
        return grads + self.weight_decay * params if self.weight_decay else grads


@dataclass(frozen=True, kw_only=True)
class SGD(HandDesigned):
    """u = −lr g."""

    name: str = named("sgd")

    def init(self, params: Tensor) -> State:
        return ()

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        return -self.lr * self.decayed(grads, params), ()


@dataclass(frozen=True, kw_only=True)
class NoMetaTraining(SGD):
    """SGD at a given rate from random starts, for comparison with rules that learned where to start."""

    held_out = True

    name: str = named("none")


@dataclass(frozen=True, kw_only=True)
class Momentum(HandDesigned):
    """b ← μ b + g, u = −lr b (Polyak 1964, in torch.optim's form).

    Attributes:
        momentum: μ.
    """

    name: str = named("momentum")
    momentum: float = between(0, 1)

    def init(self, params: Tensor) -> State:
        return (torch.zeros_like(params),)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        velocity = self.momentum * state[0] + self.decayed(grads, params)
        return -self.lr * velocity, (velocity,)


@dataclass(frozen=True, kw_only=True)
class NAG(Momentum):
    """b ← μ b + g, u = −lr (g + μ b) (Nesterov 1983, in torch.optim's form)."""

    name: str = named("nag")

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        grads = self.decayed(grads, params)
        velocity = self.momentum * state[0] + grads
        return -self.lr * (grads + self.momentum * velocity), (velocity,)


@dataclass(frozen=True, kw_only=True)
class RMSprop(HandDesigned):
    """v ← α v + (1 − α) g², b ← μ b + g / (√v + ε), u = −lr b (Tieleman & Hinton 2012).

    Attributes:
        alpha: α, the decay of the mean square.
        eps: ε.
        momentum: μ.
    """

    name: str = named("rms")
    alpha: float = between(0, 1)
    eps: float = above(0)
    momentum: float = between(0, 1)

    def init(self, params: Tensor) -> State:
        return (torch.zeros_like(params), torch.zeros_like(params))

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        square, velocity = state
        grads = self.decayed(grads, params)
        square = self.alpha * square + (1 - self.alpha) * grads.square()
        velocity = self.momentum * velocity + grads / (root(square) + self.eps)
        return -self.lr * velocity, (square, velocity)


@dataclass(frozen=True, kw_only=True)
class Adam(HandDesigned):
    """m ← β₁ m + (1 − β₁) g, v ← β₂ v + (1 − β₂) g², u = −lr m̂ / (√v̂ + ε) (Kingma & Ba 2015).

    Attributes:
        beta1: β₁, the decay of the mean.
        beta2: β₂, the decay of the mean square.
        eps: ε.
    """

    name: str = named("adam")
    beta1: float = between(0, 1)
    beta2: float = between(0, 1)
    eps: float = above(0)

    def init(self, params: Tensor) -> State:
        return (torch.zeros((), dtype=params.dtype, device=params.device), *2 * (torch.zeros_like(params),))

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        count, mean, square = state
        grads = self.decayed(grads, params)
        count = count + 1
        mean = self.beta1 * mean + (1 - self.beta1) * grads
        square = self.beta2 * square + (1 - self.beta2) * grads.square()
        mean_hat = mean / (1 - self.beta1**count)
        square_hat = square / (1 - self.beta2**count)
        return -self.lr * mean_hat / (root(square_hat) + self.eps), (count, mean, square)
