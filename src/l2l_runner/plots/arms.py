"""Pictures of arms: an optimizer that learns beside the same one fixed, and reweighted beside plain training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2l_runner.files import write_atomically
from l2l_runner.plots.style import LOOKS, PALETTE, arm_label, draw_band, label_of, log_y, new_axes, png

ON, OFF = LOOKS["lstm"].colour, LOOKS["sgd"].colour
"""Colours of the arm with what is studied, and of the arm without."""


def online(path: Path, summary: Mapping[str, Any]) -> None:
    """Draw online.png: losses and metrics of both arms, and the rates that were learned.

    Args:
        path: the file.
        summary: the content of online.json, with NaN or None for what is not finite.

    Raises:
        StorageError: the file cannot be written.
    """
    arms = {name: arm for name, arm in summary["arms"].items() if arm["steps"]}
    rates: Mapping[str, Any] = next((arm["rates"] for arm in arms.values() if arm["rates"]), {})
    metrics = sorted({name for arm in arms.values() for name in arm["metrics"]})
    gain = summary["gain"]
    training = f"training {gain or 'loss'}"
    panels = [training, *metrics, *(["learned rates"] if rates else [])]
    figure = Figure(figsize=(1 + 4.2 * len(panels), 3.8), layout="constrained")
    grid = figure.add_gridspec(1, len(panels))
    styles = {"learning": (ON, "-"), "fixed": (OFF, "--")}
    title = f"{summary['optimizee']}, means over runs, 95 % confidence bands"
    for column, panel in enumerate(panels):
        axes = new_axes(figure, grid[0, column], "step", panel, title if column == 0 else "")
        if panel == "learned rates":
            _rates(axes, next(arm["steps"] for arm in arms.values() if arm["rates"]), rates)
            continue
        means = []
        for name, arm in arms.items():
            values = arm["loss"] if panel == training else arm["metrics"][panel]
            first = 1 if panel == training and len(values) > 2 else 0  # a single loss; the others are means
            mean, half = _means(values[first:])
            mean = -mean if gain and panel == training else mean
            steps = np.array(arm["steps"])[first:]
            means.append(mean[np.isfinite(mean)])
            colour, line = styles[name]
            label = f"{arm_label(summary['optimizer'], name)} (runs: {max(arm['runs'])})"
            axes.plot(steps, mean, line, color=colour, linewidth=1.8, label=label)
            draw_band(axes, steps, mean - half, mean + half, colour)
        drawn = np.concatenate(means)
        if panel == training:
            axes.legend(fontsize=8, frameon=False)
        if panel == training and not gain:
            log_y(axes)
            drawn = drawn[drawn > 0]
        # The means set the limits, because bands of few runs are wide.
        if len(drawn) and panel == training and not gain:
            axes.set_ylim(0.8 * drawn.min(), 1.25 * drawn.max())
        elif len(drawn) and np.ptp(drawn) > 0:
            axes.set_ylim(drawn.min() - 0.05 * np.ptp(drawn), drawn.max() + 0.05 * np.ptp(drawn))
    write_atomically(path, png(figure, 150))


def _rates(axes: Axes, steps: Sequence[int], rates: Mapping[str, Any]) -> None:
    """Draw the median learning rate of each tensor, with a band from the 10 % to the 90 % quantile."""
    for index, (name, quantiles) in enumerate(rates.items()):
        low, middle, high = np.array(quantiles, dtype=float).T
        colour, line = PALETTE[index % len(PALETTE)], ("-", "--", ":", "-.")[index // len(PALETTE) % 4]
        axes.plot(steps, middle, line, color=colour, linewidth=1.4, label=name)
        draw_band(axes, steps, low, high, colour, alpha=0.08)
    axes.set_title("median of each tensor, and the middle 80 %", fontsize=8, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(rates) // 20)


def reweighting(path: Path, summary: Mapping[str, Any]) -> None:
    """Draw reweighting.png: accuracy against the proportion of the frequent class, and against the step.

    Args:
        path: the file.
        summary: the content of reweighting.json, with NaN or None for what is not finite.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    entries = sorted(summary["proportions"], key=lambda entry: float(entry["proportion"]))
    styles = {"plain": (OFF, "s--", -0.06), "reweighted": (ON, "o-", 0.06)}
    problem = summary["settings"]["optimizee"]
    versus = " against ".join(map(str, problem["classes"]))
    title = f"{problem['data']}, {versus}: {summary['steps']} steps, 95 % confidence intervals over runs"
    axes = new_axes(figure, 121, "proportion of the frequent class", "accuracy on balanced test images", title)
    for arm, (colour, style, shift) in styles.items():
        # Proportions crowd towards 1, so they are drawn as categories; a shift keeps the intervals apart.
        done = [(x + shift, entry["arms"][arm]) for x, entry in enumerate(entries) if arm in entry["arms"]]
        if not done:
            continue
        means, half = _means([value for _, value in done])
        runs = max(len(value["accuracies"]) for _, value in done)
        label = f"{label_of(summary['optimizer'])}, {arm} ({runs} run{'s' * (runs > 1)})"
        axes.errorbar([x for x, _ in done], means, yerr=half, fmt=style, capsize=3, color=colour, label=label)
        known = [(x + 2 * shift, value["published"]) for x, value in done if value["published"] is not None]
        if known:
            xs, ys = zip(*known, strict=True)
            faint: dict[str, Any] = {"markerfacecolor": "none", "markersize": 5, "alpha": 0.5}
            axes.plot(xs, ys, "D", color=colour, label=f"{arm}, published", **faint)
    axes.set_xticks(range(len(entries)), [f"{entry['proportion']:.4g}" for entry in entries])
    axes.set_xlim(-0.5, len(entries) - 0.5)
    axes.set_ylim(0.45, 1.01)
    figure.legend(fontsize=8, frameon=False, loc="outside lower center", ncols=4)
    hardest = next((entry for entry in reversed(entries) if entry["arms"]), entries[-1])
    axes = new_axes(figure, 122, "step", "", f"at a proportion of {hardest['proportion']:.4g}")
    for arm, value in hardest["arms"].items():
        colour, style, _ = styles[arm]
        mean, half = _means(value["curve"])
        axes.plot(value["steps"], mean, style[1:], color=colour, linewidth=1.8)
        draw_band(axes, value["steps"], mean - half, mean + half, colour)
    axes.set_ylim(0.45, 1.01)
    axes.margins(x=0)
    write_atomically(path, png(figure, 150))


def _means(values: Sequence[Mapping[str, float | None]]) -> tuple[np.ndarray, np.ndarray]:
    """Return means and half-widths of their confidence intervals; NaN for lost means, 0 for unknown half-widths."""
    pairs = [(value["mean"], value["ci95"]) for value in values]
    mean, half = np.array(pairs, dtype=float).reshape(-1, 2).T
    return mean, np.where(np.isfinite(half), half, 0.0)
