"""The page of a report: a table of all runs, sweeps, curves of comparable runs, and each run's own comparison."""

from __future__ import annotations

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import l2l_runner
from l2l_runner.pages.reporting.figures import LOSSES, Picture, curve_pictures, sweep_picture, validation_pictures
from l2l_runner.pages.reporting.runs import Run
from l2l_runner.pages.reporting.settings import differing, flat
from l2l_runner.pages.write import write_pages

COLUMNS = 6
"""Largest number of settings in the table of runs; others are listed below it."""


def write_report(root: Path, runs: Sequence[Run], sweeps: Sequence[Path]) -> None:
    """Write index.html, index.md and pictures/ into `root`.

    Args:
        root: the folder.
        runs: the runs of the report, numbered.
        sweeps: folders whose subfolders are the runs of one sweep.

    Raises:
        OSError: the folder cannot be written.
        StorageError: a page or a picture cannot be written.
    """
    shutil.rmtree(root / "pictures", ignore_errors=True)  # those of an earlier report
    settings = [flat(run.config) for run in runs]
    given = {key for run in runs for key in run.overrides}
    chosen, follow = differing(settings, [run.kind for run in runs], given)
    shown, others = chosen[:COLUMNS], [*chosen[COLUMNS:], *follow]
    scores = {run.scored for run in runs if run.score is not None}
    rows = [
        {
            "run": run,
            "link": _link(root, run.path),
            "settings": [_short(one.get(key, "")) for key in shown],
            **_figures(run),
        }
        for run, one in zip(runs, settings, strict=True)
    ]
    swept = []
    for number, folder in enumerate(sweeps, 1):
        jobs = [run for run in runs if run.path.parent == folder]
        swept.append(sweep_picture(root, str(Path(jobs[0].name).parent), number, jobs))
    write_pages(
        root,
        Path(__file__).parent / "templates",
        title=f"{len(runs)} run{'s' * (len(runs) > 1)}",
        version=l2l_runner.__version__,
        statuses=Counter(run.status for run in runs),
        kinds=len({run.kind for run in runs}) > 1,
        scored=LOSSES[scores.pop()] if len(scores) == 1 else "final loss or sum of losses",
        chosen=shown,
        rows=rows,
        others=[{"key": key, "values": _by_value(key, runs, settings)} for key in others],
        sections=[
            ("sweeps", "Sweeps", [picture for picture in swept if picture]),
            ("curves", "Losses", curve_pictures(root, runs)),
            ("meta-training", "Meta-training", validation_pictures(root, runs)),
        ],
        details=[_detail(root, run) for run in runs],
    )


def _figures(run: Run) -> dict[str, Any]:
    """Return a run's results as they are printed."""
    figures = {name: "" if value is None else value.shown() for name, value in (("final", run.final), ("sum", run.sum))}
    return {**figures, "score": "" if run.score is None else f"{run.score:.4g}"}


def _short(value: str) -> str:
    """Return a value; of a long path only the last two parts."""
    return f"…/{'/'.join(value.split('/')[-2:])}" if value.startswith("/") and value.count("/") > 2 else value


def _by_value(key: str, runs: Sequence[Run], settings: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Return each value of a setting with the numbers of the runs that have it."""
    values: dict[str, list[str]] = {}
    for run, one in zip(runs, settings, strict=True):
        if key in one:
            values.setdefault(one[key], []).append(str(run.number))
    return [(value, ", ".join(numbers)) for value, numbers in values.items()]


def _detail(root: Path, run: Run) -> dict[str, Any]:
    """Return what the page shows of a single run: its command, table, pictures and files; copy the pictures."""
    pictures = []
    for name in run.pictures:
        file = f"pictures/run-{run.number}-{name}"
        (root / "pictures").mkdir(exist_ok=True)
        shutil.copyfile(run.path / name, root / file)
        pictures.append(Picture(file, f"{name} of run {run.number}", ""))
    given = shlex.join(f"{key}={value}" for key, value in run.overrides.items())
    command = f"python -m l2l_runner.{run.kind} {given}".strip()
    files = [(name, f"{_link(root, run.path)}/{name}") for name in run.files]
    return {"run": run, "command": command, "table": run.table, "pictures": pictures, "files": files}


def _link(root: Path, path: Path) -> str:
    """Return a link from the page to a folder."""
    return quote(os.path.relpath(path, root.resolve()))
