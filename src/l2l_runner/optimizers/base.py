"""The noun Optimizer: a pair of pure functions, the same for hand-designed and learned update rules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.kernels import State as State
from l2l_runner.layout import ALL, Columns, Layout
from l2l_runner.optimizees.base import Problem


class Optimizer(ABC):
    """An update rule: a pair of pure functions, `init` and `update`.

    It sees the parameters of all problems as one tensor [problems, coordinates], and treats each problem by itself. The
    other methods have defaults that suit a rule which learns nothing.

    Attributes:
        lr: learning rate of a hand-designed rule; None for a learned one.
    """

    lr: float | None = None

    @abstractmethod
    def init(self, params: Tensor) -> State:
        """Return the state before the first step, for params [problems, coordinates]."""

    @abstractmethod
    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        """Return what to add to `params`, for gradients [problems, coordinates], and the next state."""

    def adapt(self, problem: Problem) -> Problem:
        """Return the problems as this rule wants them, for example from a start that it has learned.

        Call it before unrolling; estimators do so themselves. By default problems are left as they are.
        """
        return problem

    def fitted(self, layout: Layout) -> Optimizer:
        """Return the same rule for problems with these parameters; by default it fits all of them.

        Raises:
            ConfigError: the rule was built for other parameters.
        """
        return self

    def rule_of(self, name: str) -> Optimizer:
        """Return the rule that updates the parameter of this name; by default the same for all.

        Raises:
            ConfigError: no rule updates it.
        """
        return self

    def parts(self) -> Sequence[Part]:
        """Return the learned rules that this one is made of, in the order of their parameters."""
        return ()

    def use_kernel(self, name: str) -> None:  # noqa: B027 - kernels compute learned rules only
        """Compute with the kernel of this name (`kernels.KERNELS`), on the device where the parameters are now.

        Raises:
            ConfigError: the kernel cannot compute this rule there.
        """


UPDATES, START, WARP, GATES = "updates", "a starting point", "warp layers", "gates"
"""What can be learned: the updates themselves, the starting point, layers between those that a task adapts, and gates
of recurrent cells. The losses run through the last two."""


class RuleConfig(ABC):
    """The settings of an update rule, from which it is built for problems with certain parameters.

    Attributes:
        name: by which `RULES` offers it.
        learns: what is meta-learned: some of UPDATES, START, WARP and GATES; nothing of a hand-designed rule.
        coordinatewise: as in the rule itself.
    """

    name: str
    coordinatewise: bool = False

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({UPDATES})

    @abstractmethod
    def build(self, layout: Layout, generator: torch.Generator) -> Optimizer:
        """Return the rule at its random start, drawn from `generator`.

        Raises:
            ConfigError: there is none for such parameters.
        """


class LearnedConfig(RuleConfig):
    """The settings of a learned update rule."""

    @abstractmethod
    def build(self, layout: Layout, generator: torch.Generator) -> LearnedRule: ...


RULES: ChainMap[str, type[RuleConfig]] = ChainMap()
"""The settings of all rules by their names: the two tables of `optimizers/__init__.py`, joined there."""


class Part(NamedTuple):
    """A learned rule, and which share of a problem it updates.

    Attributes:
        rule: a rule that is not made of others.
        columns: the coordinates that it updates.
        state: its slice of the whole optimizer's state.
    """

    rule: LearnedRule
    columns: Columns
    state: slice


class LearnedRule(nn.Module, Optimizer):
    """An update rule whose parameters φ are meta-learned.

    A rule must write `init` and `update`. Where it needs to, it overrides four more:

    - `fitted` refuses problems of other shapes than those it was built for;
    - `adapt` changes the problems that it is given, and `initialise_from` takes a start from the first of them;
    - `rates` names the learning rates that it has learned, for the log.

    The rest has defaults, which LSTMs override for speed and groups of rules to delegate.

    Attributes:
        coordinatewise: whether coordinates do not interact, so that some of them can be replayed alone.
        chunk: coordinates to replay at once; None for any number.
        kernel_name: what computes the rule.
    """

    coordinatewise: bool = False
    chunk: int | None = None
    kernel_name: str = "torch"

    def fitted(self, layout: Layout) -> LearnedRule:
        """Return the same rule for problems with these parameters; by default it fits all of them.

        Raises:
            ConfigError: the rule was built for other parameters.
        """
        return self

    def initialise_from(self, problem: Problem) -> None:
        """Take from the first training problem what only a problem can tell, such as a start; by default nothing.

        It is called once, before the first meta-step of a new run.
        """

    def rates(self) -> dict[str, Tensor]:
        """Return the learned learning rates, by the names of the tensors that they scale; by default none."""
        return {}

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        """Return ∂(Σ_t ⟨cotangents_t, u_t⟩)/∂φ, where constant gradients lead from `state` to the updates u_t.

        By default autograd differentiates `update`. A replay has no parameters to pass to it: a rule whose updates
        depend on their values needs `meta.engine=graph`.

        Args:
            grads: [steps, problems, coordinates].
            state: before the first step.
            cotangents: [steps, problems, coordinates].

        Returns:
            One tensor for each of `parameters()`, in their order.
        """
        params = torch.empty_like(grads[0], device="meta")  # reading a value of it fails, instead of giving a wrong one
        updates = []
        with torch.enable_grad():
            for step_grads in grads:
                update, state = self.update(step_grads, state, params)
                updates.append(update)
        learned = list(self.parameters())
        if not any(update.requires_grad for update in updates):  # φ acts through the problem instead
            return tuple(torch.zeros_like(parameter) for parameter in learned)
        return torch.autograd.grad(torch.stack(updates), learned, cotangents, allow_unused=True, materialize_grads=True)

    def select(self, state: State, columns: Tensor | slice) -> State:
        """Return the state of some coordinates, by their indices in [problems × coordinates].

        It serves coordinatewise rules. By default each tensor of the state is [problems, coordinates] or a scalar.
        """
        return tuple(tensor.reshape(1, -1)[:, columns] if tensor.dim() else tensor for tensor in state)

    def recording(self, params: Tensor, steps: int) -> Recording | None:
        """Return the rule as it records so many steps for params [problems, coordinates].

        None where they would not fit into memory, and by default: windows are then replayed.
        """
        return None

    def parts(self) -> Sequence[Part]:
        """Return the learned rules that this one is made of, in the order of `parameters()`; by default itself."""
        return (Part(self, ALL, slice(None)),)

    def use_kernel(self, name: str) -> None:
        """Compute with the kernel of this name (`kernels.KERNELS`), on the device where the parameters are now.

        Raises:
            ConfigError: the kernel cannot compute this rule there; by default none but plain PyTorch can.
        """
        if name not in ("auto", "torch"):
            raise ConfigError(
                f"kernel={name} computes LSTM optimizers only, and this optimizer has no LSTM: use kernel=auto or "
                "kernel=torch."
            )


class Recording(Optimizer):
    """A learned rule that records a window of its updates, to spare computing them again in a replay."""

    @abstractmethod
    def backward(self, cotangents: Tensor) -> tuple[Tensor, ...]:
        """Return what `LearnedRule.replay` would, of the updates since the recording began."""


@contextmanager
def drawn_from(generator: torch.Generator) -> Iterator[None]:
    """Let modules draw their initial values from the seed of this generator, instead of from the global one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        yield


def key_of(name: str) -> str:
    """Return a tensor's name as nn.ModuleDict accepts it: without dots, and not the name of one of its methods."""
    return "/" + name.replace(".", "/")


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a parameter's name fits one of the shell patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(key: str, patterns: Iterable[str], layout: Layout) -> None:
    """Refuse patterns that fit no parameter's name.

    Raises:
        ConfigError: a pattern fits none.
    """
    for pattern in patterns:
        if not any(fits(name, [pattern]) for name in layout.shapes):
            raise ConfigError(f"{key} has {pattern}, which fits none of the parameters {', '.join(layout.shapes)}.")
