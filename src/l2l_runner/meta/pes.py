"""Persistent evolution strategies (Vicol, Metz & Sohl-Dickstein 2021, "Unbiased Gradient Estimation in Unrolled
Computation Graphs with Persistent Evolution Strategies", arXiv 2112.13835, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.fields import above, at_least, choice
from l2l_runner.meta.base import Estimate, MetaGradient, Unroll, UnrolledMetaConfig, loss_weights, weighted_mean
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule, RuleConfig
from l2l_runner.unroll import Point, start, unroll


@dataclass(frozen=True, kw_only=True)
class PES(MetaGradient):
    """Antithetic pairs of trajectories with perturbed parameters, φ ± ε; no backward pass.

    A window's estimate is 1/(2σ² pairs) Σ_i ξ_i (L_i⁺ − L_i⁻), where L_i^± are its meta-losses on the trajectories of
    pair i, and ξ_i is the sum of all perturbations of pair i since its start, including those of this window. So the
    effect of earlier windows on this one counts: the sum over windows is an unbiased estimate of the gradient of the
    whole trajectory's meta-loss, smoothed by the perturbations. Each trajectory keeps its own parameters and state from
    window to window, so that memory holds 2 · pairs of them.

    Attributes:
        length: steps of a window; the last window of a trajectory may be shorter.
        steps: steps of a trajectory.
        weights: constant, linear or final.
        pairs: antithetic pairs.
        sigma: standard deviation of the perturbations, which are drawn anew in each window.
    """

    shareable = True

    length: int
    steps: int
    weights: str = "constant"
    pairs: int
    sigma: float

    @property
    def description(self) -> str:
        return f"windows of {self.length}, {self.pairs} antithetic pairs with sigma {self.sigma:g}"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        point = start(problem, optimizer)
        all_weights = loss_weights(self.weights, self.steps).to(point.params)
        parameters = list(optimizer.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        pairs = [(point, point) for _ in range(self.pairs)]
        totals = torch.zeros(self.pairs, sum(sizes)).to(parameters[0])  # ξ
        for step in range(0, self.steps, self.length):
            weights = all_weights[step : step + self.length]
            losses = point.loss.new_zeros(len(weights), len(point.loss))
            differences = torch.zeros_like(totals[:, 0])
            for i, (plus, minus) in enumerate(pairs):
                noise = self.sigma * streams.normal(seed, sum(sizes), f"perturbation {i}", step)
                perturbation = noise[0].to(totals)
                plus, losses_plus = _run(problem, optimizer, perturbation, plus, len(weights))
                minus, losses_minus = _run(problem, optimizer, -perturbation, minus, len(weights))
                pairs[i] = plus, minus
                totals[i] += perturbation
                differences[i] = weighted_mean(losses_plus - losses_minus, weights)
                losses += (losses_plus + losses_minus) / (2 * self.pairs)
            grads = torch.split(differences @ totals / (2 * self.sigma**2 * self.pairs), sizes)
            shaped = tuple(grad.view_as(parameter) for grad, parameter in zip(grads, parameters, strict=True))
            yield Estimate(weighted_mean(losses, weights), shaped, losses)


def _run(
    problem: Problem, optimizer: LearnedRule, perturbation: Tensor, point: Point, steps: int
) -> tuple[Point, Tensor]:
    """Return the point that a trajectory reaches with perturbed parameters, and its losses [steps, problems]."""
    losses = point.loss.new_empty(steps, len(point.loss))
    with _perturbed(optimizer, perturbation):
        for step, (_, reached) in enumerate(unroll(problem, optimizer, point, steps)):
            point, losses[step] = reached, reached.loss
    return point, losses


@contextmanager
def _perturbed(optimizer: LearnedRule, perturbation: Tensor) -> Iterator[None]:
    parameters = [parameter.detach() for parameter in optimizer.parameters()]
    before = [parameter.clone() for parameter in parameters]
    for parameter, part in zip(parameters, torch.split(perturbation, [p.numel() for p in parameters]), strict=True):
        parameter += part.view_as(parameter)
    try:
        yield
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True, kw_only=True)
class PESConfig(UnrolledMetaConfig):
    """Meta-training by persistent evolution strategies.

    Attributes:
        pairs: antithetic pairs of trajectories with perturbed parameters.
        sigma: standard deviation of the perturbations.
    """

    name: str = choice("pes")
    pairs: int = at_least(1)
    sigma: float = above(0)

    def estimator(self, unroll: Unroll, rule: RuleConfig) -> PES:
        return PES(length=unroll.length, steps=unroll.steps, weights=self.weights, pairs=self.pairs, sigma=self.sigma)
