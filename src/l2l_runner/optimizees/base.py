"""The nouns Optimizee and Problem."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from l2l_runner import streams
from l2l_runner.fields import at_least
from l2l_runner.layout import Layout, Params
from l2l_runner.runtime import Runtime


class Problem(ABC):
    """A batch of independent problems, each to be minimised by itself.

    Every problem follows from its own seed. So does the minibatch of a step, a function of (problem seed, step): every
    optimizer meets the same problems, starts and minibatches.

    Attributes:
        seeds: int64 [problems].
        layout: of one problem's parameters.
        tasks: int64 [problems], the task that each problem was drawn from; the first `layout.tasks` tasks are for
            training. None where problems differ only by their seeds.
    """

    seeds: Tensor
    layout: Layout
    tasks: Tensor | None = None

    @abstractmethod
    def init(self) -> Params:
        """Return the starting points: named tensors [problems, *shape]."""

    @abstractmethod
    def loss(self, params: Params, step: int) -> Tensor:
        """Return the losses [problems] at `params`, on the minibatch of `step`; twice differentiable in `params`."""

    def metrics(self, params: Params) -> dict[str, Tensor]:
        """Return what is shown beside the loss, such as the accuracy, each [problems]; by default nothing."""
        return {}

    def pictures(self, params: Params) -> Tensor | None:
        """Return `params` as pictures [problems, 3, height, width] in [0, 1]; by default None: they are no pictures."""
        return None

    def sources(self) -> dict[str, Tensor]:
        """Return the pictures that problems are made from, by name, each [problems, 3, height, width] in [0, 1]."""
        return {}

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        """Return the same problems, through a network with these layers at the sites of their names.

        All problems share the layers, and the losses are differentiable in the layers' parameters too.

        Raises:
            NotImplementedError: the network has no sites.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sites for warp layers.")

    def take(self, rows: Tensor) -> Problem:
        """Return the problems at these indices of the batch (int64, repetitions allowed).

        Raises:
            NotImplementedError: the network has no sites; only warp layers need this.
        """
        raise NotImplementedError(f"{type(self).__name__} has no sites for warp layers.")

    def example_losses(self, params: Params, step: int) -> Tensor:
        """Return the losses [problems, minibatch] of the single examples of the minibatch of `step`.

        Raises:
            NotImplementedError: the optimizee does not have clean examples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no clean examples.")

    def clean_loss(self, params: Params) -> Tensor:
        """Return the mean losses [problems] of the clean examples.

        Raises:
            NotImplementedError: the optimizee does not have clean examples.
        """
        raise NotImplementedError(f"{type(self).__name__} has no clean examples.")


@dataclass(frozen=True, kw_only=True)
class Optimizee(ABC):
    """A distribution over problems.

    Attributes:
        name: the configuration's name for it.
        batch: problems per meta-step.
        validation_problems: size of the fixed set that selects the best optimizer and tunes the baselines.
        test_problems: size of the held-out set of the final comparison.
        has_clean_examples: whether its problems have `example_losses` and a `clean_loss`, and it has `at_proportion`.
    """

    has_clean_examples: ClassVar[bool] = False

    name: str
    batch: int = at_least(1)
    validation_problems: int = at_least(1)
    test_problems: int = at_least(2)

    @abstractmethod
    def layout(self) -> Layout:
        """Return the layout of one problem's parameters."""

    @property
    def gain(self) -> str | None:
        """What minus the loss is, such as a return, to be shown in place of the loss; None shows the loss."""
        return None

    @property
    def metrics_every(self) -> int | None:
        """Steps between readings of the metrics in an evaluation; None reads them only at its end."""
        return None

    def seeds(self, run_seed: int, split: str, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Return the seeds, int64 [count], of problems first … first+count-1 of the split train, validation or test."""
        return streams.seeds(run_seed, split, first, count, device)

    def at_proportion(self, proportion: float) -> Optimizee:
        """Return the same optimizee with another proportion of the frequent class.

        Raises:
            ConfigError: the proportion leaves a class without examples.
            NotImplementedError: the optimizee does not have clean examples.
        """
        raise NotImplementedError(f"optimizee={self.name} has no clean examples.")

    def refuse_training_tasks(self, trained: Optimizee) -> None:  # noqa: B027 - most problems belong to no tasks
        """Refuse a test on tasks that an optimizer was trained on, with this or another optimizee.

        Raises:
            ConfigError: a test task is a training task.
        """

    @abstractmethod
    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        """Return the problems of the seeds, int64 [problems], on the runtime's device and in its precision."""
