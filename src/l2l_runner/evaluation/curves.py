"""Fair comparison: the same held-out problems for all, baselines tuned, divergence shown, confidence said."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from l2l_runner import distributed
from l2l_runner.optimizees import Optimizee, Problem
from l2l_runner.optimizers import HandDesigned, Optimizer
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Tuning
from l2l_runner.unroll import Point, start, unroll

PICTURED = 4
"""The first so many problems of a run keep the pictures that were reached, where problems are pictures."""

# A problem counts as diverged when a loss isn't finite, or when its last loss is this many times its first.
DIVERGED = 100.0


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
        """The curves of all problems, from those of some."""
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
        """The mean of each metric over the steps, by the trapezoidal rule between its readings; each [problems]."""
        at = torch.tensor(self.read_at, dtype=torch.float64)
        return {name: torch.trapezoid(rows, at, dim=0) / at[-1] for name, rows in self.readings.items()}

    def mean(self, values: Tensor) -> dict[str, float]:
        """Mean of values [problems] and its confidence interval, as of what is `per_task`; see `mean_ci`."""
        return mean_ci(self.per_task(values))

    def mean_metrics(self) -> dict[str, dict[str, float]]:
        """The mean of each metric at θ_T, with its confidence interval."""
        return {name: self.mean(values) for name, values in self.metrics.items()}

    @property
    def diverged(self) -> Tensor:
        """Which problems diverged, bool [problems]."""
        finite = torch.isfinite(self.losses).all(0)
        return ~finite | (self.losses[-1] > DIVERGED * self.losses[0].abs())

    def score(self, kind: str) -> float:
        """What selections minimise: the mean `final` loss or `sum` of losses; infinite where it isn't finite."""
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


def tune(
    baseline: HandDesigned, score: Callable[[HandDesigned], float], tuning: Tuning
) -> tuple[HandDesigned, list[tuple[float, float]]]:
    """The baseline at its best learning rate, and the (rate, score) pairs tried, in order of rate.

    A logarithmic grid over [low, high], then `refinements` times the two rates half-way to the best one's
    neighbours. A rate that diverges scores infinity.
    """
    if not tuning.enabled:
        return baseline, []
    ratio = 10 ** (1 / tuning.per_decade)
    count = math.floor(math.log(tuning.high / tuning.low, ratio) + 1e-9)
    scores: dict[float, float] = {}

    def attempt(lr: float) -> None:
        scores[lr] = score(replace(baseline, lr=lr))

    for power in range(count + 1):
        attempt(tuning.low * ratio**power)
    for _ in range(tuning.refinements):
        ratio = math.sqrt(ratio)
        best = min(scores, key=lambda lr: scores[lr])
        attempt(best / ratio)
        attempt(best * ratio)
    return replace(baseline, lr=min(scores, key=lambda lr: scores[lr])), sorted(scores.items())


def mean_ci(values: Tensor) -> dict[str, float]:
    """Mean and half-width of its 95 % confidence interval (Student's t) of values [problems]."""
    n = len(values)
    half = float(stats.t.ppf(0.975, n - 1)) * values.std().item() / math.sqrt(n) if n > 1 else math.nan
    return {"mean": values.mean().item(), "ci95": half}


@dataclass(frozen=True)
class Comparison:
    """Several optimizers on the same problems; the first is the one that the others are compared with.

    Attributes:
        optimizee: its name.
        curves: of each optimizer, by its name.
        rates: the hand-designed ones' learning rates, by name; None for a learned optimizer.
        sources: the pictures that the first problems were made from, by name, each [≤ PICTURED, 3, height, width].
        gain: the optimizee's, where losses are minus a gain.
    """

    optimizee: str
    curves: Mapping[str, Curves]
    rates: Mapping[str, float | None]
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    gain: str | None = None

    def summary(self) -> dict[str, Any]:
        """The contract of comparison.json: see the README."""
        first = next(iter(self.curves.values()))
        reference = next(iter(self.curves))
        optimizers: dict[str, Any] = {}
        for name, curves in self.curves.items():
            per_task = curves.per_task
            optimizers[name] = {
                "lr": self.rates[name],
                "sum": curves.mean(curves.sums),
                "final": curves.mean(curves.finals),
                "diverged": int(curves.diverged.sum()),
                **_curve(per_task(curves.losses)),
                "metrics": curves.mean_metrics(),
            }
            if curves.readings:
                optimizers[name]["readings"] = {
                    metric: {"steps": curves.read_at, "mean": curves.mean(area), **_curve(per_task(rows))}
                    for (metric, rows), area in zip(curves.readings.items(), curves.areas().values(), strict=True)
                }
            if name != reference:
                optimizers[name]["paired"] = {
                    "against": reference,
                    "sum": curves.mean(curves.sums - first.sums),
                    "final": curves.mean(curves.finals - first.finals),
                    **{
                        metric: curves.mean(values - first.metrics[metric]) for metric, values in curves.metrics.items()
                    },
                }
        steps, problems = first.losses.shape
        gain = {} if self.gain is None else {"gain": self.gain}
        tasks = {} if first.tasks is None else {"tasks": len(torch.unique(first.tasks))}
        about = {"optimizee": self.optimizee, **gain, "steps": steps - 1, "problems": problems, **tasks}
        return {**about, "optimizers": optimizers}


def _curve(rows: Tensor) -> dict[str, list[float]]:
    """The mean and the confidence band of rows [points, problems]."""
    return {"curve": rows.mean(1).tolist(), "ci95": confidence_band(rows).tolist()}


def confidence_band(losses: Tensor) -> Tensor:
    """Half-width of the 95 % confidence interval of the mean over problems, of losses [points, problems]."""
    n = losses.shape[1]
    return losses.std(1) * (float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)) if n > 1 else losses[:, 0] * 0


def summary_csv(summary: Mapping[str, Any]) -> str:
    """A comparison's summary as CSV, a row an optimizer."""
    buffer = io.StringIO()
    metrics, averaged = _columns(summary)
    columns = ["optimizer", "lr", "sum_mean", "sum_ci95", "final_mean", "final_ci95", "diverged"]
    columns += [f"{metric}_{part}" for metric in metrics for part in ("mean", "ci95")]
    columns += [f"mean_{metric}_{part}" for metric in averaged for part in ("mean", "ci95")]
    columns += ["optimizee", "steps", "problems", "curve"]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for name, entry in summary["optimizers"].items():
        row: dict[str, Any] = {"optimizer": name, "lr": entry["lr"], "diverged": entry["diverged"]}
        areas = {f"mean_{metric}": read["mean"] for metric, read in entry.get("readings", {}).items()}
        for key, value in {"sum": entry["sum"], "final": entry["final"], **entry["metrics"], **areas}.items():
            row |= {f"{key}_mean": value["mean"], f"{key}_ci95": value["ci95"]}
        row |= {key: summary[key] for key in ("optimizee", "steps", "problems")}
        writer.writerow(row | {"curve": " ".join(f"{loss:.6g}" for loss in entry["curve"])})
    return buffer.getvalue()


def _columns(summary: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The metrics that any optimizer has, and those that were read on the way."""
    entries = summary["optimizers"].values()
    return (
        sorted({metric for entry in entries for metric in entry["metrics"]}),
        sorted({metric for entry in entries for metric in entry.get("readings", {})}),
    )


def summary_table(summary: Mapping[str, Any]) -> str:
    """A comparison's summary as the table that is printed."""
    total = summary["problems"]
    gain = summary.get("gain")
    rows = [["optimizer", "lr", f"sum of {gain}s" if gain else "sum of losses", f"final {gain or 'loss'}", "diverged"]]
    metrics, averaged = _columns(summary)
    rows[0] += metrics + [f"mean {metric}" for metric in averaged]
    for name, entry in summary["optimizers"].items():
        lr = "learned" if entry["lr"] is None else f"{entry['lr']:.3g}"
        figures = [with_ci(entry[kind], sign=-1 if gain else 1) for kind in ("sum", "final")]
        row = [name, lr, *figures, f"{entry['diverged']} of {total}"]
        row += [with_ci(entry["metrics"][metric]) for metric in metrics]
        rows.append(row + [with_ci(entry["readings"][metric]["mean"]) for metric in averaged])
    of_tasks = f" of {summary['tasks']} tasks" if "tasks" in summary else ""
    over = " over tasks" if of_tasks else ""
    head = (
        f"{summary['optimizee']}, {total} held-out problems{of_tasks}, {summary['steps']} steps, mean ± half of the "
        f"95 % confidence interval{over}:"
    )
    return "\n".join([head, *align(rows)])


def with_ci(value: Mapping[str, float | None], sign: int = 1) -> str:
    """A mean with its confidence interval, as it is printed; of losses that are minus a gain with the sign −1."""
    mean, half = value["mean"], value["ci95"]
    if mean is None or not math.isfinite(mean):
        return "diverged"
    spread = "" if half is None or not math.isfinite(half) else f" ± {half:.2g}"
    return f"{sign * mean:.4g}{spread}"


def align(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of left-aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
