"""Finding runs, and reading what each has left; one that is damaged says so and hides no other."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from l2l_runner.errors import StorageError, UserError, reason
from l2l_runner.evaluation.statistics import with_ci
from l2l_runner.files import with_nan
from l2l_runner.launch.sweep import overridden, sort_key
from l2l_runner.pages.write import COMPARED, comparison_rows
from l2l_runner.runs import checkpoint

INSIDE = {".hydra", ".resuming", "checkpoints", "frames"}
"""Folders of a run in which there are no other runs."""

COUNTS = ("batch", "validation_problems", "test_problems")
"""Keys of an optimizee that say how many problems there are, not which."""

EVALUATION = ("baselines", "steps", "problems", "tune", "chunk")
"""Keys that eval has at the top and train below `evaluation`."""

FILES = (
    *("comparison.png", "pictures.png", "learning.png", "learning.gif", "curve.png", "online.png", "reweighting.png"),
    *("comparison.csv", "comparison.json", "metrics.jsonl", "train.log", "eval.log"),
)
"""What a reader may want to open."""

PICTURES = ("pictures.png", "online.png", "reweighting.png")
"""Pictures of a run that show what no other of the page does."""


@dataclass(frozen=True)
class RunCurves:
    """Loss curves of a run, over problems that are those of other runs where `of`, `steps` and the optimizee are.

    Attributes:
        of: what the means are over.
        steps: of a trajectory.
        problems: so many.
        mine: entries as in a comparison's summary, by name: what the run is about.
        baselines: likewise, what it is compared with.
    """

    of: str
    steps: int
    problems: int
    mine: Mapping[str, Any]
    baselines: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """What is printed as a table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Validation:
    """A validation's score, at a meta-step, on trajectories of `horizon` steps."""

    step: int
    horizon: int
    score: float
    ci95: float


@dataclass
class Run:
    """What is known of a run.

    Attributes:
        path: its folder.
        name: to call it by.
        number: its place in the report.
        kind: train or eval.
        config: as composed, with what eval has at the top below `evaluation`, as train has it.
        overrides: of its command line.
        status: completed, diverged, failed, stopped, unfinished or damaged.
        detail: a sentence on that.
        score: what its selections minimised; None where it isn't finite, or there is none.
        final: mean and confidence interval of the loss after the last step; None where it isn't known.
        sum: the same of the sum of losses.
        over: what these are means of.
        seconds: that it took; None where that isn't known.
        curves: None where it has none.
        validations: of a meta-training.
        table: of what it compares; None where it compares nothing.
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
    final: dict[str, float | None] | None = None
    sum: dict[str, float | None] | None = None
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
        """The optimizee's settings that say which problems it has."""
        return {key: value for key, value in (self.config.get("optimizee") or {}).items() if key not in COUNTS}

    @property
    def files(self) -> list[str]:
        return [name for name in FILES if (self.path / name).exists()]

    @property
    def pictures(self) -> list[str]:
        return [name for name in PICTURES if (self.path / name).exists()]


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """All runs in folders, at any depth, numbered; and the folders of sweeps among them.

    Raises:
        StorageError: one of the folders is none, or there is no run in it.
    """
    found: dict[Path, None] = {}
    sweeps: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise StorageError(
                f"{folder} is no folder: expected that of a run or a sweep, or one that holds some, such as outputs."
            )
        before = len(found)
        here = {path: None for path in _folders(folder.resolve()) if _is_run(path)}
        if not here:
            raise StorageError(
                f"There is no run in {folder}: expected folders that l2l_runner.train or l2l_runner.eval made (with "
                ".run and .hydra)."
            )
        found |= here
        new = [path.parent for path in list(found)[before:]]
        sweeps |= {path: None for path in new if (path / ".sweep").exists()}
    root = Path(os.path.commonpath([path.parent.parent if path.parent in sweeps else path.parent for path in found]))
    runs = [Run(path, str(path.relative_to(root))) for path in found]
    runs = [run for run in runs if read_run(run)]
    if not runs:
        raise StorageError("There are but runs of other commands than l2l_runner.train and l2l_runner.eval there.")
    for number, run in enumerate(runs, 1):
        run.number = number
    return runs, [sweep for sweep in sweeps if any(run.path.parent == sweep for run in runs)]


def _folders(root: Path) -> Iterable[Path]:
    for path, children, _ in os.walk(root):
        children[:] = sorted((name for name in children if name not in INSIDE), key=sort_key)
        yield Path(path)


def _is_run(path: Path) -> bool:
    return (path / ".run").exists() or (path / ".hydra" / "overrides.yaml").exists()


def read_run(run: Run) -> bool:
    """Fill in what a run's folder holds; whether it is one of train or eval, and not of another command."""
    damages: list[str] = []

    def attempt(name: str, read: Callable[[Path], Any]) -> Any:
        """What `read` makes of a file of the folder; None where there is none, or nothing can be made of it."""
        path = run.path / name
        try:
            return read(path) if path.exists() else None
        except Exception as error:  # whatever a damaged file makes its reader raise
            why = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
            damages.append(f"{'What is in it' if name == '.' else name} cannot be read: {why}.")
            return None

    if not (run.path / ".hydra" / "config.yaml").exists():
        damages.append(".hydra/config.yaml is missing.")
    run.config = attempt(".hydra/config.yaml", _config) or {}
    if run.config and not {"optimizer", "checkpoint"} & set(run.config):
        return False
    run.kind = "eval" if "checkpoint" in run.config else "train"
    run.overrides = attempt(".hydra/overrides.yaml", overridden) or {}
    if run.kind == "eval" and not (run.config.get("optimizee") and run.config.get("seed") is not None):
        launched = attempt(
            ".hydra/hydra.yaml", lambda path: OmegaConf.select(OmegaConf.load(path), "hydra.runtime.cwd")
        )
        _complete(run, Path(str(launched)))
    records = attempt("metrics.jsonl", _records) or []
    result = attempt("result.json", _result)
    log = attempt(f"{run.kind}.log", _log) or []
    attempt(".", lambda _: _fill(run, records, result, log))
    attempt("comparison.json", lambda path: _add_comparison(run, _json(path)))
    attempt("online.json", lambda path: _add_online(run, _json(path)))
    attempt("reweighting.json", lambda path: _add_reweighting(run, _json(path)))
    if run.over and run.config.get("seed") is not None:
        run.over += f", seed {run.config['seed']}"
    if damages:
        run.status, run.detail = "damaged", " ".join(damages)
    return True


def _config(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    if not isinstance(content, dict):
        raise ValueError("no mapping")
    top = {key: value for key, value in content.items() if "checkpoint" not in content or key not in EVALUATION}
    below = {key: value for key, value in content.items() if key not in top}
    return {**top, "evaluation": below} if below else top


def _complete(run: Run, launched: Path) -> None:
    """What eval, launched in a folder, took from the checkpoint, where that is still there."""
    given = Path(str(run.config["checkpoint"])).expanduser()
    try:
        trained = checkpoint.load(launched / given if (launched / given).exists() else given)["config"]
    except UserError:
        return
    run.config["optimizee"] = run.config.get("optimizee") or trained["optimizee"]
    run.config["seed"] = trained["seed"] if run.config.get("seed") is None else run.config["seed"]


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return content


def _result(path: Path) -> dict[str, Any]:
    content = _json(path)
    return {
        "final": None,
        "sum": None,
        "error": None,
        **content,
        "status": content["status"],
        "score": content["score"],
    }


def _records(path: Path) -> list[dict[str, Any]]:
    """All whole lines: a run may be writing the last one."""
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


LOGGED = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})\]\[[^]]*\]\[\w+\] - (.*)", re.MULTILINE)


def _log(path: Path) -> list[tuple[float, str]]:
    """Time (seconds of the epoch, of this machine's time zone) and first line of each record of the log."""
    text = path.read_text(errors="replace")
    return [(datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), said) for at, said in LOGGED.findall(text)]


def _fill(
    run: Run,
    records: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any] | None,
    log: Sequence[tuple[float, str]],
) -> None:
    """Status, losses and curves, of what every run leaves behind."""
    validations = [record for record in records if record["event"] == "validation"]
    run.validations = [_validation(record, run) for record in validations]
    steps = [record for record in records if record["event"] == "step"]
    if steps or validations:
        run.over = f"{run.config['optimizee']['validation_problems']} validation problems"
    if steps:
        optimizer, problems = run.config["optimizer"], run.config["optimizee"]["validation_problems"]
        curve, ci95 = ([record[key] for record in steps] for key in ("loss", "ci95"))
        mine = {optimizer["name"]: _checked({"lr": optimizer["lr"], "curve": curve, "ci95": ci95, "diverged": 0})}
        run.curves = RunCurves("validation problems", len(steps) - 1, problems, mine)
    if result is not None:
        run.status, run.detail, run.score = result["status"], result["error"] or "", result["score"]
        run.final, run.sum = result["final"], result["sum"]
        run.seconds = _seconds(run.path, log)
        if run.status == "completed" and run.score is None:
            run.status = "diverged"
        return
    run.status = "stopped" if log and log[-1][1].startswith("Stopped at") else "unfinished"
    run.detail = _reached(run, records)
    if validations:
        best = validations[-1]["best_step"]
        (record, *_) = [record for record in reversed(validations) if record["step"] == best]
        run.score, run.final, run.sum = record["score"], record["final"], record["sum"]
        run.over += f", at meta-step {best}"


def _checked(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """An entry that can be drawn: numbers or null, as many means as intervals as steps."""
    lists = [with_nan(list(entry[key])) for key in ("curve", "ci95", "steps") if key in entry]
    if np.array(lists, dtype=float).shape[1:] == (0,):  # also an error: lists that aren't equally long
        raise ValueError("a curve of no points")
    return entry


def _add_comparison(run: Run, comparison: Mapping[str, Any]) -> None:
    """The figures on held-out problems take the place of those on validation problems."""
    steps, problems = int(comparison["steps"]), int(comparison["problems"])
    title = f"{comparison['optimizee']}, {problems} held-out problems, {steps} steps"
    table = Table(title, COMPARED, [[str(value) for value in row.values()] for row in comparison_rows(comparison)])
    entries = {name: _checked(entry) for name, entry in comparison["optimizers"].items()}
    learned = {name: entry for name, entry in entries.items() if entry["lr"] is None}
    mine = learned or dict([next(iter(entries.items()))])  # optimizer=none
    baselines = {name: entry for name, entry in entries.items() if name not in mine}
    (first, *_) = mine.values()
    run.final, run.sum, run.over = first["final"], first["sum"], f"{problems} test problems"
    if first["diverged"]:
        run.detail = f"{first['diverged']} of {problems} test problems diverged"
    run.table = table
    run.curves = RunCurves("held-out test problems", steps, problems, mine, baselines)


def _add_online(run: Run, online: Mapping[str, Any]) -> None:
    arms = {name: arm for name, arm in online["arms"].items() if arm["steps"]}
    rows, mine = [], {}
    for name, arm in arms.items():
        last = {metric: with_ci(values[-1]) for metric, values in arm["metrics"].items()}
        told = ", ".join(f"{metric} {value}" for metric, value in last.items())
        of = f"{arm['diverged']} of {arm['runs'][0]}"
        rows.append([name, str(arm["steps"][-1]), with_ci(arm["loss"][-1]), told, of])
        curve, ci95 = ([loss[key] for loss in arm["loss"]] for key in ("mean", "ci95"))
        entry = {"lr": None, "curve": curve, "ci95": ci95, "diverged": arm["diverged"], "steps": [*arm["steps"]]}
        mine[f"{online['optimizer']}, {name}"] = _checked(entry)
    trajectories = max((arm["runs"][0] for arm in arms.values()), default=0)
    title = f"{online['optimizee']}, {trajectories} trajectories of {online['steps']} steps"
    run.over = f"{trajectories} trajectories, training loss"
    run.table = Table(title, ("arm", "step", "training loss", "metrics", "diverged"), rows)
    run.curves = RunCurves("trajectories, training loss", online["steps"], trajectories, mine) if mine else None


def _add_reweighting(run: Run, reweighting: Mapping[str, Any]) -> None:
    rows, trajectories = [], 0
    for entry in reweighting["proportions"]:
        arms = entry["arms"]
        cells = [with_ci(arms[arm]) if arm in arms else "not run" for arm in ("plain", "reweighted")]
        rows.append([f"{entry['proportion']:.4g}", *cells])
        trajectories += len(arms["reweighted"]["accuracies"]) if "reweighted" in arms else 0
    title = f"{reweighting['optimizee']}, accuracy on balanced test images after {reweighting['steps']} steps"
    run.over = f"{trajectories} trajectories, error on test images"
    run.table = Table(title, ("proportion", "plain", "reweighted"), rows)


def _validation(record: Mapping[str, Any], run: Run) -> Validation:
    value = record[run.scored]
    horizon = record.get("horizon", run.config["unroll"]["steps"])  # older runs have but one
    mean, ci95 = (math.nan if value[key] is None else value[key] for key in ("mean", "ci95"))
    return Validation(record["step"], horizon, mean, ci95)


def _reached(run: Run, records: Sequence[Mapping[str, Any]]) -> str:
    """How far a run has come that has left no result."""
    last = records[-1] if records else None
    if last is None:
        return "it has recorded nothing"
    if last["event"] in ("meta_step", "imitation", "validation"):
        return f"at meta-step {last['step']} of {run.config['meta']['steps']}"
    return f"at step {last['step']} of {run.config['unroll']['steps']}, trajectory {last.get('run', 0) + 1}"


def _seconds(path: Path, log: Sequence[tuple[float, str]]) -> float | None:
    """From the claim of the folder to its result, without the time that the run was stopped.

    None where the files' times don't fit those of the log, as in a copy or from another time zone, or where the run
    was killed, so that nobody knows when.
    """
    if not (path / ".run").exists() or not log:
        return None
    begin, end = ((path / name).stat().st_mtime for name in (".run", "result.json"))
    gaps = 0.0
    for (at, said), (later, then) in pairwise(log):
        if then.startswith("Resumed"):
            if not said.startswith("Stopped at"):
                return None
            gaps += later - at
    return end - begin - gaps if begin - 1 <= log[0][0] and log[-1][0] <= end + 1 else None
