"""The nouns Optimizee and Problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l_runner import streams
from l2l_runner.fields import at_least
from l2l_runner.layout import Layout, Params
from l2l_runner.runtime import Runtime


class Problem(ABC):
    """A batch of independent problems, each to be minimised by itself.

    Every problem follows from its own seed, its minibatches included: the minibatch of a step is a function of
    (problem seed, step), so that every optimizer meets the very same problems, starts and minibatches.

    Attributes:
        seeds: int64 [problems].
        layout: of one problem's parameters.
        tasks: int64 [problems], the task that each was drawn from, of which the first `layout.tasks` are trained on;
            None where problems differ by their seeds alone.
    """

    seeds: Tensor
    layout: Layout
    tasks: Tensor | None = None

    @abstractmethod
    def init(self) -> Params:
        """The starting points: named tensors [problems, *shape]."""

    @abstractmethod
    def loss(self, params: Params, step: int) -> Tensor:
        """The losses [problems] at `params`, on the minibatch of `step`; differentiable twice in `params`."""

    def metrics(self, params: Params) -> dict[str, Tensor]:
        """What a user reads beside the loss (accuracy, say), each [problems]; none by default."""
        return {}

    def pictures(self, params: Params) -> Tensor | None:
        """`params` as pictures [problems, 3, height, width] in [0, 1]; None where they are no pictures."""
        return None

    def sources(self) -> dict[str, Tensor]:
        """The pictures that the problems were made from, by name, each [problems, 3, height, width] in [0, 1]."""
        return {}

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        """The same problems, through a network with these layers at the sites that they are named after.

        The layers are shared by all problems, and whatever is computed is differentiable in their parameters too.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sites for warp layers.")

    def take(self, rows: Tensor) -> Problem:
        """The problems at these places in the batch (int64, repetitions allowed), where there are sites."""
        raise NotImplementedError(f"{type(self).__name__} has no sites for warp layers.")


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

    @property
    def gain(self) -> str | None:
        """What there is to gain, where the loss is minus that, such as a return: shown in place of the loss."""
        return None

    @property
    def metrics_every(self) -> int | None:
        """Steps between readings of the metrics in an evaluation; None reads them at its end alone."""
        return None

    def seeds(self, run_seed: int, split: str, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Seeds [count] (int64) of problems first … first+count-1 of a split: `train`, `validation` or `test`."""
        return streams.seeds(run_seed, split, first, count, device)

    def refuse_training_tasks(self, trained: Optimizee) -> None:  # noqa: B027 - most problems are no tasks that could come again
        """Refuse a test on tasks that an optimizer has met in training, on another or the same optimizee.

        Raises:
            ConfigError: some of the test's tasks are among those.
        """

    @abstractmethod
    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        """The problems of the given seeds [problems] (int64), on the runtime's device and in its precision."""
