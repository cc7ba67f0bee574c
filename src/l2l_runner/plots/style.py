"""The look of every picture: one colour, line and label per optimizer, the axes, and PNG files.

The colours are safe for colour-blind readers: those of Okabe & Ito (2008) and of Paul Tol.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Line = str | tuple[int, tuple[int, ...]]
"""A line style of Matplotlib: its name, or an offset with lengths of dashes and gaps in points."""


@dataclass(frozen=True)
class Look:
    """How an optimizer looks in every picture.

    Attributes:
        label: its name in legends and tables.
        colour: as #rrggbb.
        line: its line style.
        fixed: name of the same network without learning, where that has a name of its own.
    """

    label: str
    colour: str
    line: Line = "-"
    fixed: str | None = None

    @property
    def style(self) -> dict[str, Any]:
        """Colour and line as keyword arguments of `Axes.plot`."""
        return {"color": self.colour, "linestyle": self.line}


LOOKS = {
    "lstm": Look("LSTM", "#D55E00"),
    "groups": Look("LSTMs", "#D55E00"),
    "rnnprop": Look("RNNprop", "#56B4E9"),
    "warp_rnn": Look("Warp-RNN", "#D55E00", fixed="plain RNN"),
    "sgd": Look("SGD", "#999999", (0, (1, 1))),
    "momentum": Look("Momentum", "#F0E442", (0, (5, 2))),
    "nag": Look("NAG", "#009E73", (0, (5, 2))),
    "rms": Look("RMSprop", "#CC79A7", (0, (3, 1, 1, 1))),
    "adam": Look("Adam", "#0072B2", "--"),
    "none": Look("no meta-training", "#666666", (0, (1, 1))),
    "warp_leap": Look("Warp-Leap", "#882255"),
    "warp": Look("WarpGrad", "#E69F00"),
    "leap": Look("Leap", "#332288", "--"),
    "reptile": Look("Reptile", "#999933", (0, (5, 2))),
    "fomaml": Look("FOMAML", "#56B4E9", (0, (3, 1, 1, 1))),
    "maml": Look("MAML", "#AA4499", "-."),
    "finetune": Look("fine-tuning", "#117733", (0, (5, 1, 1, 1, 1, 1))),
    "metasgd": Look("Meta-SGD", "#44AA99"),
    "metacurvature": Look("Meta-Curvature", "#CC6677"),
    "kronecker": Look("Kronecker transform", "#6699CC"),
    "module_transform": Look("module transform", "#997700"),
    "hypergradient": Look("Hypergradient", "#EE99AA"),
}
"""The look of each optimizer, by its name in a configuration."""

OTHER_COLOURS = ("#000000", "#8C510A", "#5E3C99", "#B2182B", "#666666")
OTHER_LINES: tuple[Line, ...] = ("-", "--", ":")
"""Colours and lines of optimizers without a look of their own, such as a second LSTM."""

PALETTE = tuple(LOOKS[name].colour for name in ("adam", "lstm", "nag", "rms", "sgd", "momentum"))
"""Colours of lines that are not optimizers, in order."""


def look_of(name: str, names: Sequence[str]) -> Look:
    """Return the look of an optimizer among others: its own, or one by its place among the unknown ones.

    A capitalised name, such as LSTM for a second one, has the look of the name in lower case.

    Args:
        name: the optimizer's, one of `names`.
        names: of all optimizers in the picture.
    """
    if name.lower() in LOOKS:
        return LOOKS[name.lower()]
    place = [other for other in names if other.lower() not in LOOKS].index(name)
    line = OTHER_LINES[place // len(OTHER_COLOURS) % len(OTHER_LINES)]
    return Look(name, OTHER_COLOURS[place % len(OTHER_COLOURS)], line)


def label_of(name: str) -> str:
    """Return the label of an optimizer; its name where it has none."""
    return LOOKS[name].label if name in LOOKS else name


def arm_label(optimizer: str, arm: str) -> str:
    """Return the label of an optimizer's arm, `learning` or `fixed`."""
    fixed = LOOKS[optimizer].fixed if optimizer in LOOKS else None
    return fixed if arm == "fixed" and fixed else f"{label_of(optimizer)}, {arm}"


def new_axes(figure: Figure, position: Any, xlabel: str, ylabel: str, title: str) -> Axes:
    """Add a panel to a figure, in the look that all pictures share."""
    axes: Axes = figure.add_subplot(position)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def log_y(axes: Axes) -> None:
    """Make the ordinate logarithmic, unless nothing on it is positive, as where everything diverged."""
    drawn = [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]
    if any((values > 0).any() for values in drawn):
        axes.set_yscale("log")


def draw_band(axes: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, colour: str, alpha: float = 0.2) -> None:
    """Shade what lies between two curves, such as a confidence band."""
    axes.fill_between(x, low, high, color=colour, alpha=alpha, linewidth=0)


def png(figure: Figure, dpi: int) -> bytes:
    """Return the content of a PNG file of a figure: the same bytes for the same figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
