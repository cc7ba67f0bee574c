"""WarpGrad: the meta-gradient for warp layers φ (Flennerhag et al. 2019, arXiv 1909.00025, algorithms 1 and 2).

The meta-loss is the sum, over all points θ of the trajectories, of ℓ(θ − α∇ℓ(θ; φ); φ): one differentiable step from
each of them, on two fresh minibatches, and no back-propagation through a trajectory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.fields import at_least, choice
from l2l_runner.layout import Layout
from l2l_runner.meta.base import Estimate, Grads, MetaGradient, MetaTrainingConfig, Unroll, added
from l2l_runner.meta.starts import LeapPull, through_start
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import START, UPDATES, WARP, LearnedRule, RuleConfig
from l2l_runner.unroll import start, unroll


@dataclass(frozen=True, kw_only=True)
class WarpGrad(MetaGradient):
    """The meta-gradient for what the loss depends on beside the adapted parameters, constant along a trajectory.

    Attributes:
        steps: of a trajectory.
        algorithm: `online` accumulates the gradient along the trajectories, for one estimate (algorithm 1); `offline`
            stores them, and yields an estimate per minibatch of their points (algorithm 2).
        approximate: take the point after the step for a constant, which spares the second derivatives.
        batch: offline: points per estimate.
        epochs: offline: passes over the stored points.
        shuffle: offline: in random order; otherwise trajectory by trajectory, from start to end.
        every: offline: store each point (1), every second (2), …
        memory: offline: bytes for the stored points; where they need more, fewer are stored, evenly spaced.
        leap: learn the starting points too, by Leap.
    """

    steps: int
    algorithm: str
    approximate: bool
    batch: int
    epochs: int
    shuffle: bool
    every: int
    memory: int
    leap: bool

    @property
    def description(self) -> str:
        how = f", {self.epochs} epochs of points in batches of {self.batch}" if self.algorithm == "offline" else ""
        form = "approximate WarpGrad" if self.approximate else "WarpGrad"
        return f"{form}, {self.algorithm}{how}" + (", with Leap" if self.leap else "")

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        return self._online(optimizer, problem) if self.algorithm == "online" else self._offline(optimizer, problem)

    def stored(self, layout: Layout, problems: int, dtype: torch.dtype) -> range:
        """Return the steps of a trajectory whose points are stored."""
        size = layout.size * problems * dtype.itemsize
        return range(0, self.steps, max(self.every, -(-self.steps * size // self.memory)))

    def stores(self, layout: Layout, problems: int, dtype: torch.dtype) -> str:
        if self.algorithm == "online":
            return ""
        points = len(self.stored(layout, problems, dtype))
        size = points * layout.size * problems * dtype.itemsize
        return f"{points} points of each of {problems} trajectories, {size / 2**20:.3g} MB"

    def _online(self, optimizer: LearnedRule, problem: Problem) -> Iterator[Estimate]:
        point = start(problem, optimizer)
        pull, everyone = LeapPull(point), torch.arange(len(point.loss), device=point.loss.device)
        total: Grads = tuple(None for _ in optimizer.parameters())
        meta_losses = []
        for _, reached in unroll(problem, optimizer, point, self.steps):
            meta_loss, grads = self.from_points(optimizer, problem, point.params, everyone, point.step)
            total = added(total, tuple(None if grad is None else grad / self.steps for grad in grads))
            meta_losses.append(meta_loss)
            pull.add(point, reached)
            point = reached
        if self.leap:
            total = added(total, through_start(problem, optimizer, pull.cotangents(point) / len(point.loss)))
        yield Estimate(torch.stack(meta_losses).mean(), total, point.loss.unsqueeze(0))

    def _offline(self, optimizer: LearnedRule, problem: Problem) -> Iterator[Estimate]:
        point = start(problem, optimizer)
        pull = LeapPull(point)
        steps = self.stored(problem.layout, len(problem.seeds), point.params.dtype)
        points = point.params.new_empty(len(steps), *point.params.shape)
        for _, reached in unroll(problem, optimizer, point, self.steps):
            if point.step in steps:
                points[steps.index(point.step)] = point.params
            pull.add(point, reached)
            point = reached
        final = point.loss.unsqueeze(0)
        tasks = points.shape[1]
        for epoch in range(self.epochs):
            order = self._order(problem, len(steps), epoch)
            for number, rows in enumerate(torch.split(order, self.batch), epoch * -(-len(order) // self.batch)):
                params = points[rows // tasks, rows % tasks]
                meta_loss, grads = self.from_points(optimizer, problem, params, rows % tasks, number)
                yield Estimate(meta_loss, grads, final)
        if self.leap:
            grads = through_start(problem, optimizer, pull.cotangents(point) / tasks)
            yield Estimate(point.loss.mean(), grads, final)

    def _order(self, problem: Problem, steps: int, epoch: int) -> Tensor:
        """Return the order of a pass over the stored points: step · tasks + task of each, [steps · tasks]."""
        tasks = len(problem.seeds)
        if self.shuffle:
            return streams.uniform(problem.seeds[:1], steps * tasks, "replay", epoch)[0].argsort()
        return torch.arange(steps * tasks, device=problem.seeds.device).view(steps, tasks).T.flatten()

    def from_points(
        self, optimizer: LearnedRule, problem: Problem, params: Tensor, rows: Tensor, number: int
    ) -> tuple[Tensor, Grads]:
        """Return the mean of ℓ(θ − α∇ℓ(θ; φ); φ) over some points, and its gradients.

        Args:
            optimizer: takes the step, and has the parameters φ.
            problem: the tasks.
            params: the points θ, [points, coordinates], as constants.
            rows: the task of each point, [points].
            number: of this call; its two minibatches are shared with no other number, nor with a trajectory.
        """
        tasks, step = problem.take(rows), self.steps + 1 + 2 * number
        with torch.enable_grad():
            leaf = params.detach().requires_grad_()
            loss = tasks.loss(tasks.layout.views(leaf), step)
            (grads,) = torch.autograd.grad(loss.sum(), leaf, create_graph=not self.approximate)
            update, _ = optimizer.update(grads, optimizer.init(leaf), leaf)
            stepped = params + update
            if self.approximate:
                stepped = stepped.detach()
            meta_loss = tasks.loss(tasks.layout.views(stepped), step + 1).mean()
            found = torch.autograd.grad(meta_loss, list(optimizer.parameters()), allow_unused=True)
        return meta_loss.detach(), found


@dataclass(frozen=True, kw_only=True)
class WarpGradConfig(MetaTrainingConfig):
    """Meta-training of warp layers, and of the start by Leap where the optimizer learns one.

    Attributes:
        algorithm: online accumulates a meta-gradient along the trajectories, offline replays their points.
        approximate: leave out the second derivatives.
        batch: points of a replayed minibatch, each of which gives a meta-update.
        epochs: times that all points are replayed.
        shuffle: replay in random order; otherwise trajectory by trajectory.
        every: points of a trajectory that are stored for it: each (1), every second (2), …
        memory: megabytes that they may take; where they take more, fewer are stored, evenly spaced.
    """

    needs = frozenset({WARP})

    name: str = choice("warpgrad")
    algorithm: str = choice("online", "offline")
    approximate: bool
    batch: int = at_least(1)
    epochs: int = at_least(1)
    shuffle: bool
    every: int = at_least(1)
    memory: int = at_least(1)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({WARP, START, UPDATES})

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        return OFFLINE_ONLY_KEYS if self.algorithm == "online" else ()

    def estimator(self, unroll: Unroll, rule: RuleConfig) -> WarpGrad:
        if self.approximate and UPDATES in rule.learns:
            raise ConfigError(
                "meta.approximate=true takes steps for constants, from which optimizer.transform could learn nothing: "
                "use meta.approximate=false, or optimizer.transform=none."
            )
        return WarpGrad(
            steps=unroll.steps,
            algorithm=self.algorithm,
            approximate=self.approximate,
            batch=self.batch,
            epochs=self.epochs,
            shuffle=self.shuffle,
            every=self.every,
            memory=self.memory << 20,
            leap=START in rule.learns,
        )


OFFLINE_ONLY_KEYS = ("meta.batch", "meta.epochs", "meta.every", "meta.memory", "meta.shuffle")
"""Keys of the replay, which meta.algorithm=online has no use for."""
