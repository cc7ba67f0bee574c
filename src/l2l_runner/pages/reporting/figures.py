"""Pictures of several runs: in one panel only what can be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from l2l_runner.files import write_atomically
from l2l_runner.launch.sweep import keep_swept
from l2l_runner.pages.reporting.runs import Run, RunCurves
from l2l_runner.pages.reporting.settings import differing, flat
from l2l_runner.plots import plotting
from l2l_runner.plots.plotting import LABELS, draw_curves, new_axes, style_of

DPI = 150
WIDTH, HEIGHT = 5.6, 3.6  # inches: text stays readable on a phone
MOST = 12
"""Runs in one panel: with more, lines could not be told apart."""

LOSSES = {"final": "final loss", "sum": "sum of losses"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file, relative to the page, and what it shows."""

    file: str
    title: str
    caption: str


def curve_pictures(root: Path, runs: Sequence[Run]) -> list[Picture]:
    """Loss curves, in a picture those of one optimizee, number of steps, and kind of problems."""
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
            shown, caption = _entries(members)
            figure, axes = _figure("step", "loss", f"{titles[key]}, {steps} steps: mean of {problems} {of}")
            draw_curves(axes, shown, legend=False)
            _limit(axes)
            told = f"{titles[key]}, {steps} steps, {of}: {_numbers([run for run, _ in members])}"
            caption = f"Mean of {problems} {of}, with 95 % confidence bands. {caption}".strip()
            pictures.append(_write(root, f"curves-{len(pictures) + 1}", figure, axes, told, caption))
    return pictures


def _entries(members: Sequence[tuple[Run, RunCurves]]) -> tuple[dict[str, Any], str]:
    """What is drawn of comparable runs, by label, and a sentence on the baselines."""
    if len(members) == 1:
        return {
            _fate(name, entry): entry for name, entry in {**members[0][1].mine, **members[0][1].baselines}.items()
        }, ""
    labels = _labels([run for run, _ in members])
    mine = {
        _fate(f"{run.number}: {LABELS.get(name, name)}{labels[run.number]}", entry): entry
        for run, curves in members
        for name, entry in curves.mine.items()
    }
    sets = [curves.baselines for _, curves in members if curves.baselines]
    if not sets:
        return mine, ""
    if all(baselines == sets[0] for baselines in sets):
        return mine | {_fate(name, entry): entry for name, entry in sets[0].items()}, "The baselines are those of all."
    best: dict[str, Any] = {}
    for run, curves in members:
        finite = {name: entry for name, entry in curves.baselines.items() if entry["final"]["mean"] is not None}
        if finite:
            name = min(finite, key=lambda name: finite[name]["final"]["mean"])
            if not any(finite[name] == entry for entry in best.values()):
                best[f"{run.number}: {LABELS.get(name, name)}"] = finite[name]
    return mine | best, "Of each run's own baselines the best is shown; the tables below have all."


def _fate(label: str, entry: Mapping[str, Any]) -> str:
    """The label of a curve; one whose mean doesn't stay finite ends, and says so."""
    gone = entry["curve"][-1] is None and not entry["diverged"]
    return f"{LABELS.get(label, label)}, diverged" if gone else label


def validation_pictures(root: Path, runs: Sequence[Run]) -> list[Picture]:
    """Validation scores against meta-steps, in a picture those of one optimizee, number of steps, and score."""
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
                style = style_of(str(run.number), [str(other.number) for other in members])
                name = str(run.config["optimizer"]["name"])
                axes.plot([], [], label=f"{run.number}: {LABELS.get(name, name)}{labels[run.number]}", **style)
                _draw_validations(axes, run, style, steps)
            _limit(axes)
            told = f"{titles[key]}, {steps} steps, {LOSSES[score]}: {_numbers(members)}"
            caption = (
                "Score on the fixed validation problems, with 95 % confidence bands; dotted where a curriculum still "
                "had shorter trajectories, whose scores aren't comparable; a cross at the top: not finite."
            )
            pictures.append(_write(root, f"meta-training-{len(pictures) + 1}", figure, axes, told, caption))
    return pictures


def _draw_validations(axes: Axes, run: Run, style: Mapping[str, Any], steps: int) -> None:
    for horizon in sorted({validation.horizon for validation in run.validations}):
        points = [v for v in run.validations if v.horizon == horizon]
        x, y, half = np.array([(v.step, v.score, v.ci95) for v in points], dtype=float).T
        finite = np.isfinite(y) & (y > 0)
        if horizon == steps:
            axes.plot(x[finite], y[finite], marker=".", linewidth=1.5, **style)
            low = np.maximum(y - half, 0.01 * y)
            shown = finite & np.isfinite(half)
            axes.fill_between(x[shown], low[shown], (y + half)[shown], color=style["color"], alpha=0.15, linewidth=0)
        else:
            axes.plot(x[finite], y[finite], color=style["color"], linewidth=1, linestyle=":")
        if not finite.all():
            place: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            axes.plot(x[~finite], np.ones((~finite).sum()), "X", color=style["color"], markersize=6, **place)


def _limit(axes: Axes) -> None:
    """A log axis whose limits are those of the means, not of wide bands or of optimizers that know nothing yet.

    Where losses are minus a gain, the axis stays as it is.
    """
    own = [line for line in axes.lines if line.get_transform() == axes.transData]
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in own])
    if (drawn < 0).any():
        return
    axes.set_yscale("log")
    drawn = drawn[np.isfinite(drawn) & (drawn > 0)]
    if len(drawn):
        axes.set_ylim(0.7 * drawn.min(), min(axes.get_ylim()[1], 1.4 * drawn.max(), 1e3 * drawn.min()))


def sweep_picture(root: Path, name: str, number: int, runs: Sequence[Run]) -> Picture | None:
    """The jobs of a sweep: their scores against what was swept; None where nothing was."""
    jobs = [{"values": dict(run.overrides), "status": run.status, "final": run.final, "sum": run.sum} for run in runs]
    swept = keep_swept(jobs)
    score = runs[0].scored
    if not swept:
        return None
    over = {run.over for run in runs if run.over}
    figure, axes = _figure("", LOSSES[score], f"{name}: mean over {over.pop() if len(over) == 1 else 'problems'}")
    plotting.draw_sweep(axes, swept, jobs, score)
    caption = f"{LOSSES[score].capitalize()} with 95 % confidence intervals against {swept_words(swept)}."
    return _write(root, f"sweep-{number}", figure, axes, f"{name}: {_numbers(runs)}", caption)


def swept_words(swept: Sequence[str]) -> str:
    return swept[0] if len(swept) == 1 else f"{', '.join(swept[:-1])} and {swept[-1]}"


def _labels(runs: Sequence[Run]) -> dict[int, str]:
    """By the runs' numbers, one or two settings that tell them apart, beside the optimizer and its rate."""
    settings = [flat(run.config) for run in runs]
    given = {key for run in runs for key in run.overrides}
    chosen, _ = differing(settings, [run.kind for run in runs], given)
    told = [key for key in chosen if key not in ("optimizer", "optimizer.lr", "checkpoint")][:2]
    return {
        run.number: "".join(f", {key.rsplit('.', 1)[-1]} {one[key].rsplit('/', 1)[-1]}" for key in told if key in one)
        for run, one in zip(runs, settings, strict=True)
    }


def _problem(run: Run) -> tuple[str, ...]:
    """Which problems a run had; one that doesn't say it is alone."""
    return (json.dumps(run.problem, sort_keys=True),) if run.problem else ("unknown", str(run.number))


def _titles(runs: Mapping[tuple[Any, ...], Run]) -> dict[tuple[Any, ...], str]:
    """The optimizee of each panel, with what tells it from others of the same name."""
    titles = {}
    for key, run in runs.items():
        name = run.problem.get("name", "an unknown optimizee")
        others = [flat(other.problem) for other in runs.values() if other.problem.get("name") == name]
        chosen, _ = differing(others, [""] * len(others), ())
        mine = flat(run.problem)
        titles[key] = " ".join([str(name), *(f"{k}={mine[k].rsplit('/', 1)[-1]}" for k in chosen if k in mine)])
    return titles


def _parts(members: Sequence[Any]) -> list[Sequence[Any]]:
    return [members[start : start + MOST] for start in range(0, len(members), MOST)]


def _numbers(runs: Sequence[Run]) -> str:
    numbers = [str(run.number) for run in runs]
    return f"run{'s' * (len(numbers) > 1)} {', '.join(numbers)}"


def _figure(xlabel: str, ylabel: str, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = new_axes(figure, 111, xlabel, ylabel, "")
    axes.set_title(title, fontsize=9, loc="left", wrap=True)
    return figure, axes


def _write(root: Path, name: str, figure: Figure, axes: Axes, title: str, caption: str) -> Picture:
    """Put the legend below, with room of its own, and write the picture."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(3, 60 // max(map(len, labels), default=20)))
    if labels:
        figure.set_size_inches(WIDTH, HEIGHT + 0.2 * -(-len(labels) // columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    file = f"pictures/{name}.png"
    write_atomically(root / file, plotting.png(figure, DPI))
    return Picture(file, title, caption)
