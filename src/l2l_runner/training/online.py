"""An optimizer that learns while it trains: one trajectory, an update of the optimizer after each of its windows.

Beside it, on the very same problem, runs the same optimizer as it was at the start. With windows of one step these are
one-step hypergradients (Baydin et al. 2018, arXiv 1703.04782).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_runner.evaluation.curves import PICTURED, align, mean_ci, with_ci
from l2l_runner.meta.base import Grads, global_norm
from l2l_runner.optimizees import Problem
from l2l_runner.plots import plotting
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.resuming import last_state, stopped
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Online, TrainConfig
from l2l_runner.stopping import stop_requests
from l2l_runner.training.meta_training import Outcome, meta_update
from l2l_runner.unroll import Point, start, unroll

log = logging.getLogger(__name__)

ARMS = ("learning", "fixed")
REFRESH = 20  # seconds between pictures
LARGEST = 1 << 20  # rates of a tensor whose percentiles are taken; of more, every second, third, …


@dataclass(frozen=True)
class Reading:
    """What is read of a trajectory at a step.

    Attributes:
        run: number of the run.
        arm: learning or fixed.
        step: steps taken.
        loss: mean training loss of the steps since the reading before; of the start, its loss.
        metrics: of the problem, at this step.
        rates: of each tensor, the tenth, fiftieth and ninetieth percentile of its learning rates.
    """

    run: int
    arm: str
    step: int
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Progress:
    """Where all runs stand; part of their checkpoints. `best_loss` is the lowest that learning has ended with."""

    run: int = 0
    arm: str = ARMS[0]
    step: int = 0
    best_loss: float | None = None
    metrics_bytes: int = 0


class OnlineTraining:
    """All runs, in one folder."""

    def __init__(self, config: TrainConfig, composed: Mapping[str, Any], folder: RunFolder, runtime: Runtime):
        assert isinstance(config.meta, Online)
        self.config, self.composed, self.folder, self.runtime = config, composed, folder, runtime
        self.meta = config.meta
        self.name = str(composed["optimizer"]["name"])
        self.steps = config.unroll.steps
        self.estimator = config.meta.estimator(config.unroll, config.optimizer)  # type: ignore[arg-type]
        self.progress = Progress()
        self.readings: list[Reading] = []  # of all trajectories so far
        self.pictures: dict[str, list[Tensor]] = {arm: [] for arm in ARMS}  # of the first runs, 0 … 255
        self.shown = -math.inf  # when the picture was last drawn
        self._begin()
        if folder.last.exists():
            self._restore()
        else:
            folder.truncate(0)

    def _begin(self) -> None:
        """A new trajectory, with the optimizer as it is at the start."""
        self.optimizer = checkpoint.build_optimizer(self.composed, self.config.seed)
        self.optimizer.to(self.runtime.device, self.runtime.dtype)
        self.optimizer.use_kernel(self.config.kernel)
        checkpoint.initialise(self.optimizer, self.config.init)
        self.meta_optimizer = torch.optim.Adam(self.optimizer.parameters(), lr=self.meta.lr, fused=True)
        self.point: Point | None = None
        self.pending: list[Tensor] = []  # losses since the last reading

    def _restore(self) -> None:
        content = last_state(self.folder, self.composed)
        checkpoint.load_parameters(self.optimizer, content["optimizer"], self.folder.last)
        self.meta_optimizer.load_state_dict(content["meta_optimizer"])
        self.progress = Progress(**content["progress"])
        if content["point"] is not None:
            self.point = Point(*content["point"]).to(self.runtime.device)
        self.pending = [losses.to(self.runtime.device) for losses in content["pending"]]
        self.pictures = content.get("pictures", self.pictures)  # older runs have none
        self.folder.truncate(self.progress.metrics_bytes)
        self.readings = [Reading(**fields) for fields in self.folder.readings()]
        log.info("Resumed %s at %s.", self.folder.path, self._where())

    def _save(self, path: Path) -> None:
        state = checkpoint.run_state(self.composed, self.progress, self.optimizer, self.meta_optimizer)
        point = None if self.point is None else tuple(self.point)
        self.folder.save(path, {**state, "point": point, "pending": self.pending, "pictures": self.pictures})

    def _where(self) -> str:
        progress = self.progress
        return f"step {progress.step} of {self.steps}, {progress.arm}, run {progress.run + 1} of {self.meta.runs}"

    def train(self) -> Outcome:
        """All runs, each with an optimizer that learns and with one that doesn't; pictures on the way.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the state is saved.
        """
        with stop_requests() as stop:  # from before the first line is logged, which takes the bars' lock
            return self._train(stop)

    def _train(self, stop: list[int]) -> Outcome:
        log.info(
            "%s learns online on %s: %d runs of %d steps, windows of %d, on %s, seed %d; in %s",
            *(self.name, self.config.optimizee.name, self.meta.runs, self.steps, self.config.unroll.length),
            *(self.runtime.device, self.config.seed, self.folder.path),
        )
        total = len(ARMS) * self.meta.runs * self.steps
        done = (len(ARMS) * self.progress.run + ARMS.index(self.progress.arm)) * self.steps + self.progress.step
        with tqdm(total=total, initial=done, unit="step", disable=None) as bar:
            while self.progress.run < self.meta.runs:
                bar.set_description(f"run {self.progress.run + 1}, {self.progress.arm}")
                self._trajectory(bar, stop)
                self._end_trajectory()
        summary = self.summary()
        self._write(summary)
        log.info("%s", table(summary))
        log.info("%s\n%s", self.folder.path / "online.json", self.folder.path / "online.png")
        self._draw_pictures()
        return self._outcome()

    def _trajectory(self, bar: tqdm[Any], stop: list[int]) -> None:
        seeds = self.config.optimizee.seeds(self.config.seed, "train", self.progress.run, 1, self.runtime.device)
        self.optimizer.requires_grad_(self.progress.arm == "learning")
        problem = self.optimizer.adapt(self.config.optimizee.sample(seeds, self.runtime))
        if self._diverged():  # before it was stopped
            return
        if self.point is None:
            self.point = start(problem, self.optimizer)
            self._read(problem, self.point.loss, bar)
        for grads, losses, point in self._windows(problem, self.point):
            self.point = point
            self.pending.append(losses.flatten())
            if grads is not None:
                self._learn(grads)
            bar.update(point.step - self.progress.step)
            due = point.step // self.meta.read_every > self.progress.step // self.meta.read_every
            self.progress = replace(self.progress, step=point.step)
            if due or point.step == self.steps:
                self._read(problem, torch.cat(self.pending), bar)
                self._show()
                self._save(self.folder.last)
            if stop:
                self._save(self.folder.last)
                raise stopped(self._where(), self.folder, stop[0])
            if due and self._diverged():
                log.warning("Run %d, %s, diverged by step %d.", self.progress.run + 1, self.progress.arm, point.step)
                return
        if self.progress.run < PICTURED:
            with torch.no_grad():
                picture = problem.pictures(problem.layout.views(self.point.params))
            if picture is not None:
                self.pictures[self.progress.arm].append((255 * picture[0]).round().byte().cpu())

    def _diverged(self) -> bool:
        """Whether this trajectory's last reading was not finite."""
        if not self.readings:
            return False
        last = self.readings[-1]
        here = (last.run, last.arm) == (self.progress.run, self.progress.arm)
        return here and not math.isfinite(last.loss)

    def _windows(self, problem: Problem, point: Point) -> Iterator[tuple[Grads | None, Tensor, Point]]:
        """Meta-gradient (where one is wanted), losses and end of each window from a point on."""
        if self.progress.arm == "learning":
            for estimate, reached in self.estimator.windows(self.optimizer, problem, point):
                yield estimate.grads, estimate.losses, reached
            return
        for _, reached in unroll(problem, self.optimizer, point, self.steps - point.step):
            yield None, reached.loss, reached

    def _learn(self, grads: Grads) -> None:
        """A step of Adam; a meta-gradient that isn't finite never reaches the optimizer."""
        norm = global_norm(grads)
        usable = torch.isfinite(norm).float()
        meta_update(self.meta_optimizer, self.optimizer, grads, norm, usable, self.meta.clip)

    def _read(self, problem: Problem, losses: Tensor, bar: tqdm[Any]) -> None:
        """Note the mean of the losses since the last reading, and what there is to see now."""
        assert self.point is not None
        self.pending = []
        with torch.no_grad():
            metrics = problem.metrics(problem.layout.views(self.point.params))
        quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=self.runtime.dtype, device=self.runtime.device)
        rates = {
            name: rate.flatten()[:: 1 + rate.numel() // LARGEST].quantile(quantiles).tolist()
            for name, rate in self.optimizer.rates().items()
        }
        loss = losses.mean().item()
        reading = Reading(
            run=self.progress.run,
            arm=self.progress.arm,
            step=self.point.step,
            loss=loss,
            metrics={name: value.item() for name, value in metrics.items()},
            rates=rates if self.progress.arm == "learning" else {},
        )
        self.readings.append(reading)
        size = self.folder.log({"event": "reading", **asdict(reading)})
        self.progress = replace(self.progress, metrics_bytes=size)
        bar.set_postfix({"loss": f"{loss:.4g}", **{name: f"{value:.4g}" for name, value in reading.metrics.items()}})

    def _end_trajectory(self) -> None:
        """Keep the optimizer of the run with the lowest loss, and go on to the next trajectory."""
        last = self.readings[-1]
        learned = last.arm == "learning"
        loss = last.loss if math.isfinite(last.loss) else math.inf
        if learned and (self.progress.best_loss is None or loss < self.progress.best_loss):
            self.progress = replace(self.progress, best_loss=loss)
            self._save(self.folder.best)
        run, arm = (self.progress.run, "fixed") if learned else (self.progress.run + 1, "learning")
        self.progress = replace(self.progress, run=run, arm=arm, step=0)
        self._begin()
        self._save(self.folder.last)

    def summary(self) -> dict[str, Any]:
        """The contract of online.json: for each arm, means and confidence intervals over runs, reading by reading.

        `paired` has those of the differences learning − fixed, run by run, at the last step, of runs whose arms both
        came there.
        """
        arms: dict[str, Any] = {}
        readings = self.readings
        for arm in ARMS:
            steps = sorted({reading.step for reading in readings if reading.arm == arm})
            rows = [[reading for reading in readings if (reading.arm, reading.step) == (arm, step)] for step in steps]
            names = sorted({name for reading in readings for name in reading.metrics})
            arms[arm] = {
                "steps": steps,
                "runs": [len(row) for row in rows],
                "diverged": len({r.run for r in readings if r.arm == arm and not math.isfinite(r.loss)}),
                "loss": [mean_ci(torch.tensor([reading.loss for reading in row])) for row in rows],
                "metrics": {
                    name: [mean_ci(torch.tensor([reading.metrics[name] for reading in row])) for row in rows]
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

    def _show(self) -> None:
        """Refresh the picture, if the last time was a while ago: drawing takes as long as many steps."""
        if time.monotonic() - self.shown > REFRESH:
            self._write(self.summary())
            self.shown = time.monotonic()

    def _write(self, summary: Mapping[str, Any]) -> None:
        self.folder.write_json("online.json", summary)
        self.folder.draw(plotting.online, "online.png", summary)

    def _draw_pictures(self) -> None:
        """pictures.png, where problems are pictures: a row a run, if none of those diverged."""
        runs = min(PICTURED, self.meta.runs)
        if any(len(pictures) < runs for pictures in self.pictures.values()):
            return
        optimizee = self.config.optimizee
        seeds = optimizee.seeds(self.config.seed, "train", 0, runs, self.runtime.device)
        ends = {(r.run, r.arm): r.loss for r in self.readings if r.step == self.steps}
        names = {arm: plotting.arm_label(self.name, arm) for arm in ARMS}
        picture = self.folder.draw(
            plotting.pictures,
            "pictures.png",
            optimizee.name,
            {name: picture.cpu() for name, picture in optimizee.sample(seeds, self.runtime).sources().items()},
            {names[arm]: torch.stack(pictures) / 255 for arm, pictures in self.pictures.items()},
            {names[arm]: torch.tensor([ends[run, arm] for run in range(runs)]) for arm in ARMS},
            optimizee.gain,
            "runs",
        )
        log.info("%s", picture)

    def _outcome(self) -> Outcome:
        readings = [reading for reading in self.readings if reading.arm == "learning"]
        runs = [[reading for reading in readings if reading.run == run] for run in range(self.meta.runs)]
        # A reading has the mean loss of the steps since the one before.
        sums = [sum(b.loss * (b.step - a.step) for a, b in pairwise(run)) for run in runs]
        final, total = (mean_ci(torch.tensor(values)) for values in ([run[-1].loss for run in runs], sums))
        mean = (final if self.config.score == "final" else total)["mean"]
        finite = math.isfinite(final["mean"])
        metrics = {
            name: mean_ci(torch.tensor([run[-1].metrics[name] for run in runs])) for name in readings[-1].metrics
        }
        return Outcome("completed" if finite else "diverged", mean if finite else math.inf, final, total, metrics)


def _differences(pairs: list[tuple[Reading, Reading]]) -> dict[str, Any] | None:
    """Means and confidence intervals of the differences of pairs of readings; None where there are none."""
    if not pairs:
        return None
    losses = torch.tensor([one.loss - other.loss for one, other in pairs])
    metrics = {name: [one.metrics[name] - other.metrics[name] for one, other in pairs] for name in pairs[0][0].metrics}
    return {
        "runs": len(pairs),
        "loss": mean_ci(losses),
        "metrics": {name: mean_ci(torch.tensor(values)) for name, values in metrics.items()},
    }


def table(summary: Mapping[str, Any]) -> str:
    """The last readings of both arms, as the table that is printed."""
    arms = {name: arm for name, arm in summary["arms"].items() if arm["steps"]}
    metrics = sorted({metric for arm in arms.values() for metric in arm["metrics"]})
    gain = summary.get("gain")  # older ones have none
    sign = -1 if gain else 1
    rows = [[summary["optimizer"], "runs", "steps", "diverged", f"training {gain or 'loss'}", *metrics]]
    for name, arm in arms.items():
        runs = arm["runs"][0]
        row = [name, str(runs), str(arm["steps"][-1]), f"{arm['diverged']} of {runs}", with_ci(arm["loss"][-1], sign)]
        rows.append(row + [with_ci(arm["metrics"][metric][-1]) for metric in metrics])
    if summary["paired"]:
        paired = summary["paired"]
        row = ["learning − fixed", str(paired["runs"]), str(summary["steps"]), "", with_ci(paired["loss"], sign)]
        rows.append(row + [with_ci(paired["metrics"][metric]) for metric in metrics])
    head = f"{summary['optimizee']}, mean ± half of the 95 % confidence interval over runs:"
    return "\n".join([head, *align(rows)])
