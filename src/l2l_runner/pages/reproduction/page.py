"""The page of a reproduction: figures, the paper's numbers beside those obtained, claims, commands and times."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import l2l_runner
from l2l_runner.errors import ConfigError, reason
from l2l_runner.files import jsonable, read_json, write_json
from l2l_runner.pages.reproduction.figures import Drawing, drawings
from l2l_runner.pages.reproduction.numbers import NUMBERS, claims
from l2l_runner.pages.reproduction.results import Results
from l2l_runner.pages.reproduction.running import StageOutcome
from l2l_runner.pages.reproduction.settings import ReproduceConfig
from l2l_runner.pages.write import comparison_header, comparison_rows, write_pages
from l2l_runner.plots.style import label_of
from l2l_runner.runs.results import Interval, Summary

TITLE = "Learning to learn by gradient descent by gradient descent, reproduced"


def write_report(
    root: Path, config: ReproduceConfig, outcomes: Mapping[str, StageOutcome], machine: Mapping[str, str]
) -> dict[str, Any]:
    """Draw the figures and write index.html, index.md and report.json into `root`.

    Args:
        root: the folder.
        config: of the reproduction.
        outcomes: how the stages ended, by name.
        machine: what it was computed on.

    Returns:
        The content of report.json.

    Raises:
        StorageError: a file cannot be written.
    """
    results = Results(outcomes)
    report: dict[str, Any] = {
        "version": l2l_runner.__version__,
        "budget": config.budget.name,
        "seed": config.seed,
        "machine": dict(machine),
        "seconds": sum(outcome.seconds for outcome in outcomes.values()),
        "figures": [_figure(root, one, results) for one in drawings(config.budget) if one.figure in config.figures],
        "numbers": _numbers(results, config.figures),
        "claims": _claims(results, config),
        "horizons": _horizons(results) if "long" in config.figures else [],
        "stages": [_stage(outcome) for outcome in outcomes.values()],
    }
    report = jsonable(report)
    write_json(root / "report.json", report)
    write_pages(
        root,
        Path(__file__).parent / "templates",
        title=TITLE,
        report=report,
        verdict=verdict,
        compared=comparison_header(),
    )
    return report


def keep(root: Path, target: Path) -> None:
    """Copy the figures, the page in Markdown and report.json."""
    (target / "figures").mkdir(parents=True, exist_ok=True)
    for name in ("index.md", "report.json"):
        shutil.copyfile(root / name, target / name)
    for picture in read_json(root / "report.json")["figures"]:
        if picture["file"] is not None:
            shutil.copyfile(root / picture["file"], target / picture["file"])


def held_before(path: Path, budget: str) -> set[str]:
    """Return the claims that hold in an earlier report; none where it does not exist or is of another budget.

    Raises:
        ConfigError: the file is no report.
    """
    try:
        earlier = read_json(path)
        if earlier is None:
            return set()
        held = {str(claim["key"]) for claim in earlier["claims"] if claim["holds"]}
        return held if earlier["budget"] == budget else set()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"against: {path} is no report ({reason(error)}); expected a report.json of this command, or against=null."
        ) from error


def remember(path: Path, report: Mapping[str, Any]) -> None:
    """Write down which claims held, for `held_before`; claims that were not checked this time keep their verdict."""
    claims = {claim["key"]: claim["holds"] for claim in report["claims"] if claim["holds"] is not None}
    held = dict.fromkeys(held_before(path, report["budget"]), True) | claims
    content = {"budget": report["budget"], "claims": [{"key": key, "holds": held[key]} for key in sorted(held)]}
    write_json(path, content)


def verdict(claim: Mapping[str, Any]) -> str:
    """Return whether a claim of a report holds, as text."""
    if claim["holds"] is None:
        return "not run" if claim["obtained"] is None else "undecided"
    return "holds" if claim["holds"] else "fails"


def _figure(root: Path, drawing: Drawing, results: Results) -> dict[str, Any]:
    name = f"figures/figure-{drawing.figure}.png"
    (root / "figures").mkdir(exist_ok=True)
    drawn = drawing.draw(results, root / name)
    shown = [results.comparison(stage) for stage in drawing.stages]
    found = [(stage, one) for stage, one in zip(drawing.stages, shown, strict=True) if one is not None]
    return {
        "figure": drawing.figure,
        "title": drawing.title,
        "caption": drawing.caption,
        "file": name if drawn else None,
        "tables": [_table(stage, comparison) for stage, comparison in found],
    }


def _table(stage: str, comparison: Summary) -> dict[str, Any]:
    """Return a comparison as rows to be printed."""
    sizes = {"steps": comparison.steps, "problems": comparison.problems}
    return {"stage": stage, **sizes, "rows": comparison_rows(comparison)}


def _numbers(results: Results, figures: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for row in NUMBERS:
        if row.figure in figures:
            losses = {}
            for name, paper in row.losses.items():
                value = results.loss(row.stage, name, row.step)
                losses[label_of(name)] = {"paper": paper, "obtained": None if value is None else value.shown()}
            rows.append({"figure": row.figure, "what": row.what, "step": row.step, "losses": losses})
    return rows


HORIZONS = (100, 200, 1000, 10_000)


def _horizons(results: Results) -> list[dict[str, Any]]:
    """Return the losses of each optimizer past its training horizon, and on ReLU."""
    rows = []
    for name in dict.fromkeys([*results.optimizers("long"), *results.optimizers("long-relu")]):
        losses = {step: results.recent("long", name, step) for step in HORIZONS}
        relu, entry = results.final("long-relu", name), results.optimizers("long").get(name)
        rows.append(
            {
                "optimizer": label_of(name),
                "losses": {step: "" if loss is None else Interval(loss).shown() for step, loss in losses.items()},
                "diverged": "" if entry is None else str(entry.diverged),
                "relu": "" if relu is None else relu.shown(),
            }
        )
    return rows


def _claims(results: Results, config: ReproduceConfig) -> list[dict[str, Any]]:
    rows = []
    for claim in claims(config.budget):
        if claim.figure in config.figures:
            verdict = claim.check(results)
            rows.append(
                {
                    "key": claim.key,
                    "figure": claim.figure,
                    "text": claim.text,
                    "holds": None if verdict is None else verdict.holds,
                    "obtained": None if verdict is None else verdict.obtained,
                }
            )
    return rows


def _stage(outcome: StageOutcome) -> dict[str, Any]:
    return {
        "name": outcome.stage.name,
        "command": outcome.command,
        "status": outcome.status,
        "seconds": outcome.seconds,
        "reason": "" if outcome.status == "finished" else ": ".join(filter(None, [outcome.status, outcome.error])),
        "folder": outcome.folder.path.name,
    }
