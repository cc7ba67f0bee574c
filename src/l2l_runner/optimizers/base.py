"""The noun Optimizer: a pair of pure functions, for hand-designed and learned update rules alike."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

State = tuple[Tensor, ...]


class Optimizer(ABC):
    """An update rule.

    It sees the parameters of all problems as one tensor [problems, coordinates] and treats problems alike.
    """

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """The state before the first step, for params [problems, coordinates]."""

    @abstractmethod
    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        """What is to be added to `params` for gradients [problems, coordinates], and the next state."""


class LearnedOptimizer(nn.Module, Optimizer):
    """An update rule whose parameters are meta-learned."""

    def check(self, coordinates: int) -> None:
        """Refuse problems of a size that it wasn't built for; a coordinatewise rule fits all.

        Raises:
            ConfigError: it doesn't fit.
        """

    @abstractmethod
    def select(self, state: State, columns: Tensor) -> State:
        """The state of some coordinates, by their places in [problems × coordinates]; for coordinatewise rules."""
