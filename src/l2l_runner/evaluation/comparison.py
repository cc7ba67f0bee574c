"""The comparison of several optimizers on the same problems, and how it is written down."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from l2l_runner import plots
from l2l_runner.evaluation.curves import Curves
from l2l_runner.evaluation.statistics import align, confidence_band
from l2l_runner.files import write_atomically
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.results import Entry, MetricCurve, Paired, Summary


@dataclass(frozen=True)
class Comparison:
    """Several optimizers on the same problems; the first is the reference that the others are compared with.

    Attributes:
        optimizee: its name.
        curves: of each optimizer, by its name.
        rates: learning rates of hand-designed optimizers, by name; None for a learned one.
        sources: the pictures that the first problems were made from, by name, each [≤ PICTURED, 3, height, width].
        gain: what losses are minus of; None where they are losses.
    """

    optimizee: str
    curves: Mapping[str, Curves]
    rates: Mapping[str, float | None]
    sources: Mapping[str, Tensor] = field(default_factory=dict)
    gain: str | None = None

    def summary(self) -> Summary:
        """Return the means, confidence intervals and paired differences: the content of comparison.json."""
        reference, first = next(iter(self.curves.items()))
        entries = {
            name: _entry(curves, self.rates[name], None if name == reference else _paired(reference, curves, first))
            for name, curves in self.curves.items()
        }
        steps, problems = first.losses.shape
        tasks = None if first.tasks is None else len(torch.unique(first.tasks))
        return Summary(self.optimizee, steps - 1, problems, entries, self.gain, tasks)


def _entry(curves: Curves, lr: float | None, paired: Paired | None) -> Entry:
    readings = {
        name: MetricCurve(list(curves.read_at), curves.mean(area), *_band(curves.per_task(rows)))
        for (name, rows), area in zip(curves.readings.items(), curves.areas().values(), strict=True)
    }
    curve, ci95 = _band(curves.per_task(curves.losses))
    return Entry(
        lr=lr,
        sum=curves.mean(curves.sums),
        final=curves.mean(curves.finals),
        diverged=int(curves.diverged.sum()),
        curve=curve,
        ci95=ci95,
        metrics=curves.mean_metrics(),
        readings=readings,
        paired=paired,
    )


def _band(rows: Tensor) -> tuple[list[float], list[float]]:
    """Return the means of rows [points, problems] and the half-widths of their confidence intervals."""
    return rows.mean(1).tolist(), confidence_band(rows).tolist()


def _paired(reference: str, curves: Curves, first: Curves) -> Paired:
    metrics = {name: curves.mean(values - first.metrics[name]) for name, values in curves.metrics.items()}
    sums, finals = curves.mean(curves.sums - first.sums), curves.mean(curves.finals - first.finals)
    return Paired(reference, sums, finals, metrics)


def write(folder: RunFolder, comparison: Comparison) -> str:
    """Write comparison.json, .csv and .png, and pictures.png where problems are pictures.

    Returns:
        The table and the paths of the files, to be printed.
    """
    summary = comparison.summary()
    paths = [folder.write_json("comparison.json", summary.to_json()), folder.path / "comparison.csv"]
    write_atomically(paths[1], csv_of(summary).encode())
    paths.append(folder.draw(plots.comparison, "comparison.png", summary))
    reached = {name: curves.pictures for name, curves in comparison.curves.items() if curves.pictures is not None}
    if reached:
        losses = {name: comparison.curves[name].finals for name in reached}
        shown = (comparison.optimizee, comparison.sources, reached, losses, comparison.gain)
        paths.append(folder.draw(plots.pictures, "pictures.png", *shown))
    return table(summary) + "\n" + "\n".join(str(path) for path in paths)


def csv_of(summary: Summary) -> str:
    """Return a comparison as CSV, a row per optimizer."""
    buffer = io.StringIO()
    metrics, averaged = _columns(summary)
    columns = ["optimizer", "lr", "sum_mean", "sum_ci95", "final_mean", "final_ci95", "diverged"]
    columns += [f"{metric}_{part}" for metric in metrics for part in ("mean", "ci95")]
    columns += [f"mean_{metric}_{part}" for metric in averaged for part in ("mean", "ci95")]
    columns += ["optimizee", "steps", "problems", "curve"]
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for name, entry in summary.optimizers.items():
        row: dict[str, Any] = {"optimizer": name, "lr": entry.lr, "diverged": entry.diverged}
        areas = {f"mean_{metric}": read.mean for metric, read in entry.readings.items()}
        for key, value in {"sum": entry.sum, "final": entry.final, **entry.metrics, **areas}.items():
            row |= {f"{key}_mean": value.mean, f"{key}_ci95": value.ci95}
        row |= {"optimizee": summary.optimizee, "steps": summary.steps, "problems": summary.problems}
        writer.writerow(row | {"curve": " ".join(f"{loss:.6g}" for loss in entry.curve)})
    return buffer.getvalue()


def _columns(summary: Summary) -> tuple[list[str], list[str]]:
    """Return the metrics that any optimizer has at the last step, and those that were read along the way."""
    entries = summary.optimizers.values()
    return (
        sorted({metric for entry in entries for metric in entry.metrics}),
        sorted({metric for entry in entries for metric in entry.readings}),
    )


def table(summary: Summary) -> str:
    """Return a comparison as the table that is printed."""
    gain, sign = summary.gain, summary.sign
    rows = [["optimizer", "lr", f"sum of {gain}s" if gain else "sum of losses", f"final {gain or 'loss'}", "diverged"]]
    metrics, averaged = _columns(summary)
    rows[0] += metrics + [f"mean {metric}" for metric in averaged]
    for name, entry in summary.optimizers.items():
        lr = "learned" if entry.lr is None else f"{entry.lr:.3g}"
        row = [name, lr, entry.sum.shown(sign), entry.final.shown(sign), f"{entry.diverged} of {summary.problems}"]
        row += [entry.metrics[metric].shown() for metric in metrics]
        rows.append(row + [entry.readings[metric].mean.shown() for metric in averaged])
    of_tasks = "" if summary.tasks is None else f" of {summary.tasks} tasks"
    over = " over tasks" if of_tasks else ""
    head = (
        f"{summary.optimizee}, {summary.problems} held-out problems{of_tasks}, {summary.steps} steps, mean ± half of "
        f"the 95 % confidence interval{over}:"
    )
    return "\n".join([head, *align(rows)])
