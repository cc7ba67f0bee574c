"""Learning to reweight examples (Ren et al. 2018, arXiv 1803.09050), beside plain training on the same minibatches.

Each step weights the examples of its minibatch by how much a step on each of them would lower the loss of a few clean
examples. Both arms train on the very same problems; their accuracies are compared over proportions of imbalance.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_runner import streams
from l2l_runner.evaluation.curves import align, mean_ci, with_ci
from l2l_runner.optimizees import Problem, Reweighted
from l2l_runner.optimizers import HandDesigned
from l2l_runner.plots import plotting
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.resuming import last_state, stopped
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Reweight, TrainConfig
from l2l_runner.stopping import stop_requests
from l2l_runner.unroll import Point, start, unroll

log = logging.getLogger(__name__)

ARMS = ("plain", "reweighted")

# Accuracies on MNIST's 9 against 4 by proportion, as published.
PUBLISHED = {
    "plain": {0.995: 0.507},
    "reweighted": {0.9: 0.979, 0.95: 0.986, 0.98: 0.966, 0.99: 0.975, 0.995: 0.955},
}


@dataclass(frozen=True)
class Reading:
    """What is read of a trajectory at a step.

    Attributes:
        run: number of the run.
        proportion: of the frequent class.
        arm: plain or reweighted.
        step: steps taken.
        loss: mean loss, weighted as the arm has it, of the steps since the reading before; of the start, its loss.
        accuracy: on the balanced test images.
    """

    run: int
    proportion: float
    arm: str
    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Progress:
    """Where all runs stand; part of their checkpoints. `trajectory` counts those that are done."""

    trajectory: int = 0
    step: int = 0
    metrics_bytes: int = 0


class Reweighting:
    """All runs, in one folder: for each run and proportion a trajectory of either arm."""

    def __init__(self, config: TrainConfig, composed: Mapping[str, Any], folder: RunFolder, runtime: Runtime):
        assert isinstance(config.meta, Reweight)
        assert isinstance(config.optimizer, HandDesigned)
        self.config, self.composed, self.folder, self.runtime = config, composed, folder, runtime
        self.meta, self.optimizer, self.optimizee = config.meta, config.optimizer, config.optimizee
        self.name = str(composed["optimizer"]["name"])
        self.steps = config.unroll.steps
        # A run has all proportions before the next one starts, so that the picture is whole early.
        self.trajectories = list(product(range(self.meta.runs), self.meta.proportions, ARMS))
        self.progress = Progress()
        self.point: Point | None = None
        self.pending: list[Tensor] = []  # losses since the last reading
        self.readings: list[Reading] = []  # of all trajectories so far
        if folder.last.exists():
            self._restore()
        else:
            folder.truncate(0)

    def _restore(self) -> None:
        content = last_state(self.folder, self.composed)
        self.progress = Progress(**content["progress"])
        if content["point"] is not None:
            self.point = Point(*content["point"]).to(self.runtime.device)
        self.pending = [losses.to(self.runtime.device) for losses in content["pending"]]
        self.folder.truncate(self.progress.metrics_bytes)
        self.readings = [Reading(**fields) for fields in self.folder.readings()]
        log.info("Resumed %s at %s.", self.folder.path, self._where())

    def _save(self) -> None:
        state = checkpoint.run_state(self.composed, self.progress)
        point = None if self.point is None else tuple(self.point)
        self.folder.save(self.folder.last, {**state, "point": point, "pending": self.pending})

    def _where(self) -> str:
        if self.progress.trajectory == len(self.trajectories):
            return "the end"
        run, proportion, arm = self.trajectories[self.progress.trajectory]
        return f"step {self.progress.step} of {self.steps}, {proportion:.4g} {arm}, run {run + 1} of {self.meta.runs}"

    def train(self) -> dict[str, Any]:
        """All trajectories; the result, whose score is the mean error of the reweighted ones.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the state is saved.
        """
        with stop_requests() as stop:  # from before the first line is logged, which takes the bars' lock
            return self._train(stop)

    def _train(self, stop: list[int]) -> dict[str, Any]:
        log.info(
            "Reweighting the examples of %s: %d runs of %d proportions, %d steps of %s each, on %s, seed %d; in %s",
            *(self.optimizee.name, self.meta.runs, len(self.meta.proportions), self.steps, self.name),
            *(self.runtime.device, self.config.seed, self.folder.path),
        )
        total, done = len(self.trajectories) * self.steps, self.progress.trajectory * self.steps + self.progress.step
        with tqdm(total=total, initial=done, unit="step", disable=None) as bar:
            while self.progress.trajectory < len(self.trajectories):
                self._trajectory(bar, stop)
        summary = self.summary()
        self._write(summary)
        log.info("%s", table(summary))
        log.info("%s\n%s", self.folder.path / "reweighting.json", self.folder.path / "reweighting.png")
        ends = [reading for reading in self.readings if reading.step == self.steps and reading.arm == "reweighted"]
        error = mean_ci(torch.tensor([1 - reading.accuracy for reading in ends], dtype=torch.float64))
        status = "completed" if all(math.isfinite(reading.loss) for reading in ends) else "diverged"
        return {"status": status, "score": error["mean"], "final": error}

    def _trajectory(self, bar: tqdm[Any], stop: list[int]) -> None:
        run, proportion, arm = self.trajectories[self.progress.trajectory]
        bar.set_description(f"run {run + 1}, {proportion:.4g} {arm}")
        seeds = streams.seeds(self.config.seed, "train", run, 1, self.runtime.device)
        imbalanced = self.optimizee.at_proportion(proportion).sample(seeds, self.runtime)
        problem = Reweighted(imbalanced) if arm == "reweighted" else imbalanced
        if self.point is None:
            self.point = start(problem, self.optimizer)
            self._read(problem, self.point.loss, bar)
        for _, point in unroll(problem, self.optimizer, self.point, self.steps - self.point.step):
            self.point = point
            self.pending.append(point.loss)
            self.progress = replace(self.progress, step=point.step)
            bar.update()
            if point.step % self.meta.read_every == 0 or point.step == self.steps:
                self._read(problem, torch.cat(self.pending), bar)
                self._save()
            if stop:
                self._save()
                raise stopped(self._where(), self.folder, stop[0])
        self.point = None
        self.progress = replace(self.progress, trajectory=self.progress.trajectory + 1, step=0)
        self._write(self.summary())
        self._save()

    def _read(self, problem: Problem, losses: Tensor, bar: tqdm[Any]) -> None:
        """Note the mean of the losses since the last reading, and the accuracy now."""
        assert self.point is not None
        self.pending = []
        run, proportion, arm = self.trajectories[self.progress.trajectory]
        with torch.no_grad():
            accuracy = problem.metrics(problem.layout.views(self.point.params))["accuracy"].item()
        reading = Reading(run, proportion, arm, self.point.step, losses.mean().item(), accuracy)
        self.readings.append(reading)
        size = self.folder.log({"event": "reading", **asdict(reading)})
        self.progress = replace(self.progress, metrics_bytes=size)
        bar.set_postfix(loss=f"{reading.loss:.4g}", accuracy=f"{accuracy:.4f}")
        if self.point.step == self.steps:
            log.info("Run %d, %.4g %s: accuracy %.4f", run + 1, proportion, arm, accuracy)
            if not math.isfinite(reading.loss):
                log.warning("It diverged; a lower optimizer.lr may help.")

    def summary(self) -> dict[str, Any]:
        """The contract of reweighting.json: for each proportion and arm, accuracies of the trajectories that are done.

        `mean` and `ci95` are over the `accuracies` of the runs; `curve` has both for each of `steps`.
        """
        readings = self.readings
        proportions = []
        for proportion in self.meta.proportions:
            arms: dict[str, Any] = {}
            for arm in ARMS:
                mine = [reading for reading in readings if (reading.proportion, reading.arm) == (proportion, arm)]
                steps = sorted({reading.step for reading in mine})
                rows = [[reading.accuracy for reading in mine if reading.step == step] for step in steps]
                if rows:
                    curve = [mean_ci(torch.tensor(row, dtype=torch.float64)) for row in rows]
                    arms[arm] = {"accuracies": rows[-1], **curve[-1], "steps": steps, "curve": curve}
                    arms[arm]["published"] = self._published(arm, proportion)
            proportions.append({"proportion": proportion, "arms": arms})
        settings = {key: self.composed[key] for key in ("seed", "optimizee", "optimizer", "meta")}
        return {
            "optimizee": self.optimizee.name,
            "optimizer": self.name,
            "steps": self.steps,
            "settings": settings,
            "proportions": proportions,
        }

    def _published(self, arm: str, proportion: float) -> float | None:
        settings = self.composed["optimizee"]
        same = (settings["data"], tuple(settings["classes"])) == ("mnist", (9, 4))
        return PUBLISHED[arm].get(proportion) if same else None

    def _write(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_json("reweighting.json", summary)
        self.folder.draw(plotting.reweighting, "reweighting.png", summary)


def table(summary: Mapping[str, Any]) -> str:
    """The accuracies after the last step, as the table that is printed; published ones in brackets."""
    rows = [["proportion", "runs", *ARMS]]
    for entry in summary["proportions"]:
        arms = entry["arms"]
        row = [f"{entry['proportion']:.4g}", str(len(arms["reweighted"]["accuracies"]))]
        for arm in (arms[name] for name in ARMS):
            row.append(with_ci(arm) + (f" ({arm['published']:.4g})" if arm["published"] is not None else ""))
        rows.append(row)
    head = (
        f"{summary['optimizee']}, accuracy on balanced test images after {summary['steps']} steps of "
        f"{summary['optimizer']}, mean ± half of the 95 % confidence interval over runs (published):"
    )
    return "\n".join([head, *align(rows)])
