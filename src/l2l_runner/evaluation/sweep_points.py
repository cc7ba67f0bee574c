"""The jobs of a sweep as points of a picture: jobs that differ in their seed alone become one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from l2l_runner.evaluation.statistics import interval
from l2l_runner.plots.sweeps import SweepPoint
from l2l_runner.runs.reading import SweepJob


def sweep_points(jobs: Sequence[SweepJob], key: str) -> list[SweepPoint]:
    """Return what the jobs reached, for a picture.

    Where the seed is swept beside other keys, the jobs of all seeds are one point: the mean of their means, with its
    confidence interval over seeds. A job that failed or diverged stands for them.

    Args:
        jobs: with the values of the swept keys.
        key: what is drawn: final, sum, or a metric.
    """
    groups: dict[tuple[str, ...], list[SweepPoint]] = {}
    for job in jobs:
        values = {name: value for name, value in job.values.items() if name != "seed"} or job.values
        reached = job.figure(key)
        mean, ci95 = (math.nan, math.nan) if reached is None else (reached.mean, reached.ci95)
        groups.setdefault(tuple(values.values()), []).append(SweepPoint(values, job.status == "failed", mean, ci95))
    return [_over_seeds(points) for points in groups.values()]


def _over_seeds(points: Sequence[SweepPoint]) -> SweepPoint:
    """Return one point for those of several seeds."""
    lost = [point for point in points if not math.isfinite(point.mean)]
    if len(points) == 1 or lost:
        return (lost or points)[0]
    mean = interval([point.mean for point in points])
    return SweepPoint(points[0].values, False, mean.mean, mean.ci95)
