"""Imitation of a hand-designed optimizer (Chen et al. 2020, "Training Stronger Baselines for Learning to Optimize",
arXiv 2010.09089, section 3.3): off-policy steps that keep a learned optimizer near what is known to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.meta.base import Estimate, MetaGradient
from l2l_runner.meta.tbptt import TBPTT
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule, Optimizer
from l2l_runner.unroll import start, unroll


@dataclass(frozen=True, kw_only=True)
class Imitation(MetaGradient):
    """On a fraction of the meta-steps the distance to an expert's updates, on the others truncated BPTT.

    There an expert takes the steps, and the learned optimizer, which sees the same gradients, is trained on
    Σ_t ‖u_t − u_t^expert‖² / Σ_t ‖u_t^expert‖² of each window, the mean over problems. Its state goes on from window to
    window without its history. The trajectory is none of its doing, so a replay with the cotangents ∂/∂u_t gives the
    exact gradient.

    Attributes:
        tbptt: what is done on the others; its windows, samples of coordinates and chunks hold for both.
        expert: the optimizer to imitate.
        fraction: probability that a meta-step imitates, a function of the seed of its first problem.
    """

    shareable = True

    tbptt: TBPTT
    expert: Optimizer
    fraction: float

    @property
    def description(self) -> str:
        return f"{self.tbptt.description}, imitation {self.fraction:g}"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        if streams.uniform(seed.cpu(), 1, "imitation").item() < self.fraction:
            return self._imitations(optimizer, problem, seed)
        return self.tbptt._estimates(optimizer, problem, seed)

    def _imitations(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        point = start(problem, self.expert)
        state = optimizer.init(point.params)
        while point.step < self.tbptt.steps:
            begun, steps = state, min(self.tbptt.length, self.tbptt.steps - point.step)
            grads = point.grads.new_empty(steps, *point.grads.shape)
            losses = point.loss.new_empty(steps, len(point.loss))
            differences, scale = torch.empty_like(grads), torch.zeros_like(point.loss)
            for step, (expected, reached) in enumerate(unroll(problem, self.expert, point, steps)):
                with torch.no_grad():
                    update, state = optimizer.update(point.grads, state, point.params)
                grads[step], losses[step], differences[step] = point.grads, reached.loss, update - expected
                scale += expected.square().sum(-1)
                point = reached
            distance = (differences.square().sum((0, 2)) / scale).mean()
            cotangents = differences.mul_((2 / (scale * len(scale))).unsqueeze(-1))
            meta_grads = self.tbptt.replay(optimizer, seed, point.step, begun, grads, cotangents, _as_they_are)
            yield Estimate(distance, meta_grads, losses, imitates=True)


def _as_they_are(cotangents: Tensor) -> Tensor:
    return cotangents
