"""Truncated back-propagation through time: the meta-gradient of Andrychowicz et al. 2016 (arXiv 1606.04474).

The meta-loss of a trajectory is Σ_{t=1}^{T} w_t f(θ_t), each loss counted once. A window of K steps from θ_s has the
losses f(θ_{s+1}) … f(θ_{s+K}), so that its last update too gets a gradient; θ and the optimizer's state go on to the
next window without their history.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedOptimizer
from l2l_runner.unroll import Graph, Point, start, unroll


def loss_weights(kind: str, steps: int) -> Tensor:
    """The weights w_1 … w_T of the losses, [steps], with mean 1: constant, linear (∝ t) or final (the last alone)."""
    if kind == "constant":
        return torch.ones(steps)
    if kind == "linear":
        return torch.arange(1, steps + 1) * (2 / (steps + 1))
    return torch.zeros(steps).index_fill(0, torch.tensor(steps - 1), steps)


@dataclass(frozen=True, kw_only=True)
class TBPTT(MetaGradient):
    """Truncated BPTT.

    Without second derivatives the gradients that the optimizer sees are constants, and then no backward pass through
    the optimizee is needed (`engine="replay"`): θ_s = θ_0 + Σ_{t<s} u_t, so ∂L/∂u_t = Σ_{s>t} w_s ∇f(θ_s), a reverse
    cumulative sum of gradients that the forward pass has computed anyway. `engine="graph"` differentiates the whole
    window, and is the reference.

    Attributes:
        length: steps of a window; the last window of a trajectory may be shorter.
        steps: steps of a trajectory.
        weights: constant, linear or final.
        second_order: keep the derivatives of the gradients with respect to the parameters.
        engine: replay or graph.
    """

    length: int
    steps: int
    weights: str = "constant"
    second_order: bool = False
    engine: str = "replay"

    def estimates(self, optimizer: LearnedOptimizer, problem: Problem) -> Iterator[Estimate]:
        point = start(problem, optimizer)
        all_weights = loss_weights(self.weights, self.steps).to(point.params)
        window = self._replay if self.engine == "replay" else self._differentiate
        while point.step < self.steps:
            weights = all_weights[point.step : point.step + self.length]
            estimate, point = window(optimizer, problem, point, weights)
            yield estimate

    def _replay(
        self, optimizer: LearnedOptimizer, problem: Problem, point: Point, weights: Tensor
    ) -> tuple[Estimate, Point]:
        updates, points = zip(*unroll(problem, optimizer, point, len(weights), Graph.OPTIMIZER), strict=True)
        weighted = torch.stack([point.grads for point in points]) * (weights / len(point.params)).view(-1, 1, 1)
        to_come = weighted.flip(0).cumsum(0).flip(0)  # ∂(meta-loss)/∂u_t, [steps, problems, coordinates]
        grads = torch.autograd.grad(updates, list(optimizer.parameters()), list(to_come))
        return _estimate(points, weights, grads), points[-1].detach()

    def _differentiate(
        self, optimizer: LearnedOptimizer, problem: Problem, point: Point, weights: Tensor
    ) -> tuple[Estimate, Point]:
        graph = Graph.SECOND_ORDER if self.second_order else Graph.FIRST_ORDER
        points = [point for _, point in unroll(problem, optimizer, point, len(weights), graph)]
        meta_loss = _meta_loss(torch.stack([point.loss for point in points]), weights)
        grads = torch.autograd.grad(meta_loss, list(optimizer.parameters()))
        return _estimate(points, weights, grads), points[-1].detach()


def _meta_loss(losses: Tensor, weights: Tensor) -> Tensor:
    return (losses * weights.unsqueeze(1)).sum(0).mean()


def _estimate(points: list[Point] | tuple[Point, ...], weights: Tensor, grads: tuple[Tensor, ...]) -> Estimate:
    losses = torch.stack([point.loss.detach() for point in points])
    return Estimate(_meta_loss(losses, weights), grads, losses)
