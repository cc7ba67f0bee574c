"""The paper's figures, drawn from the results of the stages."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from l2l_runner.files import write_atomically
from l2l_runner.optimizers import HAND_DESIGNED
from l2l_runner.pages.reproduction.results import Results
from l2l_runner.pages.reproduction.settings import Budget
from l2l_runner.pages.reproduction.stages import grid
from l2l_runner.plots.curves import draw_curves
from l2l_runner.plots.style import LOOKS, label_of, log_y, look_of, new_axes, png

DPI = 150


@dataclass(frozen=True)
class Drawing:
    """A figure of the paper.

    Attributes:
        figure: its number.
        title: what it shows.
        caption: how to read it.
        stages: the stages that it shows.
        draw: writes it to a path; returns False where there is nothing to draw.
    """

    figure: str
    title: str
    caption: str
    stages: tuple[str, ...]
    draw: Callable[[Results, Path], bool]


@dataclass(frozen=True)
class Panel:
    """The loss curves of a stage's comparison, from the step `first` on."""

    title: str
    stage: str
    first: int = 0


def drawings(budget: Budget) -> list[Drawing]:
    """Return all figures."""
    cells = grid(budget)
    four = [
        Panel("Quadratics, uniform", "quadratic-uniform"),
        Panel("Quadratics, gaussian", "quadratic-gaussian"),
        Panel("MNIST", "mnist"),
        Panel("MNIST, steps 100 to 200", "mnist-200", 100),
    ]
    five = [
        Panel("MNIST, 40 units", "mnist-40-units"),
        Panel("MNIST, 2 layers", "mnist-2-layers"),
        Panel("MNIST, ReLU", "mnist-relu"),
    ]
    seven = [Panel("CIFAR-10", "cifar-10"), Panel("CIFAR-5", "cifar-5"), Panel("CIFAR-2", "cifar-2")]
    eight = [Panel("64×64, the training style", "art-test"), Panel("128×128, a new style", "art-128")]
    return [
        Drawing(
            "4",
            "Quadratics and MNIST",
            "Mean loss on held-out problems of the learned optimizer and of the baselines, each at its best learning "
            "rate; bands are 95 % confidence intervals. The uniform quadratics are those of the paper's released code, "
            "which agree with its figure; the Gaussian ones are those of its text. On MNIST the optimizer was trained "
            "for 100 steps; the last panel shows it up to step 200.",
            _stages(four),
            _curves(four),
        ),
        Drawing(
            "5",
            "Other architectures",
            "The optimizer that was trained on an MLP with 20 sigmoid units, applied without further training to 40 "
            "units, to two layers of 20, and to ReLU.",
            _stages(five),
            _curves(five),
        ),
        Drawing(
            "6",
            "Final loss against the size of the network",
            "The same optimizer on networks with other numbers of hidden units and layers: loss at the last step, "
            "beside the best tuned baseline of each network. The ring marks the network that it was trained on.",
            tuple(cells.values()),
            _sizes(cells),
        ),
        Drawing(
            "7",
            "CIFAR-10 with two LSTMs",
            "A convolutional network with batch normalisation; one LSTM for the convolutions, one for the fully "
            "connected layers. LSTM-sub was trained on the five labels that neither CIFAR-5 nor CIFAR-2 contains.",
            _stages(seven),
            _curves(seven),
        ),
        Drawing(
            "8",
            "Neural art",
            "Loss of content, style and total variation of an image, on held-out photographs.",
            _stages(eight),
            _curves(eight),
        ),
        Drawing(
            "9",
            "Neural art: the pictures",
            "Above, the training style at the training size; below, a new style at twice the size. The photographs are "
            "held out.",
            ("art-test", "art-128"),
            _pictures(("art-test", "art-128")),
        ),
        Drawing(
            "long",
            "Where the paper's optimizer fails",
            "The paper's LSTM and optimizers with a remedy, trained on the MLP with 20 sigmoid units: far past their "
            "training horizon, and on ReLU. Left, means of the last tenth of the steps so far.",
            ("long", "long-relu"),
            _long,
        ),
    ]


def _stages(panels: Sequence[Panel]) -> tuple[str, ...]:
    return tuple(panel.stage for panel in panels)


def _curves(panels: Sequence[Panel]) -> Callable[[Results, Path], bool]:
    """Return a function that draws a row of panels with one legend."""

    def draw(results: Results, path: Path) -> bool:
        if not any(results.optimizers(panel.stage) for panel in panels):
            return False
        figure, axes = _row(len(panels))
        for panel, place in zip(panels, axes, strict=True):
            place.set_title(panel.title, fontsize=11)
            comparison = results.comparison(panel.stage)
            if comparison is None:
                _empty(place)
            else:
                first = panel.first if panel.first < comparison.steps else 0
                draw_curves(place, comparison.optimizers, first, legend=False)
        _legend(figure, axes)
        write_atomically(path, png(figure, DPI))
        return True

    return draw


def _row(count: int, xlabel: str = "step") -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(0.4 + 3.5 * count, 3.7), layout="constrained")
    grid = figure.add_gridspec(1, count)
    return figure, [new_axes(figure, grid[0, i], xlabel, "loss" if i == 0 else "", "") for i in range(count)]


def _empty(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", va="center", color="#888888")
    axes.set(xticks=[], yticks=[])


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Draw one legend below all panels, learned optimizers first, without the rates, which differ between panels."""
    found: dict[str, Any] = {}
    for place in axes:
        for handle, label in zip(*place.get_legend_handles_labels(), strict=True):
            found.setdefault(label.split(" (")[0].split(", ")[0], handle)
    order = [*(label for label in found if label not in _BASELINES), *(label for label in _BASELINES if label in found)]
    handles = [found[label] for label in order]
    figure.legend(handles, order, loc="outside lower center", ncols=min(6, len(order)), frameon=False, fontsize=9)


_BASELINES = [label_of(name) for name in HAND_DESIGNED]


def _sizes(cells: Mapping[tuple[int, int], str]) -> Callable[[Results, Path], bool]:
    """Return a function that draws final losses against hidden units, a panel per number of layers."""

    def draw(results: Results, path: Path) -> bool:
        lstm = LOOKS["lstm"]
        there = {cell for cell, stage in cells.items() if results.final(stage, "lstm") and results.baselines(stage)}
        if not there:
            return False
        layers = sorted({layers for layers, _ in cells})
        figure, axes = _row(len(layers), "hidden units per layer")
        for depth, place in zip(layers, axes, strict=True):
            place.set_title(f"{depth} hidden layer{'s' * (depth > 1)}", fontsize=11)
            done = sorted(hidden for d, hidden in there if d == depth)
            if not done:
                _empty(place)
                continue
            for shift, best in ((-0.06, True), (0.06, False)):
                names = [results.best_baseline(cells[depth, hidden]) if best else "lstm" for hidden in done]
                finals = [
                    results.optimizers(cells[depth, hidden])[name].final
                    for hidden, name in zip(done, names, strict=True)
                ]
                colour, style = ("#444444", "s--") if best else (lstm.colour, "o-")
                xs = np.arange(len(done)) + shift
                means, halves = [final.mean for final in finals], [final.ci95 for final in finals]
                label = "best tuned baseline" if best else lstm.label
                place.errorbar(xs, means, yerr=halves, fmt=style, color=colour, capsize=3, markersize=5, label=label)
                for x, mean, name in zip(xs, means, names, strict=True):
                    if best:
                        at: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 7}
                        place.annotate(label_of(name), (x, mean), (0, 7), **at)
                    elif depth == 1 and done[round(x - shift)] == 20:
                        place.plot([x], [mean], "o", markersize=12, markerfacecolor="none", color=lstm.colour)
            place.set_xticks(range(len(done)), [str(hidden) for hidden in done])
            place.set_xlim(-0.5, len(done) - 0.5)
            log_y(place)
        _legend(figure, axes)
        write_atomically(path, png(figure, DPI))
        return True

    return draw


def _pictures(stages: Sequence[str]) -> Callable[[Results, Path], bool]:
    """Return a function that stacks the pictures that the stages left."""

    def draw(results: Results, path: Path) -> bool:
        found = [results.outcomes[s].folder.path / "pictures.png" for s in stages if results.comparison(s) is not None]
        images = [Image.open(picture).convert("RGB") for picture in found if picture.exists()]
        if not images:
            return False
        width = max(image.width for image in images)
        images = [image.resize((width, image.height * width // image.width)) for image in images]
        whole = Image.new("RGB", (width, sum(image.height for image in images)), "white")
        top = 0
        for image in images:
            whole.paste(image, (0, top))
            top += image.height
        buffer = io.BytesIO()
        whole.quantize(256).save(buffer, "PNG", optimize=True)
        write_atomically(path, buffer.getvalue())
        return True

    return draw


def _long(results: Results, path: Path) -> bool:
    """Draw losses against the step, both logarithmic, and losses on ReLU."""
    if not (results.optimizers("long") or results.optimizers("long-relu")):
        return False
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=[3, 2])
    axes = [new_axes(figure, grid[0, 0], "step", "loss", ""), new_axes(figure, grid[0, 1], "step", "", "")]
    axes[0].set_title("MNIST, 20 sigmoid units", fontsize=11)
    axes[1].set_title("MNIST, ReLU", fontsize=11)
    optimizers = results.optimizers("long")
    for name, entry in reversed(list(optimizers.items())):
        last = len(entry.curve) - 1
        steps = np.unique(np.geomspace(min(10, last), last, 200).astype(int))
        recent = np.array([results.recent("long", name, int(step)) for step in steps])
        width = 2 if entry.lr is None else 1.4
        axes[0].plot(steps, recent, label=label_of(name), linewidth=width, **look_of(name, list(optimizers)).style)
    if optimizers:
        axes[0].set_xscale("log")
        log_y(axes[0])
        axes[0].set_ylim(top=min(10.0, axes[0].get_ylim()[1]))
        axes[0].margins(x=0)
    else:
        _empty(axes[0])
    if results.optimizers("long-relu"):
        draw_curves(axes[1], results.optimizers("long-relu"), legend=False)
        axes[1].set_ylim(top=min(10.0, axes[1].get_ylim()[1]))
    else:
        _empty(axes[1])
    _legend(figure, axes)
    write_atomically(path, png(figure, DPI))
    return True
