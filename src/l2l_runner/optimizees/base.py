"""The nouns Optimizee and Problem, and the layout that turns named parameters into flat coordinates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from l2l_runner.fields import at_least
from l2l_runner.runtime import Runtime

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of one problem's parameters, in the order in which they lie in the flat vector."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of coordinates of one problem."""
        return sum(prod(shape) for shape in self.shapes.values())

    def flatten(self, params: Params) -> Tensor:
        """Named tensors [problems, *shape] as one tensor [problems, coordinates]."""
        return torch.cat([params[name].reshape(-1, prod(shape)) for name, shape in self.shapes.items()], dim=1)

    def views(self, flat: Tensor) -> Params:
        """A flat tensor [problems, coordinates] as named views [problems, *shape]."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(len(flat), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


class Problem(ABC):
    """A batch of independent problems, each to be minimised by itself.

    Every problem follows from its own seed, its minibatches included: the minibatch of a step is a function of
    (problem seed, step), so that every optimizer meets the very same problems, starts and minibatches.

    Attributes:
        seeds: int64 [problems].
        layout: of one problem's parameters.
    """

    seeds: Tensor
    layout: Layout

    @abstractmethod
    def init(self) -> Params:
        """The starting points: named tensors [problems, *shape]."""

    @abstractmethod
    def loss(self, params: Params, step: int) -> Tensor:
        """The losses [problems] at `params`, on the minibatch of `step`; differentiable twice in `params`."""

    def metrics(self, params: Params) -> dict[str, Tensor]:
        """What a user reads beside the loss (accuracy, say), each [problems]; none by default."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Optimizee(ABC):
    """A distribution over problems.

    Attributes:
        name: the configuration's name for it.
        batch: problems that a meta-step trains on at once.
        validation_problems: size of the fixed set on which the best optimizer is selected and baselines are tuned.
        test_problems: size of the held-out set of the final comparison.
    """

    name: str
    batch: int = at_least(1)
    validation_problems: int = at_least(1)
    test_problems: int = at_least(2)

    @abstractmethod
    def layout(self) -> Layout:
        """The layout of one problem's parameters."""

    @abstractmethod
    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        """The problems of the given seeds [problems] (int64), on the runtime's device and in its precision."""
