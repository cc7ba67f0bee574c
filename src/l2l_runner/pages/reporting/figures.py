"""Pictures of several runs: only what is comparable shares a panel."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2l_runner.evaluation.sweep_points import sweep_points
from l2l_runner.files import write_atomically
from l2l_runner.pages.reporting.runs import Run, RunCurves
from l2l_runner.pages.reporting.settings import differing, flat
from l2l_runner.plots import style
from l2l_runner.plots.curves import draw_curves
from l2l_runner.plots.style import Look, draw_band, label_of, log_y, look_of, new_axes
from l2l_runner.plots.sweeps import draw_sweep
from l2l_runner.runs.reading import SweepJob, keep_swept
from l2l_runner.runs.results import Entry, RunResult

DPI = 150
WIDTH, HEIGHT = 5.6, 3.6  # inches, so that text stays readable on a phone
MOST = 12
"""Largest number of runs in one panel: with more, lines could not be told apart."""

LOSSES = {"final": "final loss", "sum": "sum of losses"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        file: relative to the page.
        title: what it shows.
        caption: how to read it.
    """

    file: str
    title: str
    caption: str


def curve_pictures(root: Path, runs: Sequence[Run]) -> list[Picture]:
    """Draw loss curves: a picture for each optimizee, number of steps, and kind of problems."""
    found: dict[tuple[Any, ...], list[tuple[Run, RunCurves]]] = {}
    for run in runs:
        if run.curves is not None:
            found.setdefault((*_problem(run), run.curves.of, run.curves.steps), []).append((run, run.curves))
    titles = _titles({key: members[0][0] for key, members in found.items()})
    pictures: list[Picture] = []
    for key, all_members in found.items():
        for members in _parts(all_members):
            of, steps = members[0][1].of, members[0][1].steps
            problems = " or ".join(sorted({str(curves.problems) for _, curves in members}, key=int))
            shown, note = _entries(members)
            figure, axes = _figure("step", "loss", f"{titles[key]}, {steps} steps: mean of {problems} {of}")
            draw_curves(axes, shown, legend=False)
            _limit(axes)
            title = f"{titles[key]}, {steps} steps, {of}: {_numbers([run for run, _ in members])}"
            caption = f"Mean of {problems} {of}, with 95 % confidence bands. {note}".strip()
            pictures.append(_write(root, f"curves-{len(pictures) + 1}", figure, axes, title, caption))
    return pictures


def _entries(members: Sequence[tuple[Run, RunCurves]]) -> tuple[dict[str, Entry], str]:
    """Return the curves of comparable runs by their labels, and a sentence about the baselines."""
    if len(members) == 1:
        ((_, curves),) = members
        return {_label(name, entry): entry for name, entry in {**curves.mine, **curves.baselines}.items()}, ""
    labels = _labels([run for run, _ in members])
    mine = {
        _label(f"{run.number}: {label_of(name)}{labels[run.number]}", entry): entry
        for run, curves in members
        for name, entry in curves.mine.items()
    }
    sets = [curves.baselines for _, curves in members if curves.baselines]
    if not sets:
        return mine, ""
    if all(baselines == sets[0] for baselines in sets):
        shared = {_label(name, entry): entry for name, entry in sets[0].items()}
        return mine | shared, "All runs have the same baselines."
    best: dict[str, Entry] = {}
    for run, curves in members:
        finite = {name: entry for name, entry in curves.baselines.items() if math.isfinite(entry.final.mean)}
        if finite:
            name = min(finite, key=lambda name: finite[name].final.mean)
            if finite[name] not in best.values():
                best[f"{run.number}: {label_of(name)}"] = finite[name]
    return mine | best, "Of the baselines of each run, only the best is drawn; the tables below list all."


def _label(name: str, entry: Entry) -> str:
    """Return the label of a curve; it says so where the mean does not stay finite."""
    lost = not math.isfinite(entry.curve[-1]) and not entry.diverged
    return f"{label_of(name)}, diverged" if lost else name


def validation_pictures(root: Path, runs: Sequence[Run]) -> list[Picture]:
    """Draw validation scores against the meta-step: a picture for each optimizee, number of steps, and score."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.validations:
            found.setdefault((*_problem(run), run.scored, run.config["unroll"]["steps"]), []).append(run)
    titles = _titles({key: members[0] for key, members in found.items()})
    pictures: list[Picture] = []
    for key, all_members in found.items():
        for members in _parts(all_members):
            score, steps = members[0].scored, members[0].config["unroll"]["steps"]
            figure, axes = _figure("meta-step", LOSSES[score], f"{titles[key]}, {steps} steps: validation problems")
            labels = _labels(members)
            for run in members:
                look = look_of(str(run.number), [str(other.number) for other in members])
                name = label_of(str(run.config["optimizer"]["name"]))
                axes.plot([], [], label=f"{run.number}: {name}{labels[run.number]}", **look.style)
                _draw_validations(axes, run, look, steps)
            _limit(axes)
            title = f"{titles[key]}, {steps} steps, {LOSSES[score]}: {_numbers(members)}"
            caption = (
                "Score on the fixed validation problems, with 95 % confidence bands. Dotted: shorter trajectories of a "
                "curriculum, whose scores are not comparable. Crosses at the top: scores that are not finite."
            )
            pictures.append(_write(root, f"meta-training-{len(pictures) + 1}", figure, axes, title, caption))
    return pictures


def _draw_validations(axes: Axes, run: Run, look: Look, steps: int) -> None:
    """Draw the scores of a run; those on trajectories of fewer than `steps` steps are dotted."""
    for horizon in sorted({validation.horizon for validation in run.validations}):
        points = [(v.step, v.score.mean, v.score.ci95) for v in run.validations if v.horizon == horizon]
        x, y, half = np.array(points, dtype=float).T
        finite = np.isfinite(y) & (y > 0)
        if horizon == steps:
            axes.plot(x[finite], y[finite], marker=".", linewidth=1.5, **look.style)
            low = np.maximum(y - half, 0.01 * y)
            shown = finite & np.isfinite(half)
            draw_band(axes, x[shown], low[shown], (y + half)[shown], look.colour, alpha=0.15)
        else:
            axes.plot(x[finite], y[finite], color=look.colour, linewidth=1, linestyle=":")
        if not finite.all():
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(x[~finite], np.ones((~finite).sum()), "X", color=look.colour, markersize=6, **place)


def _limit(axes: Axes) -> None:
    """Make the axis logarithmic, and fit it to the means, not to wide bands or to untrained optimizers.

    An axis with negative losses, which are minus a gain, stays linear.
    """
    own = [line for line in axes.lines if line.get_transform() == axes.transData]
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in own])
    if (drawn < 0).any():
        return
    log_y(axes)
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if len(drawn):
        axes.set_ylim(0.7 * drawn.min(), min(axes.get_ylim()[1], 1.4 * drawn.max(), 1e3 * drawn.min()))


def sweep_picture(root: Path, name: str, number: int, runs: Sequence[Run]) -> Picture | None:
    """Draw the scores of a sweep's jobs against the swept values; None where no value was swept."""
    results = [RunResult(run.status, math.nan, run.final, run.sum) for run in runs]
    jobs = keep_swept(
        [
            SweepJob(run.name, run.overrides, run.status, result=result)
            for run, result in zip(runs, results, strict=True)
        ]
    )
    score = runs[0].scored
    if not jobs[0].values:
        return None
    points = sweep_points(jobs, score)
    over_seeds = "over seeds " if len(points[0].values) < len(jobs[0].values) else ""
    over = {run.over for run in runs if run.over}
    figure, axes = _figure("", LOSSES[score], f"{name}: mean over {over.pop() if len(over) == 1 else 'problems'}")
    draw_sweep(axes, points)
    against = swept_words(list(points[0].values))
    caption = f"{LOSSES[score].capitalize()} with 95 % confidence intervals {over_seeds}against {against}."
    return _write(root, f"sweep-{number}", figure, axes, f"{name}: {_numbers(runs)}", caption)


def swept_words(swept: Sequence[str]) -> str:
    """Return the swept keys as a list in a sentence."""
    return swept[0] if len(swept) == 1 else f"{', '.join(swept[:-1])} and {swept[-1]}"


def _labels(runs: Sequence[Run]) -> dict[int, str]:
    """Return one or two settings that distinguish the runs, by their numbers, beside the optimizer and its rate."""
    settings = [flat(run.config) for run in runs]
    given = {key for run in runs for key in run.overrides}
    chosen, _ = differing(settings, [run.kind for run in runs], given)
    keys = [key for key in chosen if key not in ("optimizer", "optimizer.lr", "checkpoint")][:2]
    return {
        run.number: "".join(f", {key.rsplit('.', 1)[-1]} {one[key].rsplit('/', 1)[-1]}" for key in keys if key in one)
        for run, one in zip(runs, settings, strict=True)
    }


def _problem(run: Run) -> tuple[str, ...]:
    """Return a key of a run's problems; a run with unknown problems has a key of its own."""
    return (json.dumps(run.problem, sort_keys=True),) if run.problem else ("unknown", str(run.number))


def _titles(runs: Mapping[tuple[Any, ...], Run]) -> dict[tuple[Any, ...], str]:
    """Return the optimizee of each panel, with the settings that distinguish it from others of its name."""
    titles = {}
    for key, run in runs.items():
        name = run.problem.get("name", "an unknown optimizee")
        others = [flat(other.problem) for other in runs.values() if other.problem.get("name") == name]
        chosen, _ = differing(others, [""] * len(others), ())
        mine = flat(run.problem)
        titles[key] = " ".join([str(name), *(f"{k}={mine[k].rsplit('/', 1)[-1]}" for k in chosen if k in mine)])
    return titles


def _parts(members: Sequence[Any]) -> list[Sequence[Any]]:
    """Split the members of a picture into as many pictures as needed."""
    return [members[start : start + MOST] for start in range(0, len(members), MOST)]


def _numbers(runs: Sequence[Run]) -> str:
    """Return the numbers of runs as text."""
    numbers = [str(run.number) for run in runs]
    return f"run{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _figure(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = new_axes(figure, 111, xlabel, ylabel, "")
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    return figure, axes


def _write(root: Path, name: str, figure: Figure, axes: Axes, title: str, caption: str) -> Picture:
    """Add a legend below the axes, which keep their size, and write the picture."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(3, 60 // max(map(len, labels), default=20)))
    if labels:
        figure.set_size_inches(WIDTH, HEIGHT + 0.2 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    file = f"pictures/{name}.png"
    write_atomically(root / file, style.png(figure, DPI))
    return Picture(file, title, caption)
