"""Joint training of all tasks, to be fine-tuned afterwards: the baseline for starting points that are meta-learned."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner.fields import choice
from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.meta.starts import StartConfig, through_start
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule


@dataclass(frozen=True, kw_only=True)
class Joint(MetaGradient):
    """∇f(θ0) on one minibatch of every task at a time: one step of ordinary training per step of a trajectory.

    Attributes:
        steps: minibatches of each task, as many as a trajectory of the other estimators has steps.
    """

    shareable = True

    steps: int

    @property
    def description(self) -> str:
        return f"joint training, {self.steps} minibatches of each task"

    def _adapted(self, optimizer: LearnedRule, problem: Problem) -> Problem:
        """Leave the problems as they are: each step adapts them to the optimizer as the step before has updated it."""
        return problem

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        for step in range(self.steps):
            current = optimizer.adapt(problem)
            params = current.layout.flatten(current.init()).detach().requires_grad_()
            with torch.enable_grad():
                loss = current.loss(current.layout.views(params), step)
                (grads,) = torch.autograd.grad(loss.sum(), params)
            found = through_start(current, optimizer, grads / len(loss))
            yield Estimate(loss.detach().mean(), found, loss.detach().unsqueeze(0))


@dataclass(frozen=True, kw_only=True)
class JointConfig(StartConfig):
    """Joint training of all tasks, to be fine-tuned."""

    kind = Joint

    name: str = choice("joint")
