"""Fair comparison: the same held-out problems for all, baselines tuned, divergence shown, confidence said."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from l2l_runner.optimizees import Optimizee
from l2l_runner.optimizers import HandDesigned, Optimizer
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Tuning
from l2l_runner.unroll import start, unroll

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
    """

    losses: Tensor
    metrics: dict[str, Tensor]
    pictures: Tensor | None = None

    @property
    def sums(self) -> Tensor:
        """Sum of the losses met at each of the steps, f(θ_0) … f(θ_{T−1}); [problems]."""
        return self.losses[:-1].sum(0)

    @property
    def finals(self) -> Tensor:
        """Loss after the last step, f(θ_T); [problems]."""
        return self.losses[-1]

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

    Builds no graph; memory is that of one chunk, whatever the number of steps.
    """
    losses: list[Tensor] = []
    metrics: dict[str, list[Tensor]] = {}
    pictures: list[Tensor] = []
    for part in torch.split(seeds, max(1, chunk // optimizee.layout().size)):
        problem = optimizer.prepare(optimizee.sample(part, runtime))
        point = start(problem, optimizer)
        curve = torch.empty(steps + 1, len(part), dtype=torch.float64, device=runtime.device)
        curve[0] = point.loss
        for _, reached in unroll(problem, optimizer, point, steps):
            point = reached
            curve[point.step] = point.loss
            if on_step is not None:
                on_step()
        losses.append(curve.cpu())
        with torch.no_grad():
            params = problem.layout.views(point.params)
            for name, value in problem.metrics(params).items():
                metrics.setdefault(name, []).append(value.double().cpu())
            reached_pictures = problem.pictures(params)
        wanted = PICTURED - sum(map(len, pictures))
        if reached_pictures is not None and wanted > 0:
            pictures.append(reached_pictures[:wanted].cpu().clone())
    return Curves(
        torch.cat(losses, dim=1),
        {name: torch.cat(values) for name, values in metrics.items()},
        torch.cat(pictures) if pictures else None,
    )


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
    """

    optimizee: str
    curves: Mapping[str, Curves]
    rates: Mapping[str, float | None]
    sources: Mapping[str, Tensor] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The contract of comparison.json: see the README."""
        first = next(iter(self.curves.values()))
        reference = next(iter(self.curves))
        optimizers: dict[str, Any] = {}
        for name, curves in self.curves.items():
            optimizers[name] = {
                "lr": self.rates[name],
                "sum": mean_ci(curves.sums),
                "final": mean_ci(curves.finals),
                "diverged": int(curves.diverged.sum()),
                "curve": curves.losses.mean(1).tolist(),
                "ci95": confidence_band(curves.losses).tolist(),
                "metrics": {metric: mean_ci(values) for metric, values in curves.metrics.items()},
            }
            if name != reference:
                optimizers[name]["paired"] = {
                    "against": reference,
                    "sum": mean_ci(curves.sums - first.sums),
                    "final": mean_ci(curves.finals - first.finals),
                }
        steps, problems = first.losses.shape
        return {"optimizee": self.optimizee, "steps": steps - 1, "problems": problems, "optimizers": optimizers}


def confidence_band(losses: Tensor) -> Tensor:
    """Half-width of the 95 % confidence interval of the mean over problems, of losses [points, problems]."""
    n = losses.shape[1]
    return losses.std(1) * (float(stats.t.ppf(0.975, n - 1)) / math.sqrt(n)) if n > 1 else losses[:, 0] * 0


def summary_csv(summary: Mapping[str, Any]) -> str:
    """A comparison's summary as CSV, a row an optimizer."""
    buffer = io.StringIO()
    metrics = sorted({metric for entry in summary["optimizers"].values() for metric in entry["metrics"]})
    columns = ["optimizer", "lr", "sum_mean", "sum_ci95", "final_mean", "final_ci95", "diverged"]
    columns += [f"{metric}_{part}" for metric in metrics for part in ("mean", "ci95")]
    columns += ["optimizee", "steps", "problems", "curve"]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for name, entry in summary["optimizers"].items():
        row: dict[str, Any] = {"optimizer": name, "lr": entry["lr"], "diverged": entry["diverged"]}
        for key, value in {"sum": entry["sum"], "final": entry["final"], **entry["metrics"]}.items():
            row |= {f"{key}_mean": value["mean"], f"{key}_ci95": value["ci95"]}
        row |= {key: summary[key] for key in ("optimizee", "steps", "problems")}
        writer.writerow(row | {"curve": " ".join(f"{loss:.6g}" for loss in entry["curve"])})
    return buffer.getvalue()


def summary_table(summary: Mapping[str, Any]) -> str:
    """A comparison's summary as the table that is printed."""
    total = summary["problems"]
    rows = [["optimizer", "lr", "sum of losses", "final loss", "diverged"]]
    metrics = sorted({metric for entry in summary["optimizers"].values() for metric in entry["metrics"]})
    rows[0] += metrics
    for name, entry in summary["optimizers"].items():
        lr = "learned" if entry["lr"] is None else f"{entry['lr']:.3g}"
        row = [name, lr, with_ci(entry["sum"]), with_ci(entry["final"]), f"{entry['diverged']} of {total}"]
        rows.append(row + [with_ci(entry["metrics"][metric]) for metric in metrics])
    head = (
        f"{summary['optimizee']}, {total} held-out problems, {summary['steps']} steps, mean ± half of the 95 % "
        "confidence interval:"
    )
    return "\n".join([head, *align(rows)])


def with_ci(value: Mapping[str, float | None]) -> str:
    """A mean with its confidence interval, as it is printed."""
    mean, half = value["mean"], value["ci95"]
    if mean is None or not math.isfinite(mean):
        return "diverged"
    spread = "" if half is None or not math.isfinite(half) else f" ± {half:.2g}"
    return f"{mean:.4g}{spread}"


def align(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines of left-aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
