"""The runs of a report: what is known of each, and how they are found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2l_runner.errors import StorageError
from l2l_runner.runs.reading import sort_key
from l2l_runner.runs.results import Entry, Interval

INSIDE = {".hydra", ".resuming", "checkpoints", "frames"}
"""Subfolders of a run; none of them holds other runs."""

COUNTS = ("batch", "validation_problems", "test_problems")
"""Keys of an optimizee that say how many problems it has, not which."""

FILES = (
    *("comparison.png", "pictures.png", "learning.png", "learning.gif", "curve.png", "online.png", "reweighting.png"),
    *("comparison.csv", "comparison.json", "metrics.jsonl", "train.log", "eval.log"),
)
"""Files of a run that the page links to."""

PICTURES = ("pictures.png", "online.png", "reweighting.png")
"""Pictures of a run that the page repeats, because it draws nothing like them."""


@dataclass(frozen=True)
class RunCurves:
    """Loss curves of a run; comparable with those of runs with the same optimizee, `of` and `steps`.

    Attributes:
        of: what the means are over.
        steps: of a trajectory.
        problems: number of problems.
        mine: the optimizers that the run is about, by name.
        baselines: those it is compared with, by name.
    """

    of: str
    steps: int
    problems: int
    mine: Mapping[str, Entry]
    baselines: Mapping[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Validation:
    """A validation's score, at a meta-step, on trajectories of `horizon` steps."""

    step: int
    horizon: int
    score: Interval


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        path: its folder.
        name: its path below the folder that all runs of the report share.
        number: its place in the report.
        kind: train or eval.
        config: as composed; keys that `eval` has at the top stand below `evaluation`, as in `train`.
        overrides: of its command line.
        status: completed, diverged, failed, stopped, unfinished or damaged.
        detail: a sentence about the status.
        score: what its selections minimised; None where it is unknown or not finite.
        final: loss after the last step; None where it is unknown.
        sum: sum of losses, likewise.
        over: what these are means of.
        seconds: computing time; None where it is unknown.
        curves: None where it has none.
        validations: of a meta-training.
        table: what it compares; None where it compares nothing.
    """

    path: Path
    name: str
    number: int = 0
    kind: str = "train"
    config: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=dict)
    status: str = "unfinished"
    detail: str = ""
    score: float | None = None
    final: Interval | None = None
    sum: Interval | None = None
    over: str = ""
    seconds: float | None = None
    curves: RunCurves | None = None
    validations: list[Validation] = field(default_factory=list)
    table: Table | None = None

    @property
    def scored(self) -> str:
        """What the score is: final or sum."""
        return str(self.config.get("score", "final"))

    @property
    def problem(self) -> dict[str, Any]:
        """The optimizee's settings that determine its problems."""
        return {key: value for key, value in (self.config.get("optimizee") or {}).items() if key not in COUNTS}

    @property
    def files(self) -> list[str]:
        """Names of the files to link to."""
        return [name for name in FILES if (self.path / name).exists()]

    @property
    def pictures(self) -> list[str]:
        """Names of the pictures to repeat."""
        paths = [self.path / name for name in PICTURES]
        return [path.name for path in paths if path.is_file() and not path.is_symlink()]  # a link may lead anywhere


def find_runs(folders: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Find all runs in folders, at any depth.

    Returns:
        The folders of the runs, and those of the sweeps among them.

    Raises:
        StorageError: one of the folders does not exist, or holds no run.
    """
    found: dict[Path, None] = {}
    sweeps: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise StorageError(
                f"{folder} is not a folder: expected one of a run or of a sweep, or one that holds some, such as "
                "outputs."
            )
        here = [path for path in _folders(folder.resolve()) if _is_run(path)]
        if not here:
            raise StorageError(
                f"{folder} holds no run: expected folders made by l2l_runner.train or l2l_runner.eval (with .run and "
                ".hydra)."
            )
        found |= dict.fromkeys(here)
        sweeps |= {path.parent: None for path in here if (path.parent / ".sweep").exists()}
    return list(found), list(sweeps)


def _folders(root: Path) -> Iterable[Path]:
    """Walk through the folders below one, sorted by their names."""
    for path, children, _ in os.walk(root):
        children[:] = sorted((name for name in children if name not in INSIDE), key=sort_key)
        yield Path(path)


def _is_run(path: Path) -> bool:
    return (path / ".run").exists() or (path / ".hydra" / "overrides.yaml").exists()
