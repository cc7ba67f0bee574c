"""Loss curves: comparisons, frames of meta-training, and the pictures that optimizers reached."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from l2l_runner.files import write_atomically
from l2l_runner.plots.style import LOOKS, draw_band, label_of, log_y, look_of, new_axes, png


class Reading(Protocol):
    """A metric that was read at `steps`: its means there, with half-widths of their 95 % confidence intervals."""

    @property
    def steps(self) -> Sequence[int]: ...
    @property
    def curve(self) -> Sequence[float]: ...
    @property
    def ci95(self) -> Sequence[float]: ...


class LossCurve(Protocol):
    """The mean losses of one optimizer, NaN where they are not finite."""

    @property
    def lr(self) -> float | None:
        """The learning rate; None for a learned optimizer."""

    @property
    def curve(self) -> Sequence[float]:
        """Mean losses f(θ_0) … f(θ_T), or those at `steps`."""

    @property
    def ci95(self) -> Sequence[float]:
        """Half-widths of their 95 % confidence intervals."""

    @property
    def diverged(self) -> int:
        """Number of problems that diverged."""

    @property
    def steps(self) -> Sequence[int] | None:
        """The steps of `curve`; None for all of them."""


class ReadCurve(LossCurve, Protocol):
    """A loss curve with metrics that were read along the trajectories."""

    @property
    def readings(self) -> Mapping[str, Reading]: ...


class Compared(Protocol):
    """Several optimizers on the same problems."""

    @property
    def optimizee(self) -> str: ...
    @property
    def steps(self) -> int: ...
    @property
    def problems(self) -> int: ...
    @property
    def tasks(self) -> int | None:
        """Number of tasks that the problems belong to; None where they belong to none."""

    @property
    def gain(self) -> str | None:
        """What the losses are minus of; None where they are losses."""

    @property
    def sign(self) -> int:
        """Factor by which losses are shown: −1 where they are minus a gain."""

    @property
    def optimizers(self) -> Mapping[str, ReadCurve]: ...


def draw_curves(
    axes: Axes, optimizers: Mapping[str, LossCurve], first: int = 0, legend: bool = True, sign: int = 1
) -> None:
    """Draw mean losses with their confidence bands on a logarithmic axis.

    The axis is cut where a diverging curve would press the others flat. It is linear where losses are negative, or
    minus a gain.

    Args:
        axes: the panel.
        optimizers: their curves; the first is drawn on top.
        first: the first step that is shown.
        legend: add a legend, with learning rates and numbers of diverged problems.
        sign: −1 where losses are minus a gain, which is drawn instead.
    """
    starts = []
    log = sign > 0 and not any(loss < 0 for entry in optimizers.values() for loss in entry.curve[first:])
    for name, entry in reversed(list(optimizers.items())):
        curve = sign * np.array(entry.curve, dtype=float)[first:]
        band = np.array(entry.ci95, dtype=float)[first:]
        steps = np.array(range(len(entry.curve)) if entry.steps is None else entry.steps)[first:]
        finite = np.isfinite(curve) & ((curve > 0) | (not log))
        starts.append(curve[0])
        label = label_of(name) + (f" (lr {entry.lr:.2g})" if entry.lr is not None else "")
        label += f", {entry.diverged} diverged" if entry.diverged else ""
        look = look_of(name, list(optimizers))
        axes.plot(steps[finite], curve[finite], label=label, linewidth=_width(entry), **look.style)
        low, high = np.maximum(curve - band, curve * 1e-2) if log else curve - band, curve + band
        shown = finite & np.isfinite(band)
        draw_band(axes, steps[shown], low[shown], high[shown], look.colour)
    if log:
        log_y(axes)
    ceiling = 3 * float(np.nanmax(starts)) if log and np.isfinite(starts).any() else None
    if ceiling is not None and axes.get_ylim()[1] > ceiling:
        axes.set_ylim(top=ceiling)
    axes.margins(x=0)
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False)


def _width(entry: LossCurve) -> float:
    """Return the width of a line in points: learned optimizers stand out."""
    return 2 if entry.lr is None else 1.4


def comparison(path: Path, summary: Compared) -> None:
    """Draw comparison.png: mean loss of every optimizer, and metrics read along the trajectories, against the step.

    Raises:
        StorageError: the file cannot be written.
    """
    optimizers = summary.optimizers
    metrics = list(dict.fromkeys(name for entry in optimizers.values() for name in entry.readings))
    figure = Figure(figsize=(7 + 4.2 * len(metrics), 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(metrics))
    of_tasks = "" if summary.tasks is None else f" of {summary.tasks} tasks"
    title = f"{summary.optimizee}: mean of {summary.problems} held-out problems{of_tasks}, 95 % confidence bands"
    axes = new_axes(figure, grid[0, 0], "step", summary.gain or "loss", title)
    draw_curves(axes, optimizers, sign=summary.sign)
    for column, metric in enumerate(metrics, 1):
        axes = new_axes(figure, grid[0, column], "step", metric.replace("_", " "), "")
        for name, entry in reversed(list(optimizers.items())):
            if metric not in entry.readings:
                continue
            reading, look = entry.readings[metric], look_of(name, list(optimizers))
            mean, band = np.array(reading.curve, dtype=float), np.array(reading.ci95, dtype=float)
            axes.plot(reading.steps, mean, linewidth=_width(entry), **look.style)
            draw_band(axes, reading.steps, mean - band, mean + band, look.colour)
        axes.margins(x=0)
    write_atomically(path, png(figure, 150))


def single_curve(path: Path, name: str, summary: Compared) -> None:
    """Draw curve.png: one hand-designed optimizer on the validation problems.

    Raises:
        StorageError: the file cannot be written.
    """
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    title = f"{summary.optimizee}: {label_of(name)}, mean of {summary.problems} validation problems"
    axes = new_axes(figure, 111, "step", summary.gain or "loss", title)
    draw_curves(axes, summary.optimizers, sign=summary.sign)
    write_atomically(path, png(figure, 150))


def learning(
    paths: Sequence[Path],
    step: int,
    total: int,
    validation: Compared,
    meta_losses: Sequence[tuple[int, float | None]],
    scores: Sequence[tuple[int, float | None, int]],
    score: str,
) -> None:
    """Draw one frame of meta-training: the comparison on validation problems, and the meta-loss so far.

    Args:
        paths: the files to write.
        step: meta-steps done.
        total: meta-steps to do.
        validation: the comparison; baselines may have longer curves than the learned optimizer.
        meta_losses: (meta-step, mean loss), None where it is not finite.
        scores: (meta-step, score, horizon) of the validations; only scores of one horizon are comparable.
        score: what is scored, final or sum.

    Raises:
        StorageError: a file cannot be written.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    gain, sign = validation.gain, validation.sign
    title = f"{validation.optimizee}, {validation.problems} validation problems × {validation.steps} steps, "
    axes = new_axes(figure, 121, "step", gain or "loss", f"{title}meta-step {step}")
    draw_curves(axes, validation.optimizers, sign=sign)
    axes = new_axes(figure, 122, "meta-step", gain or "loss", "meta-learning")
    x, y = np.array(meta_losses, dtype=float).reshape(-1, 2).T
    y = sign * y
    axes.plot(x, y, color="#bbbbbb", linewidth=0.7, label=f"meta-{gain or 'loss'} per step (fresh problems)")
    if len(y) >= 20:
        width = max(5, len(y) // 25)
        axes.plot(x, _running_median(y, width), color="#555555", linewidth=1.5, label=f"median of the last {width}")
    name = f"sum of {_plural(gain)}" if score == "sum" else f"final {gain or 'loss'}"
    drawn = y
    for horizon in sorted({horizon for _, _, horizon in scores}):
        points = [(k, sign * value) for k, value, at in scores if at == horizon and value is not None]
        xy = np.array(points, dtype=float).reshape(-1, 2)
        first = min(k for k, _, at in scores if at == horizon)
        label = None if first else f"validation: {name}"
        axes.plot(xy[:, 0], xy[:, 1], "o-", color=LOOKS["lstm"].colour, markersize=3, label=label)
        if first:  # a curriculum has moved on to longer trajectories
            axes.axvline(first, color="#999999", linewidth=1, linestyle=":")
            style: dict[str, Any] = {"rotation": 90, "va": "bottom", "fontsize": 8, "color": "#555555"}
            axes.annotate(f" {horizon} steps", (first, 0.02), xycoords=("data", "axes fraction"), **style)
        drawn = np.concatenate([drawn, xy[:, 1]])
    if not gain:
        log_y(axes)
        drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
        # The losses of an untrained optimizer would press the rest flat.
        if len(drawn) and drawn.max() > 1e3 * drawn.min():
            axes.set_ylim(0.8 * drawn.min(), 1e3 * drawn.min())
    axes.set_xlim(0, max(total, 1))
    axes.legend(fontsize=8, frameon=False)
    picture = png(figure, 90)
    for path in paths:
        write_atomically(path, picture)


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Return medians of the finite ones of the last `width` values; NaN where there are none."""
    windows = (values[max(0, i + 1 - width) : i + 1] for i in range(len(values)))
    finite = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else np.nan for window in finite])


def animation(path: Path, frames: Sequence[Path]) -> None:
    """Write the frames as one looping GIF, which stays longer on the last.

    Raises:
        StorageError: the file cannot be written.
    """
    pictures = [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for frame in frames]
    buffer = io.BytesIO()
    durations = [200] * (len(pictures) - 1) + [2500]
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    write_atomically(path, buffer.getvalue())


def pictures(
    path: Path,
    optimizee: str,
    sources: Mapping[str, ArrayLike],
    reached: Mapping[str, ArrayLike],
    losses: Mapping[str, ArrayLike],
    gain: str | None = None,
    problems: str = "held-out problems",
) -> None:
    """Draw pictures.png: per problem a row of its sources and of what each optimizer reached, with the final loss.

    Args:
        path: the file.
        optimizee: its name.
        sources: by name, each [problems, 3, height, width] in [0, 1].
        reached: likewise, by the optimizer's name.
        losses: final losses by the optimizer's name, each [problems or more].
        gain: what losses are minus of, which is written instead; None where they are losses.
        problems: what the rows are.

    Raises:
        StorageError: the file cannot be written.
    """
    columns = {name: np.asarray(images, dtype=float) for name, images in {**sources, **reached}.items()}
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.6 * len(columns), 1.75 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{optimizee}, {problems}: final {_plural(gain)}", fontsize=10, x=0.01, ha="left")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(label_of(name) if name in reached else name, fontsize=10)
        for row, (axes, image) in enumerate(zip(column, images, strict=True)):
            axes.imshow(np.nan_to_num(image.transpose(1, 2, 0)), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name in reached:
                loss = float(np.asarray(losses[name])[row]) * (-1 if gain else 1)
                axes.set_xlabel(f"{loss:.4g}" if np.isfinite(loss) else "diverged", fontsize=9, labelpad=2)
    write_atomically(path, png(figure, 150))


def _plural(gain: str | None) -> str:
    """Return the plural of what is shown: losses, or gains."""
    return f"{gain}s" if gain else "losses"
