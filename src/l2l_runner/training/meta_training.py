"""The outer loop: meta-train, validate on a fixed set, and keep the best."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_runner import distributed, plots
from l2l_runner.evaluation import comparison
from l2l_runner.evaluation.comparison import Comparison
from l2l_runner.evaluation.curves import Curves
from l2l_runner.meta import MetaGradient, MetaTrainingConfig
from l2l_runner.optimizers import HandDesigned
from l2l_runner.runs import checkpoint
from l2l_runner.runs.results import Entry, Interval, RunResult
from l2l_runner.training.base import Run, new_rule
from l2l_runner.training.meta_step import meta_step

log = logging.getLogger(__name__)

CURVE = 50
"""Number of intervals between the points of a validation's mean curve that metrics.jsonl keeps."""


@dataclass(frozen=True)
class MetaProgress:
    """Where a meta-training stands; part of its checkpoints.

    Attributes:
        step: meta-steps done.
        validated: meta-steps done at the last validation; -1 before the first.
        best_score: the best validation score.
        best_step: the meta-step at which it was reached.
        skipped: trajectories with a window skipped because its meta-loss or meta-gradient was not finite, in all.
        skipped_in_row: the same, since the last one that was finite.
        metrics_bytes: size of metrics.jsonl.
        stage: number of the present horizon in the curriculum. Scores at different horizons are not comparable, so the
            best is the best at this horizon.
    """

    step: int = 0
    validated: int = -1
    best_score: float = math.inf
    best_step: int = -1
    skipped: int = 0
    skipped_in_row: int = 0
    metrics_bytes: int = 0
    stage: int = 0


def learning_rate(meta: MetaTrainingConfig, step: int) -> float:
    """Return the meta-optimizer's rate at a meta-step: linear warm-up, then constant or cosine decay."""
    progress = step / max(1, meta.steps)
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if meta.schedule == "cosine" else 1.0
    rising = min(1.0, (step + 1) / (meta.warmup * meta.steps)) if meta.warmup * meta.steps >= 1 else 1.0
    return meta.lr * rising * decay


def thinned(curve: list[float]) -> dict[str, list[Any]]:
    """Return at most 51 points of a curve, evenly spread from its first to its last: their `steps` and `loss`."""
    last = len(curve) - 1
    steps = sorted({round(last * part / CURVE) for part in range(CURVE + 1)})
    return {"steps": steps, "loss": [curve[step] for step in steps]}


class MetaTraining(Run[MetaProgress]):
    """Meta-training of a learned rule on batches of problems.

    A step is a meta-step, a validation, or the change to the next horizon of a curriculum.

    Attributes:
        rule: what is meta-trained.
        meta_optimizer: what trains it.
        horizons: lengths of the trajectories that training goes through.
        baselines: at their best learning rates, where the run is compared with them.
        shown: their entries in the picture of the learning, on the validation problems.
    """

    def begin(self) -> None:
        assert isinstance(self.config.meta, MetaTrainingConfig)
        self.meta = self.config.meta
        self.name = self.config.optimizer.name
        self.rule = new_rule(self.config, self.runtime)
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[self.meta.optimizer]
        self.meta_optimizer = kind(self.rule.parameters(), lr=self.meta.lr, fused=True)
        self.horizons = self.meta.horizons(self.config.unroll)
        self.progress = MetaProgress()
        self.baselines: dict[str, HandDesigned] = {}
        self.shown: dict[str, Entry] = {}
        self._on_bar: dict[str, str] = {}

    def initialise(self) -> None:
        self.rule.initialise_from(self.config.optimizee.sample(self._seeds(0, 1), self.runtime))
        checkpoint.initialise(self.rule, self.config.init)

    def state(self) -> Mapping[str, Any]:
        return checkpoint.run_state(self.config, self.progress, self.rule, self.meta_optimizer)

    def restore(self, content: Mapping[str, Any]) -> None:
        checkpoint.load_parameters(self.rule, content["optimizer"], self.folder.last)
        checkpoint.load_meta_optimizer(self.meta_optimizer, content["meta_optimizer"], self.folder.last)
        self.progress = checkpoint.load_progress(MetaProgress, content["progress"], self.folder.last)

    @property
    def where(self) -> str:
        return f"meta-step {self.progress.step} of {self.meta.steps}"

    @property
    def description(self) -> str:
        config, kernels = self.config, dict.fromkeys(part.rule.kernel_name for part in self.rule.parts())
        ranks = distributed.world_size()
        return (
            f"Meta-training {self.name} on {config.optimizee.name}: {self.meta.steps} meta-steps of "
            f"{config.meta_batch} problems × {', then '.join(map(str, self.horizons))} steps, "
            f"{self.estimator.description}, kernel {', '.join(kernels)}, on {self.runtime.device}"
            f"{f' × {ranks}' if ranks > 1 else ''}, seed {config.seed}"
        )

    def prepare(self) -> None:
        stores = self.estimator.stores(self.config.optimizee.layout(), self.config.meta_batch, self.runtime.dtype)
        if stores:
            log.info("Stored per meta-step: %s.", stores)
        self.baselines = self.evaluator.tuned() if self.config.evaluate else {}
        if self.baselines:
            rates = ", ".join(f"{name} lr {baseline.lr:.3g}" for name, baseline in self.baselines.items())
            log.info("Baselines, tuned on validation problems: %s", rates)
            curves = {name: self.evaluator.validate(baseline) for name, baseline in self.baselines.items()}
            self.shown = self._summary(curves, {n: b.lr for n, b in self.baselines.items()}).summary().optimizers

    def bar(self) -> tqdm[Any]:
        at = {"initial": self.progress.step, "total": self.meta.steps}
        return tqdm(**at, desc="meta-training", unit="meta-step", disable=distributed.bar_disabled())

    @property
    def horizon(self) -> int:
        """Steps of the present trajectories, in training and in validation."""
        return self.horizons[self.progress.stage]

    @property
    def estimator(self) -> MetaGradient:
        """The estimator at the present horizon."""
        return self.meta.estimator(replace(self.config.unroll, steps=self.horizon), self.config.optimizer)

    @property
    def done(self) -> bool:
        ended = self.progress.step >= self.meta.steps or self._diverged or self._out_of_patience
        return ended and not (self._validation_due or self._horizon_exhausted)

    def step(self, bar: tqdm[Any]) -> None:
        if self._validation_due:
            self._validate(bar)
        elif self._horizon_exhausted:
            self._next_horizon()
        else:
            self._meta_step(bar)

    @property
    def _validation_due(self) -> bool:
        step = self.progress.step
        return self.progress.validated != step and (step % self.meta.validate_every == 0 or step >= self.meta.steps)

    @property
    def _horizon_exhausted(self) -> bool:
        more = self.progress.step < self.meta.steps and not self._last_stage
        return more and self._stalled() >= self.meta.advance

    @property
    def _diverged(self) -> bool:
        return self.progress.step < self.meta.steps and self.progress.skipped_in_row >= self.meta.max_skipped

    @property
    def _out_of_patience(self) -> bool:
        return self.meta.patience is not None and self._last_stage and self._stalled() >= self.meta.patience

    @property
    def _last_stage(self) -> bool:
        return self.progress.stage == len(self.horizons) - 1

    def _stalled(self) -> int:
        """Return the number of validations since the best one."""
        return (self.progress.validated - self.progress.best_step) // self.meta.validate_every

    def _seeds(self, first: int, count: int) -> Tensor:
        return self.config.optimizee.seeds(self.config.seed, "train", first, count, self.runtime.device)

    def _meta_step(self, bar: tqdm[Any]) -> None:
        config, meta, step = self.config, self.meta, self.progress.step
        seeds = self._seeds(step * config.meta_batch, config.meta_batch)[distributed.shard(config.meta_batch)]
        problem = meta.training_problem(config.optimizee.sample(seeds, self.runtime))
        lr = learning_rate(meta, step)
        for group in self.meta_optimizer.param_groups:
            group["lr"] = lr
        share = len(seeds) / config.meta_batch
        done = meta_step(self.rule, self.meta_optimizer, self.estimator, problem, meta.clip, share)
        if done.skipped:
            in_row = self.progress.skipped_in_row + 1 if done.all_skipped else 1
            self.update_progress(skipped=self.progress.skipped + 1, skipped_in_row=in_row)
        else:
            self.update_progress(skipped_in_row=0)
        self.update_progress(step=step + 1)
        event, name = ("imitation", "distance") if done.imitates else ("meta_step", "meta_loss")
        self.record(
            event=event,
            step=step + 1,
            horizon=self.horizon,
            **{name: done.loss},
            final_loss=done.final_loss,
            grad_norm=done.grad_norm,
            lr=lr,
            skipped=self.progress.skipped,
        )
        bar.set_postfix(self._figures(**{name: f"{done.loss:.4g}"}), refresh=False)
        bar.update()

    def _validate(self, bar: tqdm[Any]) -> None:
        curves = self.evaluator.validate(self.rule, self.horizon)
        score = distributed.run_on_first(lambda: curves.score(self.config.score))  # one for all, to the last bit
        better = score < self.progress.best_score or self.progress.best_step < 0
        self.update_progress(validated=self.progress.step)
        if better:
            self.update_progress(best_score=score, best_step=self.progress.step)
        self.record(
            event="validation",
            step=self.progress.step,
            horizon=self.horizon,
            score=score,
            sum=curves.mean(curves.sums).to_json(),
            final=curves.mean(curves.finals).to_json(),
            **{name: value.to_json() for name, value in curves.mean_metrics().items()},
            diverged=int(curves.diverged.sum()),
            best_score=self.progress.best_score,
            best_step=self.progress.best_step,
            curve=thinned(curves.losses.mean(1).tolist()),
        )
        if distributed.is_first():
            self._draw(curves)
        if better:
            self.save(self.folder.best)
        self.save(self.folder.last)
        bar.set_postfix(self._figures(validation=f"{score:.4g}"))

    def _next_horizon(self) -> None:
        """Return to the best at this horizon, and begin the next one, at which the best has yet to be found."""
        checkpoint.load_meta_optimizer(self.meta_optimizer, self._load_best()["meta_optimizer"], self.folder.best)
        progress, before = self.progress, self.horizon
        self.update_progress(
            stage=progress.stage + 1, validated=-1, best_score=math.inf, best_step=-1, skipped_in_row=0
        )
        log.info(
            "Meta-step %d: no better score in %d validations of %d steps; continuing with %d steps from the best, of "
            "meta-step %d.",
            progress.step,
            self.meta.advance,
            before,
            self.horizon,
            progress.best_step,
        )

    def _load_best(self) -> Mapping[str, Any]:
        content = distributed.run_on_first(lambda: checkpoint.load(self.folder.best))
        checkpoint.load_parameters(self.rule, content["optimizer"], self.folder.best)
        return content

    def finish(self) -> RunResult:
        self._log_end()
        if distributed.is_first():
            self.folder.draw(plots.animation, "learning.gif", sorted(self.folder.frames.glob("*.png")))
        self._load_best()
        curves = self.evaluator.validate(self.rule)
        metrics = self._compare() if self.config.evaluate else curves.mean_metrics()
        finals, sums = (curves.mean(values) for values in (curves.finals, curves.sums))
        status = "diverged" if self._diverged else "completed"
        return RunResult(status, curves.score(self.config.score), finals, sums, metrics)

    def _log_end(self) -> None:
        """Say why the run ended, if not after its last meta-step at its last horizon."""
        progress = self.progress
        if self._diverged:
            log.warning(
                "Stopped at meta-step %d: %d meta-gradients in a row were not finite; the best state, of meta-step %d, "
                "is kept. A lower meta.lr or meta.clip may help.",
                progress.step,
                progress.skipped_in_row,
                progress.best_step,
            )
        elif progress.step < self.meta.steps:
            log.info("Stopped at meta-step %d: no better score in %d validations.", progress.step, self.meta.patience)
        if not self._last_stage:
            log.warning(
                "Ended at a horizon of %d steps, before the horizon of %d was reached: use more meta.steps or a "
                "smaller meta.advance.",
                self.horizon,
                self.horizons[-1],
            )

    def _compare(self) -> dict[str, Interval]:
        """Compare on held-out problems; return the learned rule's metrics there."""
        compared = self.evaluator.compare({self.name: self.rule, **self.baselines})
        if distributed.is_first():
            log.info(comparison.write(self.folder, compared))
        log.info("%s\n%s\n%s", self.folder.path / "learning.png", self.folder.path / "learning.gif", self.folder.best)
        return compared.curves[self.name].mean_metrics()

    def _summary(self, curves: Mapping[str, Curves], rates: Mapping[str, float | None]) -> Comparison:
        return Comparison(self.config.optimizee.name, curves, rates, gain=self.config.optimizee.gain)

    def _draw(self, curves: Curves) -> None:
        summary = self._summary({self.name: curves}, {self.name: None}).summary()
        summary = replace(summary, optimizers=summary.optimizers | self.shown)
        records = self.folder.records()
        self.folder.draw(
            plots.learning,
            ["learning.png", f"frames/{self.progress.step:08d}.png"],
            self.progress.step,
            self.meta.steps,
            summary,
            [(r["step"], r["meta_loss"]) for r in records if r["event"] == "meta_step"],
            [(r["step"], r[self.config.score]["mean"], r["horizon"]) for r in records if r["event"] == "validation"],
            self.config.score,
        )

    def _figures(self, **figures: str) -> dict[str, str]:
        best = {"best": f"{self.progress.best_score:.4g} at {self.progress.best_step}"}
        skipped = {"skipped": str(self.progress.skipped)} if self.progress.skipped else {}
        self._on_bar |= figures
        return {**self._on_bar, **best, **skipped}
