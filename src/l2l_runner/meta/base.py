"""The noun MetaGradient: an estimator of the gradient of a meta-loss for the optimizer's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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
    """Yields the estimates of one meta-step; the caller may update the optimizer after each of them.

    Attributes:
        shareable: whether the estimates of a batch of problems are the means of those of its parts, so that several
            processes can each take a part. What is drawn for the whole batch must then be drawn alike in all of them
            (`distributed.broadcast`).
    """

    shareable: ClassVar[bool] = False

    @property
    @abstractmethod
    def description(self) -> str:
        """How it estimates, in the words of a log."""

    def stores(self, layout: Layout, problems: int, dtype: torch.dtype) -> str:
        """What of the trajectories of so many problems it keeps in memory, in the words of a log; empty if nothing."""
        return ""

    @abstractmethod
    def estimates(self, optimizer: LearnedRule, problem: Problem) -> Iterator[Estimate]:
        """The estimates that one batch of problems gives, in their order."""
