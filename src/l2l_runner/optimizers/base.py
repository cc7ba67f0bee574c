"""The noun Optimizer: a pair of pure functions, for hand-designed and learned update rules alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from l2l_runner.kernels import Kernel
from l2l_runner.kernels import State as State
from l2l_runner.layout import ALL, Columns, Layout
from l2l_runner.optimizees.base import Problem


class Optimizer(ABC):
    """An update rule.

    It sees the parameters of all problems as one tensor [problems, coordinates] and treats problems alike.
    """

    def prepare(self, problem: Problem) -> Problem:
        """The problems as they are for this optimizer, which may have learned where to start; most take them as given.

        Whoever unrolls an optimizer prepares its problems first.
        """
        return problem

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """The state before the first step, for params [problems, coordinates]."""

    @abstractmethod
    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        """What is to be added to `params` for gradients [problems, coordinates], and the next state."""


class LearnedConfig(ABC):
    """The settings of a learned update rule, from which it is built for problems with certain parameters.

    Attributes:
        coordinatewise: as in the rule itself.
        direct: whether losses run through what is learned, as through warp layers, rather than depend on it by updates.
    """

    coordinatewise: bool = False
    direct: bool = False

    @abstractmethod
    def build(self, layout: Layout, generator: torch.Generator) -> LearnedOptimizer:
        """The rule at its random start.

        Raises:
            ConfigError: it is none for such parameters.
        """


class Part(NamedTuple):
    """A learned rule, and what of a problem is its.

    Attributes:
        rule: made of no other rules.
        columns: its coordinates.
        state: its part of the whole optimizer's state.
    """

    rule: LearnedOptimizer
    columns: Columns
    state: slice


class LearnedOptimizer(nn.Module, Optimizer):
    """An update rule whose parameters are meta-learned.

    Attributes:
        kernel: what computes it; where it has several parts, each has its own.
        coordinatewise: whether coordinates don't interact, so that some of a part's can be replayed by themselves.
        recordable: columns × steps up to which `record_update` can be asked for.
    """

    kernel: Kernel
    coordinatewise: bool
    recordable: int = 0

    @abstractmethod
    def use_kernel(self, name: str) -> None:
        """Compute with the kernel of that name (`kernels.KERNELS`), where the parameters are now.

        Raises:
            ConfigError: it can't serve this rule there.
        """

    def begin(self, problem: Problem) -> None:
        """Take from the first training problem what only a problem can tell, such as a start; most rules need nothing.

        Called once, before the first meta-step of a new run.
        """

    def check(self, layout: Layout) -> None:
        """Refuse problems with parameters that it wasn't built for; a coordinatewise rule fits all.

        Raises:
            ConfigError: it doesn't fit.
        """

    def fitted(self, layout: Layout) -> LearnedOptimizer:
        """The same rule for problems with these parameters.

        Raises:
            ConfigError: as `check`.
        """
        self.check(layout)
        return self

    def parts(self) -> Sequence[Part]:
        """What it is made of, in the order of `parameters()`; most rules are one part."""
        return (Part(self, ALL, slice(None)),)

    def select(self, state: State, columns: Tensor | slice) -> State:
        """The state of some coordinates, by their places in [problems × coordinates]; for coordinatewise rules."""
        raise NotImplementedError

    def rates(self) -> dict[str, Tensor]:
        """The learning rates that it has learned, by the names of the tensors that they are for, if it has any."""
        return {}

    @abstractmethod
    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        """∂(Σ_t ⟨cotangents_t, u_t⟩)/∂φ, where u_t are the updates that constant gradients lead to from `state`.

        Args:
            grads: [steps, problems, coordinates].
            state: before the first step.
            cotangents: [steps, problems, coordinates].

        Returns:
            One tensor for each of `parameters()`, in their order.
        """

    def record_update(self, grads: Tensor, state: State, params: Tensor, record: list[Any]) -> tuple[Tensor, State]:
        """`update` without a graph, which appends to the record what `backward` needs; where it is `recordable`."""
        raise NotImplementedError

    def backward(self, record: list[Any], cotangents: Tensor) -> tuple[Tensor, ...]:
        """`replay` of the updates that were recorded."""
        raise NotImplementedError


class Recording(Optimizer):
    """A learned optimizer that records its updates, for `LearnedOptimizer.backward`."""

    def __init__(self, optimizer: LearnedOptimizer):
        self.optimizer = optimizer
        self.record: list[Any] = []

    def init(self, params: Tensor) -> State:
        return self.optimizer.init(params)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        return self.optimizer.record_update(grads, state, params, self.record)
