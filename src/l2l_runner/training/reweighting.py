"""Learning to reweight examples (Ren et al. 2018, arXiv 1803.09050), beside plain training on the same minibatches.

Each step weights the examples of its minibatch by how much a step on each of them would lower the loss of a few clean
examples. Both arms train on the very same problems; their accuracies are compared over proportions of imbalance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor

from l2l_runner import plots, streams
from l2l_runner.evaluation.statistics import align, interval
from l2l_runner.fields import plain
from l2l_runner.meta import ReweightConfig
from l2l_runner.optimizees import Problem
from l2l_runner.optimizees.reweighted import Reweighted
from l2l_runner.optimizers import HandDesigned, Optimizer
from l2l_runner.runs import checkpoint
from l2l_runner.runs.results import Interval, RunResult
from l2l_runner.training.arms import Arms, Window
from l2l_runner.unroll import Point, unroll

log = logging.getLogger(__name__)

ARMS = ("plain", "reweighted")

PUBLISHED = {
    "plain": {0.995: 0.507},
    "reweighted": {0.9: 0.979, 0.95: 0.986, 0.98: 0.966, 0.99: 0.975, 0.995: 0.955},
}
"""Published accuracies on MNIST's 9 against 4, by proportion."""


@dataclass(frozen=True)
class ReweightingReading:
    """What is read of a trajectory at a step.

    Attributes:
        run: number of the run.
        proportion: of the frequent class.
        arm: plain or reweighted.
        step: steps taken.
        loss: mean loss, weighted as the arm has it, of the steps since the last reading; of the start, its loss.
        accuracy: on the balanced test images.
    """

    run: int
    proportion: float
    arm: str
    step: int
    loss: float
    accuracy: float


class Reweighting(Arms[ReweightingReading]):
    """For each run and proportion a trajectory of either arm."""

    reading_type = ReweightingReading

    def begin(self) -> None:
        super().begin()
        assert isinstance(self.config.meta, ReweightConfig)
        assert isinstance(self.config.optimizer, HandDesigned)
        self.meta, self.optimizer = self.config.meta, self.config.optimizer
        # A run has all proportions before the next one starts, so that the picture is whole early.
        self.trajectories = list(product(range(self.meta.runs), self.meta.proportions, ARMS))

    def state(self) -> Mapping[str, Any]:
        return {**checkpoint.run_state(self.config, self.progress), **self.saved_point()}

    @property
    def read_every(self) -> int:
        return self.meta.read_every

    @property
    def label(self) -> str:
        run, proportion, arm = self.present
        return f"run {run + 1}, {proportion:.4g} {arm}"

    @property
    def where(self) -> str:
        if self.done:
            return "the end"
        run, proportion, arm = self.present
        return f"step {self.progress.step} of {self.steps}, {proportion:.4g} {arm}, run {run + 1} of {self.meta.runs}"

    @property
    def description(self) -> str:
        return (
            f"Reweighting the examples of {self.config.optimizee.name}: {self.meta.runs} runs of "
            f"{len(self.meta.proportions)} proportions, {self.steps} steps of {self.optimizer.name} each, on "
            f"{self.runtime.device}, seed {self.config.seed}"
        )

    def open(self) -> tuple[Problem, Optimizer]:
        run, proportion, arm = self.present
        seeds = streams.seeds(self.config.seed, "train", run, 1, self.runtime.device)
        problem = self.config.optimizee.at_proportion(proportion).sample(seeds, self.runtime)
        return Reweighted(problem) if arm == "reweighted" else problem, self.optimizer

    def windows(self, problem: Problem, point: Point) -> Iterator[Window]:
        for _, reached in unroll(problem, self.optimizer, point, self.steps - point.step):
            yield Window(reached.loss, reached)

    def read(self, problem: Problem, params: Tensor, step: int, loss: float) -> ReweightingReading:
        run, proportion, arm = self.present
        accuracy = problem.metrics(problem.layout.views(params))["accuracy"].item()
        return ReweightingReading(run, proportion, arm, step, loss, accuracy)

    def figures(self, reading: ReweightingReading) -> dict[str, str]:
        return {"loss": f"{reading.loss:.4g}", "accuracy": f"{reading.accuracy:.4f}"}

    def close(self, problem: Problem, complete: bool) -> None:
        log.info("%s: accuracy %.4f", self.label.capitalize(), self.readings[-1].accuracy)
        if not complete:
            log.warning("It diverged; a lower optimizer.lr may help.")

    def after_trajectory(self) -> None:
        self._write(self.summary())

    def finish(self) -> RunResult:
        summary = self.summary()
        self._write(summary)
        log.info("%s", table(summary))
        log.info("%s\n%s", self.folder.path / "reweighting.json", self.folder.path / "reweighting.png")
        ends = [reading for reading in self.readings if reading.step == self.steps and reading.arm == "reweighted"]
        error = interval([1 - reading.accuracy for reading in ends])
        status = "completed" if all(math.isfinite(reading.loss) for reading in ends) else "diverged"
        return RunResult(status, error.mean, error)

    def summary(self) -> dict[str, Any]:
        """Return the content of reweighting.json: for each proportion and arm, accuracies of the trajectories done.

        `mean` and `ci95` are over the `accuracies` of the runs; `curve` has both for each of `steps`.
        """
        proportions = []
        for proportion in self.meta.proportions:
            arms: dict[str, Any] = {}
            for arm in ARMS:
                mine = [reading for reading in self.readings if (reading.proportion, reading.arm) == (proportion, arm)]
                steps = sorted({reading.step for reading in mine})
                rows = [[reading.accuracy for reading in mine if reading.step == step] for step in steps]
                if rows:
                    curve = [interval(row).to_json() for row in rows]
                    arms[arm] = {"accuracies": rows[-1], **curve[-1], "steps": steps, "curve": curve}
                    arms[arm]["published"] = self._published(arm, proportion)
            proportions.append({"proportion": proportion, "arms": arms})
        settings = {key: plain(getattr(self.config, key)) for key in ("seed", "optimizee", "optimizer", "meta")}
        return {
            "optimizee": self.config.optimizee.name,
            "optimizer": self.optimizer.name,
            "steps": self.steps,
            "settings": settings,
            "proportions": proportions,
        }

    def _published(self, arm: str, proportion: float) -> float | None:
        optimizee = plain(self.config.optimizee)
        same = (optimizee["data"], optimizee["classes"]) == ("mnist", [9, 4])
        return PUBLISHED[arm].get(proportion) if same else None

    def _write(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_json("reweighting.json", summary)
        self.folder.draw(plots.reweighting, "reweighting.png", summary)


def table(summary: Mapping[str, Any]) -> str:
    """Return the accuracies after the last step, as the table that is printed; published ones in brackets."""
    rows = [["proportion", "runs", *ARMS]]
    for entry in summary["proportions"]:
        arms = entry["arms"]
        row = [f"{entry['proportion']:.4g}", str(len(arms["reweighted"]["accuracies"]))]
        for arm in (arms[name] for name in ARMS):
            published = f" ({arm['published']:.4g})" if arm["published"] is not None else ""
            row.append(Interval.from_json(arm).shown() + published)
        rows.append(row)
    head = (
        f"{summary['optimizee']}, accuracy on balanced test images after {summary['steps']} steps of "
        f"{summary['optimizer']}, mean ± half of the 95 % confidence interval over runs (published):"
    )
    return "\n".join([head, *align(rows)])
