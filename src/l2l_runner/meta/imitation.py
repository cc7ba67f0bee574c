"""Imitation of a hand-designed optimizer (Chen et al. 2020, "Training Stronger Baselines for Learning to Optimize",
arXiv 2010.09089, section 3.3): off-policy steps that keep a learned optimizer close to one that is known to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, choice, within
from l2l_runner.meta.base import Estimate, MetaGradient, Unroll, UnrolledMetaConfig
from l2l_runner.meta.tbptt import TBPTT
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule, Optimizer, RuleConfig
from l2l_runner.optimizers.hand_designed import Adam
from l2l_runner.unroll import start, unroll


@dataclass(frozen=True, kw_only=True)
class Imitation(MetaGradient):
    """The distance to an expert's updates on a fraction of the meta-steps, and truncated BPTT on the others.

    On that fraction an expert takes the steps. The learned optimizer sees the same gradients, and is trained on
    Σ_t ‖u_t − u_t^expert‖² / Σ_t ‖u_t^expert‖² of each window, mean over problems. Its state passes from window to
    window without its history. The trajectory does not depend on its updates, so that a replay with the cotangents
    ∂/∂u_t gives the exact gradient.

    Attributes:
        tbptt: the estimator of the other meta-steps; its windows, samples of coordinates and chunks are used by both.
        expert: the optimizer to imitate.
        fraction: probability that a meta-step imitates; whether it does follows from the meta-step's seed.
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


@dataclass(frozen=True, kw_only=True)
class TBPTTConfig(UnrolledMetaConfig):
    """Meta-training by truncated back-propagation through time, on some of the meta-steps by imitation of Adam.

    Attributes:
        imitation: fraction of the meta-steps that train on the distance to Adam's updates instead of on the meta-loss.
        expert_lr: learning rate of that Adam.
        second_order: keep the derivatives of the optimizee's gradients.
        engine: replay or graph (see meta/tbptt.py); auto takes replay where it holds.
        coordinates: replay a random sample of so many coordinates per window (unbiased), of groups so many of each;
            null for all.
        chunk: coordinates replayed at once, which bounds memory; null for as many as suit the kernel.
    """

    name: str = choice("tbptt")
    imitation: float = within(0, 1)
    expert_lr: float = above(0)
    second_order: bool
    engine: str = choice("auto", "replay", "graph")
    coordinates: int | None = at_least(1)
    chunk: int | None = at_least(1)

    def estimator(self, unroll: Unroll, rule: RuleConfig) -> MetaGradient:
        if self.second_order and self.engine == "replay":
            raise ConfigError(
                "meta.engine=replay cannot be combined with meta.second_order=true, because the replay holds gradients "
                "constant: use meta.engine=auto or meta.engine=graph."
            )
        if self.weights == "final" and unroll.length < unroll.steps:
            raise ConfigError(
                f"meta.weights=final leaves every window but the last without a gradient (unroll.length="
                f"{unroll.length} of unroll.steps={unroll.steps}): use unroll=full, or meta.weights=linear."
            )
        replays = not self.second_order and self.engine != "graph"
        if self.coordinates is not None and not (replays and rule.coordinatewise):
            raise ConfigError(
                f"meta.coordinates={self.coordinates} samples the coordinates of a replay, which needs "
                "meta.second_order=false, meta.engine=auto or replay, and a coordinatewise optimizer: change these, "
                "or use meta.coordinates=null."
            )
        engine = ("graph" if self.second_order else "replay") if self.engine == "auto" else self.engine
        tbptt = TBPTT(
            length=unroll.length,
            steps=unroll.steps,
            weights=self.weights,
            second_order=self.second_order,
            engine=engine,
            coordinates=self.coordinates,
            chunk=self.chunk,
        )
        if not self.imitation:
            return tbptt
        adam = Adam(lr=self.expert_lr, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
        return Imitation(tbptt=tbptt, expert=adam, fraction=self.imitation)
