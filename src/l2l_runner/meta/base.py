"""The noun MetaGradient: an estimator of the gradient of a meta-loss for the optimizer's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, final

import torch
from torch import Tensor

from l2l_runner import distributed
from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, between, choice
from l2l_runner.layout import Layout
from l2l_runner.optimizees import Optimizee, Problem, Scaled
from l2l_runner.optimizers.base import UPDATES, LearnedRule, RuleConfig


def loss_weights(kind: str, steps: int) -> Tensor:
    """Return the weights w_1 … w_T of the losses, [steps], of mean 1: constant, linear (∝ t) or final (last only)."""
    if kind == "constant":
        return torch.ones(steps)
    if kind == "linear":
        return torch.arange(1, steps + 1, dtype=torch.float64) * (2 / (steps + 1))
    return torch.zeros(steps).index_fill(0, torch.tensor(steps - 1), steps)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the meta-loss of losses [steps, problems]: their sum with weights [steps], mean over problems."""
    return (losses * weights.unsqueeze(1)).sum(0).mean()


Grads = tuple[Tensor | None, ...]
"""A tensor for each of an optimizer's parameters, in their order; None for those that an estimate does not cover."""


def added(one: Grads, other: Grads) -> Grads:
    """Return the sum of two gradients."""
    return tuple(a if b is None else b if a is None else a + b for a, b in zip(one, other, strict=True))


def global_norm(grads: Grads) -> Tensor:
    """Return the norm of all gradients that are not None together, a scalar."""
    return torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None])


@dataclass(frozen=True)
class Estimate:
    """One estimate.

    Attributes:
        meta_loss: scalar, the mean over problems of the weighted sum of `losses`.
        grads: of the optimizer's parameters; at least one has a gradient.
        losses: [steps, problems], the losses that the estimate covers; the final loss of the trajectory, where the
            estimate covers losses outside of it.
        imitates: whether `meta_loss` is instead the distance to an expert that took the steps.
    """

    meta_loss: Tensor
    grads: Grads
    losses: Tensor
    imitates: bool = False


class MetaGradient(ABC):
    """An estimator: it yields the estimates of one meta-step; its caller may update the optimizer after each of them.

    Attributes:
        shareable: whether the estimates of a batch of problems are the means of those of its parts, so that several
            processes can each take a part. Whatever is drawn for the whole batch must then follow from `seed`.
    """

    shareable: ClassVar[bool] = False

    @property
    @abstractmethod
    def description(self) -> str:
        """How it estimates, as the log says it."""

    def stores(self, layout: Layout, problems: int, dtype: torch.dtype) -> str:
        """Say what it keeps in memory of the trajectories of so many problems, for the log; empty for nothing."""
        return ""

    @final
    def estimates(self, optimizer: LearnedRule, problem: Problem) -> Iterator[Estimate]:
        """Return the estimates from one batch of problems, in their order."""
        seed = distributed.broadcast(problem.seeds[:1])
        return self._estimates(optimizer, self._adapted(optimizer, problem), seed)

    def _adapted(self, optimizer: LearnedRule, problem: Problem) -> Problem:
        """Return the problems as the optimizer wants them."""
        return optimizer.adapt(problem)

    @abstractmethod
    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        """Return the estimates from one batch of problems, in their order.

        Args:
            optimizer: what is meta-learned.
            problem: already adapted to the optimizer.
            seed: int64 [1], of the meta-step: the seed of the batch's first problem, the same in all processes.
        """


@dataclass(frozen=True, kw_only=True)
class Unroll:
    """How long windows and trajectories are.

    Attributes:
        length: steps of a truncation window.
        steps: steps of a trajectory.
    """

    length: int = at_least(1)
    steps: int = at_least(1)


@dataclass(frozen=True, kw_only=True)
class MetaConfig(ABC):
    """How an optimizer learns.

    Attributes:
        needs: what a rule must learn for it (see `RuleConfig.learns`).
        learns: what a rule may learn by it; nothing where only hand-designed rules make sense.
        many_problems: whether an optimizer is meta-trained on many problems, so that it can be applied to others.
        ignored_keys: dotted keys that every configuration has and that have no effect with these settings.
        name: of the estimator.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    many_problems: ClassVar[bool] = False

    name: str

    @property
    @abstractmethod
    def learns(self) -> frozenset[str]: ...

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        return ()

    def check_rule(self, rule: RuleConfig) -> None:
        """Refuse a rule that learns what these settings cannot teach, or nothing of what they teach.

        Raises:
            ConfigError: the two do not fit.
        """
        if self.needs <= rule.learns <= self.learns and bool(rule.learns) == bool(self.learns):
            return
        mine = f"learns {_listed(self.learns)}" if self.learns else "takes its steps with a hand-designed optimizer"
        theirs = f"learns {_listed(rule.learns)}" if rule.learns else "is hand-designed and learns nothing"
        mend = f"an optimizer that learns {_listed(self.needs or self.learns)}" if self.learns else "sgd or adam, say"
        raise ConfigError(
            f"meta={self.name} {mine}, but optimizer={rule.name} as it is set {theirs}: leave meta out, which takes "
            f"what suits the optimizer, or use {mend}."
        )

    def check_unroll(self, unroll: Unroll, rule: RuleConfig) -> None:  # noqa: B027 - as below
        """Refuse lengths of windows and trajectories that make no sense with these settings.

        Raises:
            ConfigError: the combination makes no sense.
        """

    def shareable(self, unroll: Unroll, rule: RuleConfig) -> bool:
        """Return whether several processes can share the problems of a meta-step."""
        return False

    def check_optimizee(self, optimizee: Optimizee) -> None:  # noqa: B027 - most settings take any
        """Refuse an optimizee that has not what these settings need.

        Raises:
            ConfigError: the two do not fit.
        """


def _listed(parts: frozenset[str]) -> str:
    return " and ".join(sorted(parts)) if len(parts) < 3 else ", ".join(sorted(parts))


@dataclass(frozen=True, kw_only=True)
class MetaTrainingConfig(MetaConfig):
    """How an optimizer is meta-trained, with whatever estimator of the meta-gradient.

    Attributes:
        steps: meta-steps; each trains through one whole trajectory of one batch of problems.
        validate_every: meta-steps between validations, which refresh the pictures and save the checkpoints.
        optimizer: the meta-optimizer, adam or sgd.
        lr: its learning rate, at its highest.
        schedule: constant, or cosine decay to zero over `steps`.
        warmup: fraction of `steps` in which the rate rises linearly.
        clip: largest global norm of a meta-gradient; null for none.
        curriculum: horizons, in steps, that come before unroll.steps: trajectories in training and validation grow from
            one to the next; null trains on whole ones from the start.
        advance: validations without a better score after which the next horizon begins.
        max_skipped: stop after so many non-finite meta-gradients in a row.
        patience: stop after so many validations without a better score at the last horizon; null for never.
    """

    many_problems = True

    steps: int = at_least(0)
    validate_every: int = at_least(1)
    optimizer: str = choice("adam", "sgd")
    lr: float = above(0)
    schedule: str = choice("constant", "cosine")
    warmup: float = between(0, 1)
    clip: float | None = above(0)
    curriculum: tuple[int, ...] | None = at_least(1)
    advance: int = at_least(1)
    max_skipped: int = at_least(1)
    patience: int | None = at_least(1)

    def horizons(self, unroll: Unroll) -> tuple[int, ...]:
        """Return the lengths of trajectories that training goes through, of which the last is unroll.steps.

        Raises:
            ConfigError: they do not grow.
        """
        given = self.curriculum or ()
        horizons = given if given[-1:] == (unroll.steps,) else (*given, unroll.steps)
        if any(following <= horizon for horizon, following in pairwise(horizons)):
            raise ConfigError(
                f"meta.curriculum is {list(given)}; expected horizons that grow from one to the next, up to "
                f"unroll.steps={unroll.steps}."
            )
        return horizons

    @abstractmethod
    def estimator(self, unroll: Unroll, rule: RuleConfig) -> MetaGradient:
        """Return the estimator that these settings describe.

        Raises:
            ConfigError: the combination makes no sense.
        """

    def shareable(self, unroll: Unroll, rule: RuleConfig) -> bool:
        return self.estimator(unroll, rule).shareable

    def check_unroll(self, unroll: Unroll, rule: RuleConfig) -> None:
        self.estimator(unroll, rule)
        self.horizons(unroll)

    def training_problem(self, problem: Problem) -> Problem:
        """Return the problem to train on in place of a sampled one; by default itself."""
        return problem


@dataclass(frozen=True, kw_only=True)
class UnrolledMetaConfig(MetaTrainingConfig):
    """Meta-training of updates by the losses along a trajectory.

    Attributes:
        weights: of these losses: constant, linear or final.
        scaling: training problems have each coordinate scaled by e^{U(−scaling, scaling)}; 0 leaves them as they are.
    """

    needs = frozenset({UPDATES})

    weights: str = choice("constant", "linear", "final")
    scaling: float = between(0, 80)  # beyond, e^scaling is no float32

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({UPDATES})

    def training_problem(self, problem: Problem) -> Problem:
        return Scaled(problem, self.scaling) if self.scaling else problem
