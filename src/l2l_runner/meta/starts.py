"""Estimators for a learned starting point θ0, from the trajectories that start there.

MAML and its first-order form: Finn et al. 2017 (arXiv 1703.03400). Reptile: Nichol et al. 2018 (arXiv 1803.02999).
Leap: Flennerhag et al. 2019 (arXiv 1812.01054).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from l2l_runner.errors import ConfigError
from l2l_runner.fields import at_least, choice
from l2l_runner.meta.base import Estimate, Grads, MetaGradient, MetaTrainingConfig, Unroll
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import START, UPDATES, WARP, LearnedRule, RuleConfig
from l2l_runner.unroll import Graph, Point, start, unroll


def through_start(problem: Problem, optimizer: LearnedRule, cotangents: Tensor) -> Grads:
    """Return gradients of the optimizer's parameters, from those of the starting points [problems, coordinates]."""
    starts = problem.layout.flatten(problem.init())
    return torch.autograd.grad(starts, list(optimizer.parameters()), cotangents, allow_unused=True)


@dataclass(frozen=True, kw_only=True)
class MAML(MetaGradient):
    """∇ of the final loss f(θ_K), through the whole trajectory and second derivatives.

    The loss at θ_K is that of a minibatch that no step has seen. Whatever else the steps depend on, such as learned
    rates or warp layers, is learned together with the start.

    Attributes:
        steps: K.
    """

    shareable = True

    steps: int

    @property
    def description(self) -> str:
        return f"second derivatives through {self.steps} steps"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        point = start(problem, optimizer, Graph.SECOND_ORDER)
        for _, reached in unroll(problem, optimizer, point, self.steps, Graph.SECOND_ORDER):
            point = reached
        meta_loss = point.loss.mean()
        grads = torch.autograd.grad(meta_loss, list(optimizer.parameters()), allow_unused=True)
        yield Estimate(meta_loss.detach(), grads, point.loss.detach().unsqueeze(0))


@dataclass(frozen=True, kw_only=True)
class FirstOrder(MetaGradient):
    """A gradient for the start that needs no derivative through the trajectory; the meta-loss is the final loss.

    Attributes:
        pull: collects the gradient along a trajectory.
        steps: of a trajectory.
    """

    shareable = True
    pull: ClassVar[type[Pull]]

    steps: int

    @property
    def description(self) -> str:
        return f"{self.steps} steps, no second derivatives"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        point = start(problem, optimizer)
        pull = self.pull(point)
        for _, reached in unroll(problem, optimizer, point, self.steps):
            pull.add(point, reached)
            point = reached
        grads = through_start(problem, optimizer, pull.cotangents(point) / len(point.loss))
        yield Estimate(point.loss.mean(), grads, point.loss.unsqueeze(0))


class Pull:
    """The gradient for the start θ0 of a trajectory, [problems, coordinates], collected step by step."""

    def __init__(self, begun: Point):
        self.begun = begun

    def add(self, before: Point, after: Point) -> None:
        """Collect a step."""

    def cotangents(self, end: Point) -> Tensor:
        """Return the gradient, for a trajectory that ends at this point."""
        raise NotImplementedError


class _Last(Pull):
    def cotangents(self, end: Point) -> Tensor:
        return end.grads


class _Distance(Pull):
    def cotangents(self, end: Point) -> Tensor:
        return self.begun.params - end.params


class LeapPull(Pull):
    """Σ_i [(θ_i − θ_{i+1}) + |Δℓ_i| ∇ℓ(θ_i)] / √(‖θ_{i+1} − θ_i‖² + Δℓ_i²): the gradient of the length of the path.

    The path lies on the surface of the loss. Taking −|Δℓ_i| for the change of the loss Δℓ_i is the paper's stabiliser:
    steps that raise the loss do not push θ0 up.
    """

    def __init__(self, begun: Point):
        super().__init__(begun)
        self.total = torch.zeros_like(begun.params)

    def add(self, before: Point, after: Point) -> None:
        back = before.params - after.params
        change = (after.loss - before.loss).abs().unsqueeze(1)
        length = (back.square().sum(1, keepdim=True) + change.square()).sqrt()
        self.total += (back + change * before.grads) / length.clamp(min=torch.finfo(length.dtype).tiny)

    def cotangents(self, end: Point) -> Tensor:
        return self.total


class FOMAML(FirstOrder):
    """∇f(θ_K) as the gradient for θ0: MAML with ∂θ_K/∂θ0 taken as the identity, without second derivatives."""

    pull = _Last


class Reptile(FirstOrder):
    """θ0 − θ_K: a descent step moves the start towards the end of the trajectory."""

    pull = _Distance


class Leap(FirstOrder):
    """The gradient of the length of the trajectory on the surface of its loss; see `LeapPull`."""

    pull = LeapPull


@dataclass(frozen=True, kw_only=True)
class StartConfig(MetaTrainingConfig):
    """Meta-training of a starting point.

    Attributes:
        inner_steps: steps of the trajectories that it learns from; null for unroll.steps, which validation takes.
    """

    needs = frozenset({START})
    kind: ClassVar[Callable[..., MetaGradient]]

    inner_steps: int | None = at_least(1)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({START})

    def estimator(self, unroll: Unroll, rule: RuleConfig) -> MetaGradient:
        if self.inner_steps is not None and self.curriculum is not None:
            raise ConfigError(
                f"meta.inner_steps={self.inner_steps} fixes the trajectories that meta.curriculum would lengthen: set "
                "one of them to null."
            )
        return type(self).kind(steps=self.inner_steps or unroll.steps)


@dataclass(frozen=True, kw_only=True)
class MAMLConfig(StartConfig):
    """Second derivatives through the steps, which also teach learned rates and warp layers."""

    kind = MAML

    name: str = choice("maml")

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({START, WARP, UPDATES})


@dataclass(frozen=True, kw_only=True)
class FOMAMLConfig(StartConfig):
    """MAML without second derivatives."""

    kind = FOMAML

    name: str = choice("fomaml")


@dataclass(frozen=True, kw_only=True)
class ReptileConfig(StartConfig):
    """The start moves towards where the trajectories end."""

    kind = Reptile

    name: str = choice("reptile")


@dataclass(frozen=True, kw_only=True)
class LeapConfig(StartConfig):
    """The start moves so that the trajectories get shorter."""

    kind = Leap

    name: str = choice("leap")
