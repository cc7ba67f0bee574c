"""Plots: looks are deterministic, and pictures read nothing but numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure

from l2l_runner.optimizers import HAND_DESIGNED, LEARNED
from l2l_runner.plots.curves import draw_curves
from l2l_runner.plots.style import LOOKS, OTHER_COLOURS, arm_label, label_of, look_of
from l2l_runner.plots.sweeps import SweepPoint, draw_sweep


@dataclass(frozen=True)
class Losses:
    """The least that a loss curve has."""

    curve: list[float]
    ci95: list[float]
    lr: float | None = None
    diverged: int = 0
    steps: list[int] | None = None


def test_every_optimizer_has_a_look() -> None:
    assert set(LOOKS) == {*HAND_DESIGNED, *LEARNED}


def test_unknown_optimizers_differ_by_their_place_among_each_other() -> None:
    names = ["adam", "mine", "LSTM", "yours"]
    assert look_of("mine", names).colour == OTHER_COLOURS[0]
    assert look_of("yours", names).colour == OTHER_COLOURS[1]
    assert look_of("yours", ["yours"]).colour == OTHER_COLOURS[0]
    assert look_of("LSTM", names) == LOOKS["lstm"]  # a second one
    many = [str(number) for number in range(15)]
    assert len({(look.colour, look.line) for look in (look_of(name, many) for name in many)}) == 15


def test_labels() -> None:
    assert (label_of("rms"), label_of("mine")) == ("RMSprop", "mine")
    assert arm_label("warp_rnn", "learning") == "Warp-RNN, learning"
    assert arm_label("warp_rnn", "fixed") == "plain RNN"
    assert arm_label("mine", "fixed") == "mine, fixed"


@pytest.mark.parametrize(("sign", "scale", "drawn"), [(1, "log", [4.0, 2.0]), (-1, "linear", [-4.0, -2.0])])
def test_a_curve_ends_where_it_is_not_finite(sign: int, scale: str, drawn: list[float]) -> None:
    axes = Figure().add_subplot()
    draw_curves(axes, {"adam": Losses([4.0, 2.0, math.nan], [1.0, 1.0, math.nan], 0.1, 3)}, sign=sign)
    assert axes.get_yscale() == scale
    (line,) = axes.get_lines()
    assert np.asarray(line.get_ydata()).tolist() == drawn
    assert axes.get_legend_handles_labels()[1] == ["Adam (lr 0.1), 3 diverged"]


def test_curves_that_are_known_at_some_steps_stand_there() -> None:
    axes = Figure().add_subplot()
    draw_curves(axes, {"mine": Losses([4.0, 2.0, 1.0], [0.0] * 3, steps=[0, 5, 10])}, first=1)
    (line,) = axes.get_lines()
    assert np.asarray(line.get_xdata()).tolist() == [5, 10]


def test_lost_jobs_are_marked_by_their_fate() -> None:
    axes = Figure().add_subplot()
    draw_sweep(axes, [SweepPoint({"lr": "1"}, mean=2.0), SweepPoint({"lr": "2"}), SweepPoint({"lr": "3"}, failed=True)])
    assert axes.get_legend_handles_labels()[1] == ["diverged", "failed"]


def test_a_picture_of_optimizers_that_all_diverged_is_drawn() -> None:
    axes = Figure().add_subplot()
    draw_curves(
        axes, {name: Losses([math.nan, math.inf], [math.nan, math.nan], diverged=4) for name in ("lstm", "sgd")}
    )
    assert axes.get_yscale() == "linear"  # a logarithmic axis of nothing is an error of Matplotlib's
    assert axes.get_legend_handles_labels()[1] == ["SGD, 4 diverged", "LSTM, 4 diverged"]
    axes.figure.canvas.draw()
