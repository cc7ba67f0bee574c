"""The noun MetaGradient: an estimator of the gradient of a meta-loss for the optimizer's parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedOptimizer


@dataclass(frozen=True)
class Estimate:
    """One estimate.

    Attributes:
        meta_loss: scalar, the mean over problems of the weighted sum of the losses it covers.
        grads: one tensor for each of the optimizer's parameters, in their order.
        losses: [steps, problems], the losses it covers.
    """

    meta_loss: Tensor
    grads: tuple[Tensor, ...]
    losses: Tensor


class MetaGradient(ABC):
    """Yields the estimates of one meta-step; the caller may update the optimizer after each of them."""

    @property
    @abstractmethod
    def description(self) -> str:
        """How it estimates, in the words of a log."""

    @abstractmethod
    def estimates(self, optimizer: LearnedOptimizer, problem: Problem) -> Iterator[Estimate]:
        """The estimates that one batch of problems gives, in their order."""
