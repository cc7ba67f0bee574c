"""What came out of the stages, as the figures, numbers and claims read it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from l2l_runner.files import with_nan
from l2l_runner.optimizers import HAND_DESIGNED
from l2l_runner.pages.reproduction.running import StageOutcome

Value = Mapping[str, float]
"""A `mean` with `ci95`, half of its 95 % confidence interval."""


class Results:
    """The comparisons of the stages that are finished."""

    def __init__(self, outcomes: Mapping[str, StageOutcome]):
        self.outcomes = outcomes
        self._read: dict[str, Any] = {}

    def comparison(self, stage: str) -> Mapping[str, Any] | None:
        """comparison.json of a stage, with NaN for null; None where there is none."""
        outcome = self.outcomes.get(stage)
        if outcome is None or outcome.status != "finished":
            return None
        if stage not in self._read:
            content = outcome.folder.read_json("comparison.json")
            for entry in content["optimizers"].values() if content else ():
                lr = entry["lr"]
                entry |= with_nan(entry) | {"lr": lr}
            self._read[stage] = content
        found: Mapping[str, Any] | None = self._read[stage]
        return found

    def optimizers(self, stage: str) -> Mapping[str, Any]:
        """The optimizers of a stage's comparison; none where there is none."""
        comparison = self.comparison(stage)
        return {} if comparison is None else comparison["optimizers"]

    def learned(self, stage: str) -> list[str]:
        """The names of the learned ones; the first is the one that the others are compared with."""
        return [name for name in self.optimizers(stage) if name not in HAND_DESIGNED]

    def baselines(self, stage: str) -> list[str]:
        """The names of the hand-designed ones."""
        return [name for name in self.optimizers(stage) if name in HAND_DESIGNED]

    def loss(self, stage: str, optimizer: str, step: int) -> Value | None:
        """The mean loss at a step; None where the comparison doesn't hold it."""
        entry = self.optimizers(stage).get(optimizer)
        if entry is None or step >= len(entry["curve"]):
            return None
        return {"mean": entry["curve"][step], "ci95": entry["ci95"][step]}

    def recent(self, stage: str, optimizer: str, step: int) -> float | None:
        """The mean loss of the last tenth of the steps up to one, where the noise of the minibatches averages out."""
        entry = self.optimizers(stage).get(optimizer)
        if entry is None or step >= len(entry["curve"]):
            return None
        latest = entry["curve"][max(1, step - step // 10) : step + 1]
        return float(sum(latest) / len(latest))

    def final(self, stage: str, optimizer: str) -> Value | None:
        """The mean loss after the last step."""
        entry = self.optimizers(stage).get(optimizer)
        return None if entry is None else entry["final"]

    def advantage(self, stage: str, baseline: str) -> Value:
        """By how much a baseline's final loss is higher than the first learned optimizer's, problem by problem."""
        value: Value = self.optimizers(stage)[baseline]["paired"]["final"]
        return value

    def best_baseline(self, stage: str) -> str:
        """The one with the lowest final loss; one that diverged is none."""
        finals = {name: self.optimizers(stage)[name]["final"]["mean"] for name in self.baselines(stage)}
        return min(finals, key=lambda name: finals[name] if math.isfinite(finals[name]) else math.inf)
