"""The noun MetaGradient: an estimator of the gradient of a meta-loss for the optimizer's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from l2l_runner import distributed
from l2l_runner.layout import Layout
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule


def loss_weights(kind: str, steps: int) -> Tensor:
    """The weights w_1 … w_T of the losses, [steps], with mean 1: constant, linear (∝ t) or final (the last alone)."""
    if kind == "constant":
        return torch.ones(steps)
    if kind == "linear":
        return torch.arange(1, steps + 1, dtype=torch.float64) * (2 / (steps + 1))
    return torch.zeros(steps).index_fill(0, torch.tensor(steps - 1), steps)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """The meta-loss of losses [steps, problems] with weights [steps]: the mean over problems of their weighted sum."""
    return (losses * weights.unsqueeze(1)).sum(0).mean()


Grads = tuple[Tensor | None, ...]
"""A tensor for each of an optimizer's parameters, in their order; None where an estimate says nothing about one."""


def added(one: Grads, other: Grads) -> Grads:
    """The sum of two."""
    return tuple(a if b is None else b if a is None else a + b for a, b in zip(one, other, strict=True))


def global_norm(grads: Grads) -> Tensor:
    """The norm of all gradients that there are, a scalar."""
    return torch.nn.utils.get_total_norm([grad for grad in grads if grad is not None])


@dataclass(frozen=True)
class Estimate:
    """One estimate.

    Attributes:
        meta_loss: scalar, the mean over problems of the weighted sum of the losses it covers.
        grads: for the optimizer's parameters, of which at least one has a gradient.
        losses: [steps, problems], the losses it covers, or, where they are not a trajectory's, its final loss.
        imitates: whether `meta_loss` is the distance to an expert that took the steps instead.
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
