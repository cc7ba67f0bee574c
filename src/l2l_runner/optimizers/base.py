"""The noun Optimizer: a pair of pure functions, for hand-designed and learned update rules alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.kernels import Kernel, TorchKernel
from l2l_runner.kernels import State as State
from l2l_runner.layout import ALL, Columns, Layout
from l2l_runner.optimizees.base import Problem


class Optimizer(ABC):
    """An update rule.

    It sees the parameters of all problems as one tensor [problems, coordinates] and treats problems alike.
    """

    def adapt(self, problem: Problem) -> Problem:
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
    def build(self, layout: Layout, generator: torch.Generator) -> LearnedRule:
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

    rule: LearnedRule
    columns: Columns
    state: slice


class LearnedRule(nn.Module, Optimizer):
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

    def initialise_from(self, problem: Problem) -> None:
        """Take from the first training problem what only a problem can tell, such as a start; most rules need nothing.

        Called once, before the first meta-step of a new run.
        """

    def check(self, layout: Layout) -> None:
        """Refuse problems with parameters that it wasn't built for; a coordinatewise rule fits all.

        Raises:
            ConfigError: it doesn't fit.
        """

    def fitted(self, layout: Layout) -> LearnedRule:
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


class PlainRule(LearnedRule):
    """A learned rule without the LSTM that kernels compute, and not coordinatewise.

    Attributes:
        what: it computes instead.
    """

    coordinatewise = False
    kernel: Kernel = TorchKernel()
    what: ClassVar[str]

    def use_kernel(self, name: str) -> None:
        if name not in ("auto", "torch"):
            raise ConfigError(f"kernel={name} computes the LSTM optimizer, not {self.what}: use kernel=auto.")


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Modules, which draw their start from the global generator, draw it from the seed of this one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


def key_of(name: str) -> str:
    """A tensor's name as nn.ModuleDict takes it: without dots, and none that the dictionary has a use for itself."""
    return "/" + name.replace(".", "/")


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a parameter's name fits one of some shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(key: str, patterns: Iterable[str], layout: Layout) -> None:
    """Refuse patterns of parameters' names that fit none.

    Raises:
        ConfigError: there is such a pattern.
    """
    for pattern in patterns:
        if not any(fits(name, [pattern]) for name in layout.shapes):
            raise ConfigError(f"{key} has {pattern}, which fits none of the parameters {', '.join(layout.shapes)}.")


class Recording(Optimizer):
    """A learned optimizer that records its updates, for `LearnedRule.backward`."""

    def __init__(self, optimizer: LearnedRule):
        self.optimizer = optimizer
        self.record: list[Any] = []

    def init(self, params: Tensor) -> State:
        return self.optimizer.init(params)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        return self.optimizer.record_update(grads, state, params, self.record)
