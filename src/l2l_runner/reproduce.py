"""python -m l2l_runner.reproduce: the figures of the paper, expected beside obtained."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l_runner.errors import UserError
from l2l_runner.launch.hydra import Command, launch
from l2l_runner.launch.overrides import quoted

if TYPE_CHECKING:
    from l2l_runner.pages.reproduction.settings import ReproduceConfig

log = logging.getLogger(__name__)


class ClaimsFailed(UserError):
    """Claims that held before fail now."""


class StagesFailed(UserError):
    """Stages failed for other reasons than missing data."""


def parse(composed: dict[str, Any], given: Collection[str]) -> ReproduceConfig:
    """Check a composed configuration and return it typed."""
    from l2l_runner.pages.reproduction.settings import parse_reproduce

    return parse_reproduce(composed)


def reproduce(config: ReproduceConfig, path: Path) -> dict[str, Any]:
    """Run the stages of the chosen figures, and write the page; the score is the number of claims that fail."""
    from l2l_runner.evaluation.statistics import align
    from l2l_runner.pages.reproduction.page import held_before, keep, remember, verdict, write_report
    from l2l_runner.pages.reproduction.running import run_stages
    from l2l_runner.pages.reproduction.stages import stages_of
    from l2l_runner.runtime import describe, pick_device
    from l2l_runner.stopping import Stopped

    device = pick_device(config.device.name)
    root = Path(config.folder).expanduser().absolute()
    stages = stages_of(config)
    machine = [
        f"device={config.device.name}",
        f"device.dtype={config.device.dtype}",
        f"device.threads={config.device.threads or 'null'}",
        f"data.root={quoted(config.data.root)}",
        f"data.download={str(config.data.download).lower()}",
    ]
    held = root / f"held-{config.budget.name}.json"
    against = [held, Path(config.against).expanduser()] if config.against else []
    before = {key for path in against for key in held_before(path, config.budget.name)}
    outcomes = run_stages(stages, root / "stages", machine, config.jobs)
    report = write_report(root, config, outcomes, describe(device))
    tell = align([[verdict(claim), claim["text"], claim["obtained"] or ""] for claim in report["claims"]])
    tell += [f"{stage['name']}: {stage['reason']}" for stage in report["stages"] if stage["reason"]]
    log.info("%s", "\n".join([*tell, str(root / "index.html"), str(root / "index.md")]))
    if any(outcome.status == "stopped" for outcome in outcomes.values()):
        raise Stopped("Stopped; everything is saved. To resume, repeat the command.", 130)
    lost = [claim["key"] for claim in report["claims"] if claim["holds"] is False and claim["key"] in before]
    if lost:
        raise ClaimsFailed(
            f"Claims that held before fail now: {', '.join(lost)}; see {root / 'index.html'}. Find what has "
            "changed, or accept it with against=null."
        )
    remember(held, report)
    if config.keep:
        keep(root, Path(config.keep).expanduser())
    broken = [name for name, outcome in outcomes.items() if outcome.status == "failed"]
    if broken:
        raise StagesFailed(f"{', '.join(broken)} failed; see {root / 'index.html'} and the logs in {root / 'stages'}.")
    return {"status": "completed", "score": float(sum(claim["holds"] is False for claim in report["claims"]))}


def main() -> None:
    """Run the console script l2l-reproduce."""
    launch(Command("reproduce", parse, reproduce))


if __name__ == "__main__":
    main()
