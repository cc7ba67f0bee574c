"""The direct meta-gradient, by which warp layers learn online (Flennerhag et al. 2020, arXiv 1909.00025, algorithm 3).

Where a problem's loss depends directly on the optimizer's parameters φ, as with warp layers, ∂f(θ_t; φ)/∂φ is a
meta-gradient that needs no derivative through θ_t. One backward pass computes it together with the gradient of θ_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule
from l2l_runner.unroll import Point, start


@dataclass(frozen=True, kw_only=True)
class Direct(MetaGradient):
    """Σ_t ∂f(θ_t; φ)/∂φ over the steps of a window, mean over problems.

    Attributes:
        length: steps of a window.
        steps: steps of a trajectory.
    """

    length: int
    steps: int

    @property
    def description(self) -> str:
        return f"direct gradients, gathered over {self.length} steps"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        return (estimate for estimate, _ in self.windows(optimizer, problem, start(problem, optimizer)))

    def windows(self, optimizer: LearnedRule, problem: Problem, point: Point) -> Iterator[tuple[Estimate, Point]]:
        """Yield the estimate of each window from `point` on, and the point where the window ends."""
        learned = list(optimizer.parameters())
        while point.step < self.steps:
            sums = [torch.zeros_like(parameter) for parameter in learned]
            losses = []
            for _ in range(min(self.length, self.steps - point.step)):
                with torch.no_grad():
                    update, state = optimizer.update(point.grads, point.state, point.params)
                params = (point.params + update).requires_grad_()
                loss = problem.loss(problem.layout.views(params), point.step + 1)
                grads, *direct = torch.autograd.grad(loss.sum(), [params, *learned])  # both in one backward pass
                sums = [total + grad / len(loss) for total, grad in zip(sums, direct, strict=True)]
                point = Point(point.step + 1, params.detach(), state, loss.detach(), grads)
                losses.append(point.loss)
            stacked = torch.stack(losses)
            yield Estimate(stacked.mean(1).sum(), tuple(sums), stacked), point
