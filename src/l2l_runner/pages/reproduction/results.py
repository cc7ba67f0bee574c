"""The comparisons that the stages left, as the figures, numbers and claims read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from l2l_runner.optimizers import HAND_DESIGNED
from l2l_runner.pages.reproduction.running import StageOutcome
from l2l_runner.runs.reading import read_comparison
from l2l_runner.runs.results import Entry, Interval, Summary


class Results:
    """The comparisons of the finished stages."""

    def __init__(self, outcomes: Mapping[str, StageOutcome]):
        self.outcomes = outcomes
        self._read: dict[str, Summary | None] = {}

    def comparison(self, stage: str) -> Summary | None:
        """Return a stage's comparison; None where it has none."""
        outcome = self.outcomes.get(stage)
        if outcome is None or outcome.status != "finished":
            return None
        if stage not in self._read:
            self._read[stage] = read_comparison(outcome.folder.path)
        return self._read[stage]

    def optimizers(self, stage: str) -> Mapping[str, Entry]:
        """Return the optimizers of a stage's comparison; none where it has none."""
        comparison = self.comparison(stage)
        return {} if comparison is None else comparison.optimizers

    def learned(self, stage: str) -> list[str]:
        """Return the names of the learned optimizers; the first is the reference of the comparison."""
        return [name for name in self.optimizers(stage) if name not in HAND_DESIGNED]

    def baselines(self, stage: str) -> list[str]:
        """Return the names of the hand-designed optimizers."""
        return [name for name in self.optimizers(stage) if name in HAND_DESIGNED]

    def loss(self, stage: str, optimizer: str, step: int) -> Interval | None:
        """Return the mean loss at a step; None where the comparison does not have it."""
        entry = self.optimizers(stage).get(optimizer)
        if entry is None or step >= len(entry.curve):
            return None
        return Interval(entry.curve[step], entry.ci95[step])

    def recent(self, stage: str, optimizer: str, step: int) -> float | None:
        """Return the mean loss of the last tenth of the steps up to one, which averages out the minibatches' noise."""
        entry = self.optimizers(stage).get(optimizer)
        if entry is None or step >= len(entry.curve):
            return None
        latest = entry.curve[max(1, step - step // 10) : step + 1]
        return float(sum(latest) / len(latest))

    def final(self, stage: str, optimizer: str) -> Interval | None:
        """Return the mean loss after the last step; None where the comparison does not have it."""
        entry = self.optimizers(stage).get(optimizer)
        return None if entry is None else entry.final

    def advantage(self, stage: str, baseline: str) -> Interval:
        """Return by how much a baseline's final loss is above the first learned optimizer's, problem by problem."""
        paired = self.optimizers(stage)[baseline].paired
        assert paired is not None, f"{baseline} is the reference of {stage}"
        return paired.final

    def best_baseline(self, stage: str) -> str:
        """Return the baseline with the lowest final loss; one that diverged counts as infinitely high."""
        finals = {name: self.optimizers(stage)[name].final.mean for name in self.baselines(stage)}
        return min(finals, key=lambda name: finals[name] if math.isfinite(finals[name]) else math.inf)
