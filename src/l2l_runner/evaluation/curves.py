"""Running an optimizer on problems: its losses, metrics and pictures along the trajectories."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l2l_runner import distributed
from l2l_runner.evaluation.statistics import interval
from l2l_runner.optimizees import Optimizee, Problem
from l2l_runner.optimizers import Optimizer
from l2l_runner.runs.results import Interval
from l2l_runner.runtime import Runtime
from l2l_runner.unroll import Point, start, unroll

PICTURED = 4
"""The number of problems whose pictures are kept, where problems are pictures."""

DIVERGED = 100.0
"""A problem diverged when a loss is not finite, or when its last loss is over this many times its first."""


@dataclass(frozen=True)
class Curves:
    """What a run has reached, on the CPU.

    Attributes:
        losses: [steps + 1, problems] (float64), at θ_0 … θ_T.
        metrics: at θ_T, each [problems] (float64).
        pictures: θ_T of the first problems [≤ PICTURED, 3, height, width]; None where they are no pictures.
        tasks: the task of each problem [problems], where they belong to tasks.
        read_at: steps at which the metrics were read on the way, if they were.
        readings: the metrics there, each [readings, problems] (float64).
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    pictures: Tensor | None = None
    tasks: Tensor | None = None
    read_at: tuple[int, ...] = ()
    readings: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def joined(cls, parts: Sequence[Curves]) -> Curves:
        """Join the curves of parts of the problems into those of all."""
        if len(parts) == 1:
            return parts[0]
        pictures = [part.pictures for part in parts if part.pictures is not None]
        return cls(
            torch.cat([part.losses for part in parts], dim=1),
            {name: torch.cat([part.metrics[name] for part in parts]) for name in parts[0].metrics},
            torch.cat(pictures)[:PICTURED] if pictures else None,
            None if parts[0].tasks is None else torch.cat([part.tasks for part in parts if part.tasks is not None]),
            parts[0].read_at,
            {name: torch.cat([part.readings[name] for part in parts], dim=1) for name in parts[0].readings},
        )

    @property
    def sums(self) -> Tensor:
        """Sum of the losses met at each of the steps, f(θ_0) … f(θ_{T−1}); [problems]."""
        return self.losses[:-1].sum(0)

    @property
    def finals(self) -> Tensor:
        """Loss after the last step, f(θ_T); [problems]."""
        return self.losses[-1]

    def per_task(self, values: Tensor) -> Tensor:
        """Values [..., problems] as independent ones: their means over the problems of each task, [..., tasks].

        Problems of one task are alike, and more of them say nothing about other tasks.
        """
        if self.tasks is None:
            return values
        _, place, counts = torch.unique(self.tasks, return_inverse=True, return_counts=True)
        totals = values.new_zeros(*values.shape[:-1], len(counts))
        means: Tensor = totals.index_add_(-1, place, values) / counts
        return means

    def areas(self) -> dict[str, Tensor]:
        """Return each metric's mean over the steps [problems], by the trapezoidal rule between its readings."""
        at = torch.tensor(self.read_at, dtype=torch.float64)
        return {name: torch.trapezoid(rows, at, dim=0) / at[-1] for name, rows in self.readings.items()}

    def mean(self, values: Tensor) -> Interval:
        """Return the mean of values [problems] with its confidence interval, over tasks where there are tasks."""
        return interval(self.per_task(values))

    def mean_metrics(self) -> dict[str, Interval]:
        """Return the mean of each metric at θ_T, with its confidence interval."""
        return {name: self.mean(values) for name, values in self.metrics.items()}

    @property
    def diverged(self) -> Tensor:
        """Which problems diverged, bool [problems]."""
        finite = torch.isfinite(self.losses).all(0)
        return ~finite | (self.losses[-1] > DIVERGED * self.losses[0].abs())

    def score(self, kind: str) -> float:
        """Return what selections minimise: the mean `final` loss or `sum` of losses; infinite if it is not finite."""
        mean = (self.finals if kind == "final" else self.sums).mean().item()
        return mean if math.isfinite(mean) else math.inf


def run(
    optimizer: Optimizer,
    optimizee: Optimizee,
    seeds: Tensor,
    steps: int,
    runtime: Runtime,
    chunk: int,
    on_step: Callable[[], object] | None = None,
) -> Curves:
    """Run an optimizer on the problems of `seeds`, all at once or as many as make up `chunk` coordinates.

    Builds no graph; memory is that of one chunk, whatever the number of steps. Several processes share the problems,
    and each gets the curves of all.
    """
    own = seeds[distributed.shard(len(seeds))]
    curves = _run(optimizer, optimizee, own, steps, runtime, chunk, on_step) if len(own) else None
    return Curves.joined([part for part in distributed.all_gather_objects(curves) if part is not None])


def _run(
    optimizer: Optimizer,
    optimizee: Optimizee,
    seeds: Tensor,
    steps: int,
    runtime: Runtime,
    chunk: int,
    on_step: Callable[[], object] | None,
) -> Curves:
    parts: list[Curves] = []
    every = optimizee.metrics_every
    read_at = [step for step in range(steps) if every is not None and step % every == 0]
    read_at.append(steps)
    for part in torch.split(seeds, max(1, chunk // optimizee.layout().size)):
        problem = optimizer.adapt(optimizee.sample(part, runtime))
        point = start(problem, optimizer)
        curve = torch.empty(steps + 1, len(part), dtype=torch.float64, device=runtime.device)
        curve[0] = point.loss
        read = [_metrics(problem, point)] if 0 in read_at else []
        for _, reached in unroll(problem, optimizer, point, steps):
            point = reached
            curve[point.step] = point.loss
            if on_step is not None:
                on_step()
            if point.step in read_at:
                read.append(_metrics(problem, point))
        with torch.no_grad():
            pictures = problem.pictures(problem.layout.views(point.params))
        rows = {name: torch.stack([row[name] for row in read]) for name in read[-1]} if every is not None else {}
        parts.append(
            Curves(
                curve.cpu(),
                read[-1],
                None if pictures is None else pictures[:PICTURED].cpu().clone(),
                None if problem.tasks is None else problem.tasks.cpu(),
                tuple(read_at) if every is not None else (),
                rows,
            )
        )
    return Curves.joined(parts)


def _metrics(problem: Problem, point: Point) -> dict[str, Tensor]:
    with torch.no_grad():
        read = problem.metrics(problem.layout.views(point.params))
    return {name: value.double().cpu() for name, value in read.items()}
