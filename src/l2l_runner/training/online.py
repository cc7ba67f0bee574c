"""An optimizer that learns while it trains: one trajectory, an update of the optimizer after each of its windows.

Beside it, on the very same problem, runs the same optimizer as it was at the start. With windows of one step these are
one-step hypergradients (Baydin et al. 2018, arXiv 1703.04782).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor

from l2l_runner import plots
from l2l_runner.evaluation.curves import PICTURED
from l2l_runner.evaluation.statistics import align, interval
from l2l_runner.meta import OnlineConfig
from l2l_runner.meta.base import global_norm
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import Optimizer
from l2l_runner.runs import checkpoint
from l2l_runner.runs.results import Interval, RunResult
from l2l_runner.training.arms import Arms, Window
from l2l_runner.training.base import new_rule
from l2l_runner.training.meta_step import meta_update
from l2l_runner.unroll import Point, unroll

log = logging.getLogger(__name__)

ARMS = ("learning", "fixed")
REFRESH = 20
"""Seconds between two pictures of a running trajectory: drawing takes as long as many steps."""

LARGEST = 1 << 20
"""Number of rates of a tensor of which percentiles are taken; of more, every second, third, … is taken."""


@dataclass(frozen=True)
class OnlineReading:
    """What is read of a trajectory at a step.

    Attributes:
        run: number of the run.
        arm: learning or fixed.
        step: steps taken.
        loss: mean training loss of the steps since the last reading; of the start, its loss.
        metrics: of the problem, at this step.
        rates: of each tensor, the tenth, fiftieth and ninetieth percentile of its learning rates.
    """

    run: int
    arm: str
    step: int
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)


class OnlineTraining(Arms[OnlineReading]):
    """For each run a trajectory of the optimizer that learns, and one of the optimizer as it was at the start.

    Attributes:
        rule: the optimizer of the present trajectory.
        meta_optimizer: Adam, which it learns by.
        pictures: what the first runs have reached, by arm, as bytes [3, height, width]; empty where there are none.
    """

    reading_type = OnlineReading
    ends_when_diverged = True

    def begin(self) -> None:
        super().begin()
        assert isinstance(self.config.meta, OnlineConfig)
        self.meta, self.name = self.config.meta, self.config.optimizer.name
        self.trajectories = list(product(range(self.meta.runs), ARMS))
        self.estimator = self.meta.estimator(self.config.unroll, self.config.optimizer)
        self.pictures: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}
        self._drawn = -math.inf
        self._new_rule()

    def _new_rule(self) -> None:
        """Set the optimizer as it is at the start of every trajectory."""
        self.rule = new_rule(self.config, self.runtime)
        checkpoint.initialise(self.rule, self.config.init)
        self.meta_optimizer = torch.optim.Adam(self.rule.parameters(), lr=self.meta.lr, fused=True)

    def state(self) -> Mapping[str, Any]:
        state = checkpoint.run_state(self.config, self.progress, self.rule, self.meta_optimizer)
        return {**state, **self.saved_point(), "pictures": self.pictures}

    def restore(self, content: Mapping[str, Any]) -> None:
        super().restore(content)
        checkpoint.load_parameters(self.rule, content["optimizer"], self.folder.last)
        checkpoint.load_meta_optimizer(self.meta_optimizer, content["meta_optimizer"], self.folder.last)
        self.pictures = content["pictures"]

    @property
    def read_every(self) -> int:
        return self.meta.read_every

    @property
    def label(self) -> str:
        run, arm = self.present
        return f"run {run + 1}, {arm}"

    @property
    def where(self) -> str:
        if self.done:
            return "the end"
        run, arm = self.present
        return f"step {self.progress.step} of {self.steps}, {arm}, run {run + 1} of {self.meta.runs}"

    @property
    def description(self) -> str:
        return (
            f"{self.name} learns online on {self.config.optimizee.name}: {self.meta.runs} runs of {self.steps} steps, "
            f"windows of {self.config.unroll.length}, on {self.runtime.device}, seed {self.config.seed}"
        )

    def open(self) -> tuple[Problem, Optimizer]:
        run, arm = self.present
        seeds = self.config.optimizee.seeds(self.config.seed, "train", run, 1, self.runtime.device)
        self.rule.requires_grad_(arm == "learning")
        return self.rule.adapt(self.config.optimizee.sample(seeds, self.runtime)), self.rule

    def windows(self, problem: Problem, point: Point) -> Iterator[Window]:
        _, arm = self.present
        if arm == "fixed":
            for _, reached in unroll(problem, self.rule, point, self.steps - point.step):
                yield Window(reached.loss, reached)
            return
        for estimate, reached in self.estimator.windows(self.rule, problem, point):
            norm = global_norm(estimate.grads)
            usable = torch.isfinite(norm).float()  # a meta-gradient that is not finite never reaches the optimizer
            meta_update(self.meta_optimizer, self.rule, estimate.grads, norm, usable, self.meta.clip)
            yield Window(estimate.losses, reached)

    def read(self, problem: Problem, params: Tensor, step: int, loss: float) -> OnlineReading:
        run, arm = self.present
        metrics = problem.metrics(problem.layout.views(params))
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=self.runtime.dtype, device=self.runtime.device)
        rates = {
            name: rate.flatten()[:: 1 + rate.numel() // LARGEST].quantile(quantiles).tolist()
            for name, rate in self.rule.rates().items()
        }
        return OnlineReading(
            run=run,
            arm=arm,
            step=step,
            loss=loss,
            metrics={name: value.item() for name, value in metrics.items()},
            rates=rates if arm == "learning" else {},
        )

    def figures(self, reading: OnlineReading) -> dict[str, str]:
        return {"loss": f"{reading.loss:.4g}", **{name: f"{value:.4g}" for name, value in reading.metrics.items()}}

    def after_reading(self) -> None:
        if time.monotonic() - self._drawn > REFRESH:
            self._write(self.summary())
            self._drawn = time.monotonic()

    def close(self, problem: Problem, complete: bool) -> None:
        run, arm = self.present
        last = self.readings[-1]
        if not complete:
            log.warning("Run %d, %s, diverged by step %d.", run + 1, arm, self.progress.step)
        elif run < PICTURED and self.point is not None:
            with torch.no_grad():
                picture = problem.pictures(problem.layout.views(self.point.params))
            if picture is not None:
                self.pictures[arm].append((255 * picture[0]).round().byte().cpu())
        loss = last.loss if math.isfinite(last.loss) else math.inf
        if arm == "learning" and (self.progress.best_loss is None or loss < self.progress.best_loss):
            self.update_progress(best_loss=loss)
            self.save(self.folder.best)

    def after_trajectory(self) -> None:
        self._new_rule()

    def finish(self) -> RunResult:
        summary = self.summary()
        self._write(summary)
        log.info("%s", table(summary))
        log.info("%s\n%s", self.folder.path / "online.json", self.folder.path / "online.png")
        self._draw_pictures()
        return self._result()

    def summary(self) -> dict[str, Any]:
        """Return the content of online.json: for each arm, means and confidence intervals over runs, at each reading.

        `paired` has those of the differences learning − fixed, run by run, at the last step, of runs whose arms both
        reached it.
        """
        arms: dict[str, Any] = {}
        readings = self.readings
        names = sorted({name for reading in readings for name in reading.metrics})
        for arm in ARMS:
            steps = sorted({reading.step for reading in readings if reading.arm == arm})
            rows = [[reading for reading in readings if (reading.arm, reading.step) == (arm, step)] for step in steps]
            arms[arm] = {
                "steps": steps,
                "runs": [len(row) for row in rows],
                "diverged": len({r.run for r in readings if r.arm == arm and not math.isfinite(r.loss)}),
                "loss": [interval([reading.loss for reading in row]).to_json() for row in rows],
                "metrics": {
                    name: [interval([reading.metrics[name] for reading in row]).to_json() for row in rows]
                    for name in names
                },
                "rates": {
                    name: [torch.tensor([reading.rates[name] for reading in row]).mean(0).tolist() for row in rows]
                    for name in (rows[0][0].rates if rows else {})
                },
            }
        ends = {(reading.run, reading.arm): reading for reading in readings if reading.step == self.steps}
        pairs = [tuple(ends.get((run, arm)) for arm in ARMS) for run in range(self.meta.runs)]
        return {
            "optimizee": self.config.optimizee.name,
            "gain": self.config.optimizee.gain,
            "optimizer": self.name,
            "steps": self.steps,
            "arms": arms,
            "paired": _differences([(one, other) for one, other in pairs if one and other]),
        }

    def _write(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_json("online.json", summary)
        self.folder.draw(plots.online, "online.png", summary)

    def _draw_pictures(self) -> None:
        """Draw pictures.png where problems are pictures: a row per run, if none of those diverged."""
        runs = min(PICTURED, self.meta.runs)
        if any(len(pictures) < runs for pictures in self.pictures.values()):
            return
        optimizee = self.config.optimizee
        seeds = optimizee.seeds(self.config.seed, "train", 0, runs, self.runtime.device)
        ends = {(r.run, r.arm): r.loss for r in self.readings if r.step == self.steps}
        names = {arm: plots.arm_label(self.name, arm) for arm in ARMS}
        picture = self.folder.draw(
            plots.pictures,
            "pictures.png",
            optimizee.name,
            {name: picture.cpu() for name, picture in optimizee.sample(seeds, self.runtime).sources().items()},
            {names[arm]: torch.stack(pictures) / 255 for arm, pictures in self.pictures.items()},
            {names[arm]: torch.tensor([ends[run, arm] for run in range(runs)]) for arm in ARMS},
            optimizee.gain,
            "runs",
        )
        log.info("%s", picture)

    def _result(self) -> RunResult:
        readings = [reading for reading in self.readings if reading.arm == "learning"]
        runs = [[reading for reading in readings if reading.run == run] for run in range(self.meta.runs)]
        final = interval([run[-1].loss for run in runs])
        # A reading has the mean loss of the steps since the last one.
        total = interval([sum(b.loss * (b.step - a.step) for a, b in pairwise(run)) for run in runs])
        finite = math.isfinite(final.mean)
        score = (final if self.config.score == "final" else total).mean if finite else math.inf
        metrics = {name: interval([run[-1].metrics[name] for run in runs]) for name in readings[-1].metrics}
        return RunResult("completed" if finite else "diverged", score, final, total, metrics)


def _differences(pairs: list[tuple[OnlineReading, OnlineReading]]) -> dict[str, Any] | None:
    """Return means and confidence intervals of the differences of pairs of readings; None where there are none."""
    if not pairs:
        return None
    metrics = {name: [one.metrics[name] - other.metrics[name] for one, other in pairs] for name in pairs[0][0].metrics}
    return {
        "runs": len(pairs),
        "loss": interval([one.loss - other.loss for one, other in pairs]).to_json(),
        "metrics": {name: interval(values).to_json() for name, values in metrics.items()},
    }


def table(summary: Mapping[str, Any]) -> str:
    """Return the last readings of both arms, as the table that is printed."""
    arms = {name: arm for name, arm in summary["arms"].items() if arm["steps"]}
    metrics = sorted({metric for arm in arms.values() for metric in arm["metrics"]})
    gain = summary["gain"]
    sign = -1 if gain else 1
    rows = [[summary["optimizer"], "runs", "steps", "diverged", f"training {gain or 'loss'}", *metrics]]
    for name, arm in arms.items():
        runs = arm["runs"][0]
        loss = Interval.from_json(arm["loss"][-1]).shown(sign)
        row = [name, str(runs), str(arm["steps"][-1]), f"{arm['diverged']} of {runs}", loss]
        rows.append(row + [Interval.from_json(arm["metrics"][metric][-1]).shown() for metric in metrics])
    if summary["paired"]:
        paired = summary["paired"]
        loss = Interval.from_json(paired["loss"]).shown(sign)
        row = ["learning − fixed", str(paired["runs"]), str(summary["steps"]), "", loss]
        rows.append(row + [Interval.from_json(paired["metrics"][metric]).shown() for metric in metrics])
    head = f"{summary['optimizee']}, mean ± half of the 95 % confidence interval over runs:"
    return "\n".join([head, *align(rows)])
