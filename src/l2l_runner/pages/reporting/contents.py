"""Reading what runs left, for a report. A damaged run says so, and hides no other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from l2l_runner.errors import StorageError, UserError, reason
from l2l_runner.files import read_json
from l2l_runner.pages.reporting.runs import Run, RunCurves, Table, Validation, find_runs
from l2l_runner.pages.write import comparison_header, comparison_rows
from l2l_runner.runs import checkpoint, reading
from l2l_runner.runs.reading import LogRecord
from l2l_runner.runs.results import Entry, Interval, RunResult, Summary

EVALUATION = ("baselines", "steps", "problems", "tune", "chunk")
"""Keys that `eval` has at the top and `train` below `evaluation`."""

T = TypeVar("T")


class Attempt(Protocol):
    """A function that reads a file of a run's folder, and notes a damage instead of raising."""

    def __call__(self, name: str, read: Callable[[Path], T | None]) -> T | None: ...


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Find and read all runs in folders, at any depth, and number them.

    Returns:
        The runs, and the folders of the sweeps among them.

    Raises:
        StorageError: one of the folders does not exist, or holds no run of train or eval.
    """
    found, sweeps = find_runs(folders)
    root = Path(os.path.commonpath([path.parent.parent if path.parent in sweeps else path.parent for path in found]))
    runs = [Run(path, str(path.relative_to(root))) for path in found]
    runs = [run for run in runs if _read(run)]
    if not runs:
        raise StorageError("All runs there are of other commands than l2l_runner.train and l2l_runner.eval.")
    for number, run in enumerate(runs, 1):
        run.number = number
    return runs, [sweep for sweep in sweeps if any(run.path.parent == sweep for run in runs)]


def _read(run: Run) -> bool:
    """Fill in what a run's folder holds; return whether it is a run of train or eval."""
    damages: list[str] = []

    def attempt(name: str, read: Callable[[Path], T | None]) -> T | None:
        """Return what `read` makes of the folder, or None; note a damage of the file `name`."""
        try:
            return read(run.path)
        except Exception as error:  # whatever a damaged file makes its reader raise
            why = f"{error} is missing" if isinstance(error, KeyError) else reason(error)
            damages.append(f"{name} cannot be read: {why}.")
            return None

    composed = attempt(".hydra/config.yaml", reading.read_config)
    if composed and not {"optimizer", "checkpoint"} & set(composed):
        return False
    if composed:
        _read_contents(run, composed, attempt)
    elif not damages:
        damages.append(".hydra/config.yaml is missing.")
    if damages:
        run.status, run.detail = "damaged", " ".join(damages)
    return True


def _read_contents(run: Run, composed: dict[str, Any], attempt: Attempt) -> None:
    """Fill in what the folder of a run with this configuration holds."""
    run.kind = "eval" if "checkpoint" in composed else "train"
    run.config = _as_train(composed)
    run.overrides = attempt(".hydra/overrides.yaml", reading.read_overrides) or {}
    if run.kind == "eval" and not (run.config.get("optimizee") and run.config.get("seed") is not None):
        _complete(run, attempt(".hydra/hydra.yaml", reading.read_launch_folder) or Path())
    records = attempt("metrics.jsonl", reading.read_records) or []
    result = attempt("result.json", reading.read_result)
    log = reading.read_log(run.path / f"{run.kind}.log")
    attempt("The folder", lambda _: _fill(run, records, result, log))
    attempt("comparison.json", lambda folder: _add_comparison(run, reading.read_comparison(folder)))
    attempt("online.json", lambda folder: _add_online(run, read_json(folder / "online.json")))
    attempt("reweighting.json", lambda folder: _add_reweighting(run, read_json(folder / "reweighting.json")))
    if run.over and run.config.get("seed") is not None:
        run.over += f", seed {run.config['seed']}"


def _as_train(composed: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the keys of an evaluation where `train` has them."""
    if "checkpoint" not in composed:
        return composed
    below = {key: value for key, value in composed.items() if key in EVALUATION}
    return {**{key: value for key, value in composed.items() if key not in below}, "evaluation": below}


def _complete(run: Run, launched: Path) -> None:
    """Add what `eval`, launched in a folder, took from its checkpoint, if that is still there."""
    given = Path(str(run.config["checkpoint"])).expanduser()
    try:
        trained = checkpoint.load(launched / given if (launched / given).exists() else given)["config"]
    except UserError:
        return
    run.config["optimizee"] = run.config.get("optimizee") or trained["optimizee"]
    run.config["seed"] = trained["seed"] if run.config.get("seed") is None else run.config["seed"]


def _fill(run: Run, records: Sequence[Mapping[str, Any]], result: RunResult | None, log: Sequence[LogRecord]) -> None:
    """Fill in status, losses and curves, from what every run leaves."""
    validations = [record for record in records if record["event"] == "validation"]
    run.validations = [_validation(record, run) for record in validations]
    steps = [record for record in records if record["event"] == "step"]
    if steps or validations:
        run.over = f"{run.config['optimizee']['validation_problems']} validation problems"
    if steps:
        losses = [Interval.from_json({"mean": record["loss"], "ci95": record["ci95"]}) for record in steps]
        optimizer, problems = run.config["optimizer"], run.config["optimizee"]["validation_problems"]
        mine = {optimizer["name"]: _entry(losses, optimizer["lr"])}
        run.curves = RunCurves("validation problems", len(steps) - 1, problems, mine)
    if result is not None:
        run.status, run.detail = result.status, result.error or ""
        run.score = result.score if math.isfinite(result.score) else None
        run.final, run.sum = result.final, result.sum
        run.seconds = _seconds(run.path, log)
        return
    run.status = "stopped" if log and log[-1].message.startswith("Stopped at") else "unfinished"
    run.detail = _reached(run, records)
    if validations:
        best = validations[-1]["best_step"]
        (record, *_) = [record for record in reversed(validations) if record["step"] == best]
        run.score = record["score"]
        run.final, run.sum = Interval.from_json(record["final"]), Interval.from_json(record["sum"])
        run.over += f", at meta-step {best}"


def _entry(losses: Sequence[Interval], lr: float | None, diverged: int = 0, steps: list[int] | None = None) -> Entry:
    """Return a curve that can be drawn; the sum of its losses is unknown.

    Raises:
        ValueError: there are more steps than losses, or fewer.
    """
    if steps is not None and len(steps) != len(losses):
        raise ValueError(f"{len(losses)} losses at {len(steps)} steps")
    curve, ci95 = [loss.mean for loss in losses], [loss.ci95 for loss in losses]
    return Entry(lr, Interval(math.nan), losses[-1], diverged, curve, ci95, steps=steps)


def _add_comparison(run: Run, summary: Summary | None) -> None:
    """Put results on held-out problems in the place of those on validation problems."""
    if summary is None:
        return
    steps, problems = summary.steps, summary.problems
    title = f"{summary.optimizee}, {problems} held-out problems, {steps} steps"
    rows = [[str(value) for value in row.values()] for row in comparison_rows(summary)]
    learned = {name: entry for name, entry in summary.optimizers.items() if entry.lr is None}
    mine = learned or dict([next(iter(summary.optimizers.items()))])  # optimizer=none
    baselines = {name: entry for name, entry in summary.optimizers.items() if name not in mine}
    (first, *_) = mine.values()
    run.final, run.sum, run.over = first.final, first.sum, f"{problems} test problems"
    if first.diverged:
        run.detail = f"{first.diverged} of {problems} test problems diverged"
    run.table = Table(title, comparison_header(summary.gain), rows)
    run.curves = RunCurves("held-out test problems", steps, problems, mine, baselines)


def _add_online(run: Run, online: Mapping[str, Any] | None) -> None:
    """Add the arms of online learning."""
    if online is None:
        return
    gain = online["gain"]
    rows, mine, trajectories = [], {}, 0
    for name, arm in online["arms"].items():
        if not arm["steps"]:
            continue
        losses = [Interval.from_json(loss) for loss in arm["loss"]]
        last = {metric: Interval.from_json(values[-1]).shown() for metric, values in arm["metrics"].items()}
        metrics = ", ".join(f"{metric} {value}" for metric, value in last.items())
        of = f"{arm['diverged']} of {arm['runs'][0]}"
        rows.append([name, str(arm["steps"][-1]), losses[-1].shown(-1 if gain else 1), metrics, of])
        mine[f"{online['optimizer']}, {name}"] = _entry(losses, None, arm["diverged"], list(arm["steps"]))
        trajectories = max(trajectories, arm["runs"][0])
    title = f"{online['optimizee']}, {trajectories} trajectories of {online['steps']} steps"
    run.over = f"{trajectories} trajectories, training loss"
    run.table = Table(title, ("arm", "step", f"training {gain or 'loss'}", "metrics", "diverged"), rows)
    run.curves = RunCurves("trajectories, training loss", online["steps"], trajectories, mine) if mine else None


def _add_reweighting(run: Run, reweighting: Mapping[str, Any] | None) -> None:
    """Add the accuracies of reweighted and plain training."""
    if reweighting is None:
        return
    rows, trajectories = [], 0
    for entry in reweighting["proportions"]:
        arms = entry["arms"]
        cells = [Interval.from_json(arms[arm]).shown() if arm in arms else "not run" for arm in ("plain", "reweighted")]
        rows.append([f"{entry['proportion']:.4g}", *cells])
        trajectories += len(arms["reweighted"]["accuracies"]) if "reweighted" in arms else 0
    title = f"{reweighting['optimizee']}, accuracy on balanced test images after {reweighting['steps']} steps"
    run.over = f"{trajectories} trajectories, error on test images"
    run.table = Table(title, ("proportion", "plain", "reweighted"), rows)


def _validation(record: Mapping[str, Any], run: Run) -> Validation:
    return Validation(record["step"], record["horizon"], Interval.from_json(record[run.scored]))


def _reached(run: Run, records: Sequence[Mapping[str, Any]]) -> str:
    """Return how far a run without a result came."""
    last = records[-1] if records else None
    if last is None:
        return "it has recorded nothing"
    if last["event"] in ("meta_step", "imitation", "validation"):
        return f"at meta-step {last['step']} of {run.config['meta']['steps']}"
    return f"at step {last['step']} of {run.config['unroll']['steps']}, trajectory {last.get('run', 0) + 1}"


def _seconds(path: Path, log: Sequence[LogRecord]) -> float | None:
    """Return the time from the claim of the folder to its result, without the time that the run was stopped.

    It is None where it cannot be known: the times of the files do not fit those of the log (in a copy, or from another
    time zone), or the run was killed and resumed.
    """
    if not (path / ".run").exists() or not log:
        return None
    begin, end = ((path / name).stat().st_mtime for name in (".run", "result.json"))
    gaps = 0.0
    for before, after in pairwise(log):
        if after.message.startswith("Resumed"):
            if not before.message.startswith("Stopped at"):
                return None
            gaps += after.time - before.time
    return end - begin - gaps if begin - 1 <= log[0].time and log[-1].time <= end + 1 else None
