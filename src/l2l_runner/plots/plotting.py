"""Pictures. One colour an optimizer, everywhere; safe for colour-blind readers (Okabe & Ito 2008, and of Paul Tol)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from PIL import Image
from scipy import stats
from torch import Tensor

from l2l_runner.files import write_atomically

COLOURS = {
    "lstm": "#D55E00",
    "groups": "#D55E00",
    "rnnprop": "#56B4E9",
    "warp_rnn": "#D55E00",
    "sgd": "#999999",
    "momentum": "#F0E442",
    "nag": "#009E73",
    "rms": "#CC79A7",
    "adam": "#0072B2",
    "none": "#666666",
    "warp_leap": "#882255",
    "warp": "#E69F00",
    "leap": "#332288",
    "reptile": "#999933",
    "fomaml": "#56B4E9",
    "maml": "#AA4499",
    "finetune": "#117733",
}
STYLES: dict[str, Any] = {
    "lstm": "-",
    "groups": "-",
    "rnnprop": "-",
    "warp_rnn": "-",
    "sgd": (0, (1, 1)),
    "momentum": (0, (5, 2)),
    "nag": (0, (5, 2)),
    "rms": (0, (3, 1, 1, 1)),
    "adam": "--",
    "none": (0, (1, 1)),
    "warp_leap": "-",
    "warp": "-",
    "leap": "--",
    "reptile": (0, (5, 2)),
    "fomaml": (0, (3, 1, 1, 1)),
    "maml": "-.",
    "finetune": (0, (5, 1, 1, 1, 1, 1)),
}
LABELS = {
    "lstm": "LSTM",
    "groups": "LSTMs",
    "rnnprop": "RNNprop",
    "warp_rnn": "Warp-RNN",
    "sgd": "SGD",
    "momentum": "Momentum",
    "nag": "NAG",
    "rms": "RMSprop",
    "adam": "Adam",
    "none": "no meta-training",
    "warp_leap": "Warp-Leap",
    "warp": "WarpGrad",
    "leap": "Leap",
    "reptile": "Reptile",
    "fomaml": "FOMAML",
    "maml": "MAML",
    "finetune": "fine-tuning",
}

FIXED = {"warp_rnn": "plain RNN"}
"""What optimizers are that don't learn, where they have a name of their own."""

OTHERS = ("#000000", "#8C510A", "#5E3C99", "#B2182B", "#666666")
"""Colours of optimizers that have none of their own, such as a second LSTM."""


def new_axes(figure: Figure, position: Any, xlabel: str, ylabel: str, title: str) -> Axes:
    """A panel of a figure, in the look that all pictures share."""
    axes: Axes = figure.add_subplot(position)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def png(figure: Figure, dpi: int) -> bytes:
    """A figure as the content of a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def draw_curves(
    axes: Axes, optimizers: Mapping[str, Any], first: int = 0, legend: bool = True, gain: str | None = None
) -> None:
    """Mean losses with their confidence bands on a log axis, cut where a diverging one leaves the picture.

    Where some are negative the axis is linear.

    Args:
        axes: where.
        optimizers: of a comparison's summary; where an entry has `steps`, its curve is known at these alone.
        first: the first step that is shown.
        legend: say which line is whose, with learning rates and numbers of diverged problems.
        gain: what losses are minus of, which is drawn instead.
    """
    starts = []
    means = [x for entry in optimizers.values() for x in entry["curve"][first:] if x is not None]
    log = gain is None and not any(x < 0 for x in means)
    for name, entry in reversed(list(optimizers.items())):  # the first is drawn last, on top
        curve = np.array([np.nan if x is None else x for x in entry["curve"]], dtype=float)[first:]
        curve = curve if gain is None else -curve
        band = np.array([np.nan if x is None else x for x in entry["ci95"]], dtype=float)[first:]
        finite = np.isfinite(curve) & ((curve > 0) | (not log))
        starts.append(curve[0])
        label = LABELS.get(name, name) + (f" (lr {entry['lr']:.2g})" if entry["lr"] is not None else "")
        label += f", {entry['diverged']} diverged" if entry["diverged"] else ""
        style = style_of(name, list(optimizers))
        steps = np.array(entry.get("steps", range(first + len(curve))))[first:]
        axes.plot(steps[finite], curve[finite], label=label, linewidth=2 if entry["lr"] is None else 1.4, **style)
        low, high = np.maximum(curve - band, curve * 1e-2) if log else curve - band, curve + band
        shown = finite & np.isfinite(band)
        axes.fill_between(steps[shown], low[shown], high[shown], color=style["color"], alpha=0.2, linewidth=0)
    if log:
        axes.set_yscale("log")
    ceiling = 3 * float(np.nanmax(starts)) if log and np.isfinite(starts).any() else None
    if ceiling is not None and axes.get_ylim()[1] > ceiling:
        axes.set_ylim(top=ceiling)
    axes.margins(x=0)
    if legend:
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], fontsize=8, frameon=False)


def style_of(name: str, names: Sequence[str]) -> dict[str, Any]:
    """Colour and line of an optimizer among others: its own where it has one, else one by its place."""
    if name.lower() in COLOURS:  # a second one may be called LSTM, say
        return {"color": COLOURS[name.lower()], "linestyle": STYLES[name.lower()]}
    strangers = [other for other in names if other.lower() not in COLOURS]
    place = strangers.index(name)
    return {"color": OTHERS[place % len(OTHERS)], "linestyle": ("-", "--", ":")[place // len(OTHERS) % 3]}


def comparison(path: Path, summary: Mapping[str, Any], note: str = "") -> None:
    """comparison.png: every optimizer's mean loss, and what was read on the way, against the step, with 95 % bands."""
    optimizers = summary["optimizers"]
    metrics = list(dict.fromkeys(name for entry in optimizers.values() for name in entry.get("readings", {})))
    figure = Figure(figsize=(7 + 4.2 * len(metrics), 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(metrics))
    problems = f"{summary['problems']} held-out problems" + (
        f" of {summary['tasks']} tasks" if "tasks" in summary else ""
    )
    title = f"{summary['optimizee']}: mean of {problems}, 95 % confidence bands{note}"
    gain = summary.get("gain")
    draw_curves(new_axes(figure, grid[0, 0], "step", gain or "loss", title), optimizers, gain=gain)
    for place, metric in enumerate(metrics, 1):
        axes = new_axes(figure, grid[0, place], "step", metric.replace("_", " "), "")
        for name, entry in reversed(list(optimizers.items())):
            if metric not in entry.get("readings", {}):
                continue
            read, style = entry["readings"][metric], style_of(name, list(optimizers))
            mean, band = (np.array(read[key], dtype=float) for key in ("curve", "ci95"))
            axes.plot(read["steps"], mean, linewidth=2 if entry["lr"] is None else 1.4, **style)
            axes.fill_between(read["steps"], mean - band, mean + band, color=style["color"], alpha=0.2, linewidth=0)
        axes.margins(x=0)
    write_atomically(path, png(figure, 150))


def pictures(
    path: Path,
    optimizee: str,
    sources: Mapping[str, Tensor],
    reached: Mapping[str, Tensor],
    losses: Mapping[str, Tensor],
    gain: str | None = None,
    problems: str = "held-out problems",
) -> None:
    """pictures.png: a row a problem; what it was made from, and what each optimizer made of it, with its final loss.

    Args:
        path: the file.
        optimizee: its name.
        sources: by name, each [problems, 3, height, width] in [0, 1].
        reached: likewise, by the optimizer's name.
        losses: the final ones, by the optimizer's name, each [problems or more].
        gain: what losses are minus of, which is written instead.
        problems: what the rows are.
    """
    columns = {**sources, **reached}
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(1.6 * len(columns), 1.75 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{optimizee}, {problems}: final {_plural(gain)}", fontsize=10, x=0.01, ha="left")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (name, images) in zip(grid.T, columns.items(), strict=True):
        column[0].set_title(LABELS.get(name, name) if name in reached else name, fontsize=10)
        for row, (axes, image) in enumerate(zip(column, images, strict=True)):
            axes.imshow(np.nan_to_num(image.permute(1, 2, 0).double().numpy()), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name in reached:
                loss = losses[name][row].item() * (-1 if gain else 1)
                axes.set_xlabel(f"{loss:.4g}" if np.isfinite(loss) else "diverged", fontsize=9, labelpad=2)
    write_atomically(path, png(figure, 150))


def learning(
    paths: Sequence[Path],
    step: int,
    total: int,
    validation: Mapping[str, Any],
    meta_losses: Sequence[tuple[int, float | None]],
    scores: Sequence[tuple[int, float | None, int]],
    score: str,
) -> None:
    """One frame of the learning while it learns: the comparison on validation problems, and the meta-loss so far.

    Args:
        paths: the files to write.
        step: meta-steps done.
        total: meta-steps to do.
        validation: a comparison's summary; trained baselines may have longer curves than the learned optimizer.
        meta_losses: (meta-step, mean loss).
        scores: (meta-step, score, horizon) of the validations; only those of one horizon are comparable.
        score: what is scored, final or sum.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    title = f"{validation['optimizee']}, {validation['problems']} validation problems × {validation['steps']} steps, "
    gain = validation.get("gain")
    axes = new_axes(figure, 121, "step", gain or "loss", f"{title}meta-step {step}")
    draw_curves(axes, validation["optimizers"], gain=gain)
    axes = new_axes(figure, 122, "meta-step", gain or "loss", "meta-learning")
    sign = -1 if gain else 1
    x = np.array([k for k, _ in meta_losses], dtype=float)
    y = np.array([np.nan if v is None else sign * v for _, v in meta_losses], dtype=float)
    axes.plot(x, y, color="#bbbbbb", linewidth=0.7, label=f"meta-{gain or 'loss'} a step (fresh problems)")
    if len(y) >= 20:
        width = max(5, len(y) // 25)
        axes.plot(x, _running_median(y, width), color="#555555", linewidth=1.5, label=f"its median of the last {width}")
    name = f"sum of {_plural(gain)}" if score == "sum" else f"final {gain or 'loss'}"
    drawn = y
    for horizon in sorted({horizon for _, _, horizon in scores}):
        points = [(k, sign * v) for k, v, at in scores if at == horizon and v is not None]
        xy = np.array(points, dtype=float).reshape(-1, 2)
        first = min(k for k, _, at in scores if at == horizon)
        label = None if first else f"validation: {name}"
        axes.plot(xy[:, 0], xy[:, 1], "o-", color=COLOURS["lstm"], markersize=3, label=label)
        if first:  # a curriculum has gone on to longer trajectories
            axes.axvline(first, color="#999999", linewidth=1, linestyle=":")
            style: dict[str, Any] = {"rotation": 90, "va": "bottom", "fontsize": 8, "color": "#555555"}
            axes.annotate(f" {horizon} steps", (first, 0.02), xycoords=("data", "axes fraction"), **style)
        drawn = np.concatenate([drawn, xy[:, 1]])
    if not gain:
        axes.set_yscale("log")
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if (
        not gain and len(drawn) and drawn.max() > 1e3 * drawn.min()
    ):  # an untrained optimizer's losses would press the rest flat
        axes.set_ylim(0.8 * drawn.min(), 1e3 * drawn.min())
    axes.set_xlim(0, max(total, 1))
    axes.legend(fontsize=8, frameon=False)
    picture = png(figure, 90)
    for path in paths:
        write_atomically(path, picture)


def _plural(gain: str | None) -> str:
    """What losses are called that are minus a gain, if they are."""
    return f"{gain}s" if gain else "losses"


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Medians of the finite ones of the last `width` values; NaN where there is none."""
    windows = (values[max(0, i + 1 - width) : i + 1] for i in range(len(values)))
    finite = (window[np.isfinite(window)] for window in windows)
    return np.array([np.median(window) if len(window) else np.nan for window in finite])


def animation(path: Path, frames: Sequence[Path]) -> None:
    """The frames as one looping GIF; the last stays longer."""
    pictures = [Image.open(frame).convert("P", palette=Image.Palette.ADAPTIVE, colors=64) for frame in frames]
    buffer = io.BytesIO()
    durations = [200] * (len(pictures) - 1) + [2500]
    pictures[0].save(buffer, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    write_atomically(path, buffer.getvalue())


def single_curve(path: Path, name: str, summary: Mapping[str, Any]) -> None:
    """curve.png: one hand-designed optimizer on the validation problems."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    title = f"{summary['optimizee']}: {LABELS.get(name, name)}, mean of {summary['problems']} validation problems"
    gain = summary.get("gain")
    draw_curves(new_axes(figure, 111, "step", gain or "loss", title), summary["optimizers"], gain=gain)
    write_atomically(path, png(figure, 150))


def arm_label(optimizer: str, arm: str) -> str:
    """What the arm `learning` or `fixed` of an optimizer is called."""
    name = LABELS.get(optimizer, optimizer)
    return FIXED[optimizer] if arm == "fixed" and optimizer in FIXED else f"{name}, {arm}"


def online(path: Path, summary: Mapping[str, Any]) -> None:
    """online.png: what an optimizer that learns does beside the same one fixed, and the rates that it has learned."""
    arms = {name: arm for name, arm in summary["arms"].items() if arm["steps"]}
    rates: Mapping[str, Any] = next((arm["rates"] for arm in arms.values() if arm["rates"]), {})
    metrics = sorted({name for arm in arms.values() for name in arm["metrics"]})
    gain = summary.get("gain")
    training = f"training {gain or 'loss'}"
    panels = [training, *metrics, *(["learned rates"] if rates else [])]
    figure = Figure(figsize=(1 + 4.2 * len(panels), 3.8), layout="constrained")
    grid = figure.add_gridspec(1, len(panels))
    styles = {"learning": (COLOURS["lstm"], "-"), "fixed": (COLOURS["sgd"], "--")}
    title = f"{summary['optimizee']}, means over runs, 95 % confidence bands"
    for place, panel in enumerate(panels):
        axes = new_axes(figure, grid[0, place], "step", panel, title if place == 0 else "")
        if panel == "learned rates":
            _rates(axes, next(arm["steps"] for arm in arms.values() if arm["rates"]), rates)
            continue
        means = []
        for name, arm in arms.items():
            values = arm["loss"] if panel == training else arm["metrics"][panel]
            first = 1 if panel == training and len(values) > 2 else 0  # a single loss, the others are means
            mean = np.array([np.nan if v["mean"] is None else v["mean"] for v in values], dtype=float)[first:]
            mean = -mean if gain and panel == training else mean
            half = np.array([v["ci95"] or 0.0 for v in values], dtype=float)[first:]
            half[~np.isfinite(half)] = 0.0
            steps = np.array(arm["steps"])[first:]
            means.append(mean[np.isfinite(mean)])
            colour, style = styles[name]
            label = f"{arm_label(summary['optimizer'], name)} (runs: {max(arm['runs'])})"
            axes.plot(steps, mean, style, color=colour, linewidth=1.8, label=label)
            axes.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
        drawn = np.concatenate(means)
        if panel == training:
            axes.legend(fontsize=8, frameon=False)
        if panel == training and not gain:
            axes.set_yscale("log")
            drawn = drawn[drawn > 0]
        # The means set the limits: bands of few runs are wide.
        if len(drawn) and panel == training and not gain:
            axes.set_ylim(0.8 * drawn.min(), 1.25 * drawn.max())
        elif len(drawn) and np.ptp(drawn) > 0:
            axes.set_ylim(drawn.min() - 0.05 * np.ptp(drawn), drawn.max() + 0.05 * np.ptp(drawn))
    write_atomically(path, png(figure, 150))


def _rates(axes: Axes, steps: Sequence[int], rates: Mapping[str, Any]) -> None:
    """The median learning rate of each tensor, and the band of the middle four fifths."""
    palette = [COLOURS[key] for key in ("adam", "lstm", "nag", "rms", "sgd", "momentum")]
    for index, (name, quantiles) in enumerate(rates.items()):
        low, middle, high = np.array(quantiles, dtype=float).T
        colour, style = palette[index % len(palette)], ("-", "--", ":", "-.")[index // len(palette) % 4]
        axes.plot(steps, middle, style, color=colour, linewidth=1.4, label=name)
        axes.fill_between(steps, low, high, color=colour, alpha=0.08, linewidth=0)
    axes.set_title("of each tensor the median, and the middle four fifths", fontsize=8, loc="left")
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + len(rates) // 20)


def reweighting(path: Path, summary: Mapping[str, Any]) -> None:
    """reweighting.png: accuracy against the proportion of the frequent class, and over the steps at the highest one."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    entries = sorted(summary["proportions"], key=lambda entry: float(entry["proportion"]))
    styles = {"plain": (COLOURS["sgd"], "s--", -0.06), "reweighted": (COLOURS["lstm"], "o-", 0.06)}
    problem = summary["settings"]["optimizee"]
    versus = " against ".join(map(str, problem["classes"]))
    title = f"{problem['data']}, {versus}: {summary['steps']} steps, 95 % confidence intervals over runs"
    axes = new_axes(figure, 121, "proportion of the frequent class", "accuracy on balanced test images", title)
    for arm, (colour, style, shift) in styles.items():
        # Proportions crowd towards 1, so they stand as categories, evenly spaced; side by side, intervals can be read.
        done = [(x + shift, entry["arms"][arm]) for x, entry in enumerate(entries) if arm in entry["arms"]]
        if not done:
            continue
        error = [value["ci95"] if np.isfinite(value["ci95"]) else 0.0 for _, value in done]
        means = [value["mean"] for _, value in done]
        runs = max(len(value["accuracies"]) for _, value in done)
        label = f"{LABELS.get(summary['optimizer'], summary['optimizer'])}, {arm} ({runs} run{'s' * (runs > 1)})"
        axes.errorbar([x for x, _ in done], means, yerr=error, fmt=style, capsize=3, color=colour, label=label)
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
        mean = np.array([point["mean"] for point in value["curve"]])
        half = np.nan_to_num(np.array([point["ci95"] for point in value["curve"]], dtype=float))
        axes.plot(value["steps"], mean, style[1:], color=colour, linewidth=1.8)
        axes.fill_between(value["steps"], mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    axes.set_ylim(0.45, 1.01)
    axes.margins(x=0)
    write_atomically(path, png(figure, 150))


def sweep(path: Path, swept: Sequence[str], jobs: Sequence[Mapping[str, Any]]) -> None:
    """sweep.png: final loss, and whatever else the jobs have read at the end, against the swept values."""
    metrics = sorted({metric for job in jobs for metric in job["metrics"]})
    figure = Figure(figsize=(7 + 4.5 * len(metrics), 4.6), layout="constrained")
    grid = figure.add_gridspec(1, 1 + len(metrics))
    axes = new_axes(figure, grid[0, 0], "", "final loss", "validation problems, 95 % confidence intervals")
    draw_sweep(axes, swept, jobs, "final")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=False)
    for place, metric in enumerate(metrics, 1):
        axes = new_axes(figure, grid[0, place], "", metric.replace("_", " "), "after the last step")
        draw_sweep(axes, swept, [{**job, metric: job["metrics"].get(metric)} for job in jobs], metric)
    write_atomically(path, png(figure, 150))


def over_seeds(swept: Sequence[str], jobs: Sequence[Mapping[str, Any]], key: str) -> list[Mapping[str, Any]]:
    """Jobs that differ in their seed alone as one, with the mean of their means and its confidence interval over seeds.

    Where one of them has failed or diverged, it stands for all.
    """
    others = [name for name in swept if name != "seed"]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for job in jobs:
        groups.setdefault(tuple(job["values"][name] for name in others), []).append(job)
    merged: list[Mapping[str, Any]] = []
    for members in groups.values():
        lost = [job for job in members if not job[key] or job[key]["mean"] is None]
        if len(members) == 1 or lost:
            merged.append((lost or members)[0])
            continue
        means = np.array([job[key]["mean"] for job in members], dtype=float)
        half = float(stats.t.ppf(0.975, len(means) - 1)) * means.std(ddof=1) / len(means) ** 0.5
        merged.append({**members[0], key: {"mean": float(means.mean()), "ci95": float(half)}})
    return merged


def draw_sweep(axes: Axes, swept: Sequence[str], jobs: Sequence[Mapping[str, Any]], key: str) -> None:
    """Jobs' losses against a swept value, a line for each value of the others; who has none, as a cross at the top.

    Args:
        axes: where.
        swept: the swept keys; a numeric one is the abscissa, logarithmic where it is positive.
        jobs: each with `values` of these keys, `status`, and at `key` a mean with its confidence interval, or None.
        key: of the jobs: final, sum, or a metric, whose axis is linear.
    """
    if "seed" in swept and len(swept) > 1:
        swept, jobs = [name for name in swept if name != "seed"], over_seeds(swept, jobs, key)
    names = sorted(swept, key=lambda name: not _numeric([job["values"][name] for job in jobs]))
    axes.set_xlabel(names[0])
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for job in jobs:
        label = ", ".join(f"{name}={job['values'][name]}" for name in names[1:])
        if names[1:] == ["optimizer"]:
            label = LABELS.get(job["values"]["optimizer"], label)
        lines.setdefault(label, []).append(job)
    values = [str(job["values"][names[0]]) for job in jobs]
    categories = list(dict.fromkeys(values))
    numeric = _numeric(values)
    abscissa = {value: float(value) if numeric else place for place, value in enumerate(categories)}
    known = [abscissa[str(job["values"][names[0]])] for job in jobs if job[key] and job[key]["mean"] is not None]
    logarithmic = numeric and min(known or abscissa.values()) > 0
    if logarithmic:  # a refused value that has no place on such an axis stands left of it
        left = min(x for x in abscissa.values() if x > 0) / 3
        abscissa = {value: x if x > 0 else left for value, x in abscissa.items()}
    known_means = [job[key]["mean"] for job in jobs if job[key] and job[key]["mean"] is not None]
    loss_axis = key in ("final", "sum") and min(known_means, default=0) >= 0  # others are minus a gain
    palette = [COLOURS[name] for name in ("adam", "lstm", "nag", "rms", "sgd", "momentum")]
    fates = {"failed": "P", "diverged": "X"}
    seen, lows, highs = set(), [], []
    for i, (label, members) in enumerate(lines.items()):
        colour = COLOURS.get(members[0]["values"].get("optimizer", ""), palette[i % len(palette)])
        style = ("-", "--", ":")[i // len(palette) % 3]
        points = []
        for job in members:
            x, loss = abscissa[str(job["values"][names[0]])], job[key]
            if loss is None or loss["mean"] is None:
                fate = "failed" if job["status"] == "failed" else "diverged"
                seen.add(fate)
                place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                axes.plot([x], [1 - 0.05 * i % 1], fates[fate], color=colour, markersize=7, **place)
                if logarithmic and float(job["values"][names[0]]) <= 0:
                    where: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
                    axes.annotate(job["values"][names[0]], (x, 0.02), fontsize=8, color="#444444", **where)
            else:
                points.append((x, loss["mean"], loss["ci95"] or 0.0))
        if points:
            xs, means, halves = np.array(sorted(points)).T
            low = np.minimum(halves, 0.9 * means) if loss_axis else halves  # a log axis knows no loss below 0
            error: dict[str, Any] = {"yerr": np.stack([np.maximum(low, 0), halves]), "capsize": 3}
            axes.errorbar(xs, means, marker="o", linestyle=style, color=colour, label=label or None, **error)
            lows.append(means[means > 0].min(initial=np.inf))
            highs.append(means.max())
        elif label:
            axes.plot([], [], marker="o", linestyle=style, color=colour, label=label)
    for fate in sorted(seen):
        axes.plot([], [], fates[fate], color="#444444", markersize=7, label=fate)
    if logarithmic:
        axes.set_xscale("log")
        if len(categories) <= 8:  # few enough to be written out
            axes.set_xticks(list(abscissa.values()), categories)
            axes.xaxis.set_minor_locator(NullLocator())
    elif not numeric:
        axes.set_xticks(range(len(categories)), categories)
    if loss_axis and lows and np.isfinite(min(lows)):
        axes.set_yscale("log")
        axes.set_ylim(0.5 * min(lows), 2 * max(highs))  # the means set the limits: intervals of few problems are wide


def _numeric(values: Sequence[str]) -> bool:
    try:
        return all(np.isfinite(float(value)) for value in values)
    except ValueError:
        return False
