"""Pictures of sweeps: what the jobs reached against the swept values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from l2l_runner.files import write_atomically
from l2l_runner.plots.style import LOOKS, PALETTE, label_of, log_y, new_axes, png

FAILED, DIVERGED = "failed", "diverged"
MARKERS = {FAILED: "P", DIVERGED: "X"}
"""Markers at the top of a panel, for jobs without a mean."""


@dataclass(frozen=True)
class SweepPoint:
    """What a job of a sweep reached.

    Attributes:
        values: of the swept keys.
        failed: whether the job failed, so that it has no mean.
        mean: NaN where the job failed or diverged.
        ci95: half-width of the mean's 95 % confidence interval; NaN where it is unknown.
    """

    values: Mapping[str, str]
    failed: bool = False
    mean: float = nan
    ci95: float = nan


def sweep(path: Path, final: Sequence[SweepPoint], metrics: Mapping[str, Sequence[SweepPoint]]) -> None:
    """Draw sweep.png: final loss and metrics at the last step against the swept values.

    Args:
        path: the file.
        final: final losses of the jobs.
        metrics: by name, of the same jobs.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7 + 4.5 * len(metrics), 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(metrics))
    axes = new_axes(figure, grid[0, 0], "", "final loss", "validation problems, 95 % confidence intervals")
    draw_sweep(axes, final)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)
    for column, (metric, points) in enumerate(metrics.items(), 1):
        axes = new_axes(figure, grid[0, column], "", metric.replace("_", " "), "after the last step")
        draw_sweep(axes, points, losses=False)
    write_atomically(path, png(figure, 150))


def draw_sweep(axes: Axes, points: Sequence[SweepPoint], losses: bool = True) -> None:
    """Draw the means of jobs against a swept value, with a line for each value of the other keys.

    A numeric key is the abscissa, logarithmic where it is positive. Jobs without a mean are crosses at the top.

    Args:
        axes: the panel.
        points: the jobs; all have values of the same keys.
        losses: the means are losses, so that the axis is logarithmic unless one is negative.
    """
    keys = sorted(points[0].values, key=lambda key: not _numeric([point.values[key] for point in points]))
    key, others = keys[0], keys[1:]
    axes.set_xlabel(key)
    lines: dict[str, list[SweepPoint]] = {}
    for point in points:
        lines.setdefault(_line_label(point, others), []).append(point)
    values = [point.values[key] for point in points]
    categories = list(dict.fromkeys(values))
    numeric = _numeric(values)
    abscissa = {value: float(value) if numeric else index for index, value in enumerate(categories)}
    reached = [point for point in points if isfinite(point.mean)]
    known = [abscissa[point.values[key]] for point in reached]
    logarithmic = numeric and min(known or abscissa.values()) > 0
    if logarithmic:  # a rejected value that a logarithmic axis cannot hold is put left of the others
        left = min(x for x in abscissa.values() if x > 0) / 3
        abscissa = {value: x if x > 0 else left for value, x in abscissa.items()}
    log_losses = losses and min((point.mean for point in reached), default=0) >= 0  # others are minus a gain
    for index, (label, members) in enumerate(lines.items()):
        look = LOOKS.get(members[0].values.get("optimizer", ""))
        style: dict[str, Any] = {
            "color": look.colour if look else PALETTE[index % len(PALETTE)],
            "linestyle": ("-", "--", ":")[index // len(PALETTE) % 3],
        }
        drawn = sorted((abscissa[p.values[key]], p.mean, p.ci95) for p in members if isfinite(p.mean))
        if drawn:
            xs, means, halves = np.array(drawn).T
            halves = np.nan_to_num(halves)
            low = np.minimum(halves, 0.9 * means) if log_losses else halves  # a logarithmic axis has no loss below 0
            error: dict[str, Any] = {"yerr": np.stack([np.maximum(low, 0), halves]), "capsize": 3}
            axes.errorbar(xs, means, marker="o", label=label or None, **style, **error)
        elif label:
            axes.plot([], [], marker="o", label=label, **style)
        for point in members:
            if not isfinite(point.mean):
                _mark_lost(axes, abscissa[point.values[key]], 1 - 0.05 * index % 1, point.failed, style["color"])
                if logarithmic and float(point.values[key]) <= 0:
                    place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
                    at = (abscissa[point.values[key]], 0.02)
                    axes.annotate(point.values[key], at, fontsize=8, color="#444444", **place)
    for fate in sorted({FAILED if point.failed else DIVERGED for point in points if not isfinite(point.mean)}):
        axes.plot([], [], MARKERS[fate], color="#444444", markersize=7, label=fate)
    if logarithmic:
        axes.set_xscale("log")
        if len(categories) <= 8:  # few enough to write them all
            axes.set_xticks(list(abscissa.values()), categories)
            axes.xaxis.set_minor_locator(NullLocator())
    elif not numeric:
        axes.set_xticks(range(len(categories)), categories)
    positive = [point.mean for point in reached if point.mean > 0]
    if log_losses and positive:
        log_y(axes)
        axes.set_ylim(0.5 * min(positive), 2 * max(positive))  # intervals of few problems are wide


def _line_label(point: SweepPoint, keys: Sequence[str]) -> str:
    """Return the label of the line that a point belongs to; empty where there is one line alone."""
    if keys == ["optimizer"] and point.values["optimizer"] in LOOKS:
        return label_of(point.values["optimizer"])
    return ", ".join(f"{key}={point.values[key]}" for key in keys)


def _mark_lost(axes: Axes, x: float, y: float, failed: bool, colour: str) -> None:
    """Mark a job without a mean, at a height of the panel between 0 and 1."""
    place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.plot([x], [y], MARKERS[FAILED if failed else DIVERGED], color=colour, markersize=7, **place)


def _numeric(values: Sequence[str]) -> bool:
    """Return whether all values are finite numbers."""
    try:
        return all(isfinite(float(value)) for value in values)
    except ValueError:
        return False
