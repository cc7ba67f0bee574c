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

from l2l_runner import streams
from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedOptimizer
from l2l_runner.unroll import Graph, Point, start, unroll


def loss_weights(kind: str, steps: int) -> Tensor:
    """The weights w_1 … w_T of the losses, [steps], with mean 1: constant, linear (∝ t) or final (the last alone)."""
    if kind == "constant":
        return torch.ones(steps)
    if kind == "linear":
        return torch.arange(1, steps + 1, dtype=torch.float64) * (2 / (steps + 1))
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
        coordinates: replay a random sample of so many coordinates; None replays all. A coordinatewise optimizer's
            meta-gradient is a sum over coordinates, so a sample estimates it without bias, at a fraction of the cost.
    """

    length: int
    steps: int
    weights: str = "constant"
    second_order: bool = False
    engine: str = "replay"
    coordinates: int | None = None

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
        sampled = self.coordinates is not None and self.coordinates < point.params.numel()
        graph = Graph.NONE if sampled else Graph.OPTIMIZER
        updates, points = zip(*unroll(problem, optimizer, point, len(weights), graph), strict=True)
        weighted = torch.stack([point.grads for point in points]) * (weights / len(point.params)).view(-1, 1, 1)
        to_come = weighted.flip(0).cumsum(0).flip(0)  # ∂(meta-loss)/∂u_t, [steps, problems, coordinates]
        if sampled:
            updates, to_come = self._replay_sample(optimizer, problem, point, points, to_come)
        grads = torch.autograd.grad(updates, list(optimizer.parameters()), list(to_come))
        return _estimate(points, weights, grads), points[-1].detach()

    def _replay_sample(
        self, optimizer: LearnedOptimizer, problem: Problem, point: Point, points: tuple[Point, ...], to_come: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """The updates of a sample of coordinates, with their graph, and what they are to be multiplied with.

        Coordinates are drawn in proportion to their largest ∂(meta-loss)/∂u_t (and a tenth of its mean, so that none
        is impossible) by systematic sampling, and weighted by the inverse: the sum stays unbiased.
        """
        assert self.coordinates is not None
        size = to_come.abs().amax(0).flatten().double()
        share = size + 0.1 * size.mean() + torch.finfo(torch.float32).tiny
        cumulative = share.cumsum(0)
        offset = streams.uniform(problem.seeds[:1], 1, "coordinates", point.step).squeeze()
        ticks = (torch.arange(self.coordinates, device=size.device) + offset) * (cumulative[-1] / self.coordinates)
        columns = torch.searchsorted(cumulative, ticks).clamp(max=len(size) - 1)
        scale = (cumulative[-1] / (self.coordinates * share[columns])).to(to_come.dtype)
        state = optimizer.select(point.state, columns)
        updates: list[Tensor] = []
        for before in (point, *points[:-1]):
            grads, params = (tensor.flatten()[columns].unsqueeze(0) for tensor in (before.grads, before.params))
            update, state = optimizer.update(grads, state, params)
            updates.append(update)
        return tuple(updates), to_come.flatten(1)[:, columns].mul(scale).unsqueeze(1)

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
