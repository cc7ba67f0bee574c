"""The outer loop: meta-train, validate on a fixed set, keep the best, and lose nothing when stopped."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_runner import distributed
from l2l_runner.evaluation.comparison import compare, tuned_baselines, write_comparison
from l2l_runner.evaluation.curves import Comparison, Curves, run
from l2l_runner.meta import Estimate, MetaGradient
from l2l_runner.meta.base import Grads, global_norm
from l2l_runner.optimizers import HandDesigned, LearnedRule
from l2l_runner.plots import plotting
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.resuming import last_state, stopped
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Meta, TrainConfig
from l2l_runner.stopping import raise_if_stopped, stop_requests

log = logging.getLogger(__name__)

CURVE = 50  # intervals between those points of a validation's mean curve that metrics.jsonl keeps


@dataclass(frozen=True)
class Progress:
    """Where a run stands; part of its checkpoints.

    Attributes:
        step: meta-steps done.
        validated: meta-steps done at the last validation; -1 before the first.
        best_score: the best validation score, and the meta-step at which it was reached.
        best_step: see `best_score`.
        skipped: windows skipped because their meta-loss or meta-gradient was not finite, in all.
        skipped_in_row: the same, since the last that was finite.
        metrics_bytes: size of metrics.jsonl.
        stage: place of the present horizon in the curriculum; scores at different horizons aren't comparable, so the
            best is the best at this one.
    """

    step: int = 0
    validated: int = -1
    best_score: float = math.inf
    best_step: int = -1
    skipped: int = 0
    skipped_in_row: int = 0
    metrics_bytes: int = 0
    stage: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: completed or diverged.
        score: what its configuration asks for.
        final: mean and confidence interval of the final loss.
        sum: likewise, of the sum of losses.
        metrics: likewise, what else was read after the last step, on held-out problems where there was a comparison.
    """

    status: str
    score: float
    final: dict[str, float]
    sum: dict[str, float]
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)


def learning_rate(meta: Meta, step: int) -> float:
    """The meta-optimizer's rate at a meta-step: linear warm-up, then constant or cosine decay."""
    progress = step / max(1, meta.steps)
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) if meta.schedule == "cosine" else 1.0
    rising = min(1.0, (step + 1) / (meta.warmup * meta.steps)) if meta.warmup * meta.steps >= 1 else 1.0
    return meta.lr * rising * decay


def thinned(curve: list[float]) -> dict[str, list[Any]]:
    """At most 51 points of a curve, evenly spread from its first to its last: their `steps` and `loss`."""
    last = len(curve) - 1
    steps = sorted({round(last * part / CURVE) for part in range(CURVE + 1)})
    return {"steps": steps, "loss": [curve[step] for step in steps]}


def meta_update(
    meta_optimizer: torch.optim.Optimizer,
    optimizer: LearnedRule,
    grads: Grads,
    norm: Tensor,
    usable: Tensor,
    clip: float | None,
) -> None:
    """A step of the meta-optimizer, a fused one, without waiting for the device.

    Args:
        meta_optimizer: what takes the step.
        optimizer: what it learns.
        grads: the meta-gradient; parameters without one stay as they are.
        norm: its global norm, a scalar.
        usable: a scalar: 1, or 0 to leave everything as it is.
        clip: the largest norm; None for any.
    """
    scale = 1.0 if clip is None else (clip / (norm + 1e-12)).clamp(max=1)
    for parameter, grad in zip(optimizer.parameters(), grads, strict=True):
        # Fused optimizers take a gradient's numbers in the order of memory, which vmap's convolutions may have changed.
        parameter.grad = None if grad is None else torch.empty_like(parameter).copy_(grad * scale)
    # Where it is 1, a fused optimizer leaves everything as it is.
    meta_optimizer.found_inf = 1 - usable  # type: ignore[attr-defined]
    meta_optimizer.step()


def run_hand_designed(
    config: TrainConfig, optimizer: HandDesigned, name: str, folder: RunFolder, runtime: Runtime
) -> Outcome:
    """Nothing is meta-learned: run a hand-designed optimizer on the validation problems, where its rate can be chosen.

    `none`, whose rate isn't to be chosen, meets the held-out problems too, beside the tuned baselines: what its outcome
    has is of the same problems as that of a meta-training.
    """
    optimizee, steps = config.optimizee, config.unroll.steps
    seeds = optimizee.seeds(config.seed, "validation", 0, optimizee.validation_problems)
    with stop_requests():
        curves = run(optimizer, optimizee, seeds, steps, runtime, config.evaluation.chunk, raise_if_stopped)
    summary = Comparison(optimizee.name, {name: curves}, {name: optimizer.lr}, gain=optimizee.gain).summary()
    entry = summary["optimizers"][name]
    for step, (loss, ci95) in enumerate(zip(entry["curve"], entry["ci95"], strict=True)):
        folder.log({"event": "step", "step": step, "loss": loss, "ci95": ci95})
    folder.draw(plotting.single_curve, "curve.png", name, summary)
    log.info(
        "%s at lr %.3g on %d validation problems of %s, %d steps: final loss %.4g ± %.2g, sum of losses %.4g ± %.2g, "
        "%d diverged",
        name,
        optimizer.lr,
        summary["problems"],
        optimizee.name,
        steps,
        *entry["final"].values(),
        *entry["sum"].values(),
        entry["diverged"],
    )
    metrics = entry["metrics"]
    if name == "none" and config.evaluate:
        metrics = _compare_none(config, optimizer, folder, runtime)
    return Outcome("completed", curves.score(config.score), entry["final"], entry["sum"], metrics)


def _compare_none(
    config: TrainConfig, optimizer: HandDesigned, folder: RunFolder, runtime: Runtime
) -> dict[str, dict[str, float]]:
    """On held-out problems; the metrics of `none` there."""
    evaluation, optimizee = config.evaluation, config.optimizee
    steps = evaluation.steps or config.unroll.steps
    with stop_requests():
        baselines = tuned_baselines(evaluation, optimizee, config.seed, steps, config.score, runtime)
        problems = evaluation.problems or optimizee.test_problems
        all_ = {"none": optimizer, **baselines}
        comparison = compare({}, all_, optimizee, config.seed, problems, steps, runtime, evaluation.chunk)
    log.info(write_comparison(folder, comparison))
    return comparison.curves["none"].mean_metrics()


def _of_all(estimate: Estimate, share: float) -> tuple[Tensor, Tensor, Grads]:
    """Meta-loss, mean final loss and gradients for the problems of all processes, of which this one has had a share."""
    said = [grad for grad in estimate.grads if grad is not None]
    meta_loss, final, *grads = distributed.all_reduce([estimate.meta_loss, estimate.losses[-1].mean(), *said], share)
    those = iter(grads)
    return meta_loss, final, tuple(None if grad is None else next(those) for grad in estimate.grads)


class MetaTraining:
    """One run of meta-training, in its folder."""

    def __init__(self, config: TrainConfig, composed: Mapping[str, Any], folder: RunFolder, runtime: Runtime):
        self.config, self.composed, self.folder, self.runtime = config, composed, folder, runtime
        self.name = str(composed["optimizer"]["name"])
        self.optimizer = checkpoint.build_optimizer(composed, config.seed).to(runtime.device, runtime.dtype)
        self.optimizer.use_kernel(config.kernel)
        assert isinstance(config.meta, Meta)
        self.meta = config.meta
        kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.meta.optimizer]
        self.meta_optimizer = kind(self.optimizer.parameters(), lr=config.meta.lr, fused=True)
        self.horizons = config.meta.horizons(config.unroll)
        self.progress = Progress()
        self._shown_figures: dict[str, str] = {}  # of the bar
        before = distributed.run_on_first(lambda: last_state(folder, composed) if folder.last.exists() else None)
        if before is None:
            self.optimizer.initialise_from(config.optimizee.sample(self._seeds(0, 1), runtime))
            checkpoint.initialise(self.optimizer, config.init)
        else:
            self._restore(before)
        if distributed.is_first():
            folder.truncate(self.progress.metrics_bytes)

    def _restore(self, content: Mapping[str, Any]) -> None:
        checkpoint.load_parameters(self.optimizer, content["optimizer"], self.folder.last)
        self.meta_optimizer.load_state_dict(content["meta_optimizer"])
        self.progress = Progress(**content["progress"])
        log.info("Resumed %s at meta-step %d of %d.", self.folder.path, self.progress.step, self.meta.steps)

    @property
    def horizon(self) -> int:
        """Steps of the present trajectories, in training and in validation."""
        return self.horizons[self.progress.stage]

    @property
    def estimator(self) -> MetaGradient:
        assert not isinstance(self.config.optimizer, HandDesigned)
        return self.meta.estimator(replace(self.config.unroll, steps=self.horizon), self.config.optimizer)

    def _save(self, path: Path) -> None:
        if distributed.is_first():
            state = checkpoint.run_state(self.composed, self.progress, self.optimizer, self.meta_optimizer)
            self.folder.save(path, state)

    def _record(self, **record: Any) -> None:
        if distributed.is_first():
            self.progress = replace(self.progress, metrics_bytes=self.folder.log(record))

    def train(self) -> Outcome:
        """Train to the last meta-step; validate, save and draw on the way; compare at the end.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the state is saved.
        """
        config, meta = self.config, self.meta
        with stop_requests() as stop:  # from before the first line is logged, which takes the bars' lock
            log.info(
                "Meta-training %s on %s: %d meta-steps of %d problems × %s steps, %s, kernel %s, on %s, seed %d; in %s",
                self.name,
                config.optimizee.name,
                meta.steps,
                config.meta_batch,
                ", then ".join(map(str, self.horizons)),
                self.estimator.description,
                ", ".join(dict.fromkeys(part.rule.kernel_name for part in self.optimizer.parts())),
                self.runtime.device
                if distributed.world_size() == 1
                else f"{self.runtime.device} × {distributed.world_size()}",
                config.seed,
                self.folder.path,
            )
            stores = self.estimator.stores(config.optimizee.layout(), config.meta_batch, self.runtime.dtype)
            if stores:
                log.info("Stored of a meta-step: %s.", stores)
            return self._train(stop)

    def _train(self, stop: list[int]) -> Outcome:
        config, meta = self.config, self.meta
        status = "completed"
        baselines = self._baselines() if config.evaluate else {}
        shown = self._shown(baselines)
        with self._bar() as bar:
            while True:
                progress = self.progress
                due = progress.step % meta.validate_every == 0 or progress.step >= meta.steps
                if due and progress.validated != progress.step:
                    self._validate(shown, bar)
                if self.progress.step < meta.steps and not self._last_stage and self._stalled() >= meta.advance:
                    self._advance()
                    continue  # with a validation at the new horizon
                signal = distributed.max_over_ranks(stop[0] if stop else 0)
                if signal:
                    self._save(self.folder.last)
                    raise stopped(f"meta-step {self.progress.step} of {meta.steps}", self.folder, signal)
                if self.progress.step >= meta.steps:
                    break
                if self.progress.skipped_in_row >= meta.max_skipped:
                    status = "diverged"
                    log.warning(
                        "Stopped at meta-step %d: %d meta-gradients in a row were not finite; the best state, of "
                        "meta-step %d, is kept. A lower meta.lr or meta.clip may help.",
                        self.progress.step,
                        self.progress.skipped_in_row,
                        self.progress.best_step,
                    )
                    break
                if meta.patience is not None and self._last_stage and self._stalled() >= meta.patience:
                    step = self.progress.step
                    log.info("Stopped at meta-step %d: no better score in %d validations.", step, meta.patience)
                    break
                self._meta_step(bar)
            self._save(self.folder.last)
        if distributed.is_first():
            self._animate()
        if not self._last_stage:
            log.warning(
                "Ended at a horizon of %d steps, before that of %d was reached: more meta.steps or a smaller "
                "meta.advance lead there.",
                self.horizon,
                self.horizons[-1],
            )
        self._load_best()
        curves = self._on_validation(config.unroll.steps)
        metrics = self._compare(baselines) if config.evaluate else curves.mean_metrics()
        finals, sums = (curves.mean(values) for values in (curves.finals, curves.sums))
        return Outcome(status, curves.score(config.score), finals, sums, metrics)

    def _load_best(self) -> Mapping[str, Any]:
        content = distributed.run_on_first(lambda: checkpoint.load(self.folder.best))
        checkpoint.load_parameters(self.optimizer, content["optimizer"], self.folder.best)
        return content

    def _advance(self) -> None:
        """Go back to the best at this horizon, and on to the next one, at which the best has yet to be found."""
        self.meta_optimizer.load_state_dict(self._load_best()["meta_optimizer"])
        progress, before = self.progress, self.horizon
        self.progress = replace(
            progress, stage=progress.stage + 1, validated=-1, best_score=math.inf, best_step=-1, skipped_in_row=0
        )
        log.info(
            "Meta-step %d: no better score in %d validations of %d steps; on to %d from the best, of meta-step %d.",
            progress.step,
            self.meta.advance,
            before,
            self.horizon,
            progress.best_step,
        )

    def _seeds(self, first: int, count: int) -> Tensor:
        return self.config.optimizee.seeds(self.config.seed, "train", first, count, self.runtime.device)

    def _meta_step(self, bar: tqdm[Any]) -> None:
        config, meta, step = self.config, self.meta, self.progress.step
        seeds = self._seeds(step * config.meta_batch, config.meta_batch)[distributed.shard(config.meta_batch)]
        problem = meta.training_problem(config.optimizee.sample(seeds, self.runtime))
        lr = learning_rate(meta, step)
        for group in self.meta_optimizer.param_groups:
            group["lr"] = lr
        # What isn't finite never reaches the parameters, and the rest of that trajectory is lost with it. All of that
        # is decided on the device; the host waits for it once, at the end, to log.
        usable = torch.ones((), device=self.runtime.device)
        figures: list[Tensor] = []
        imitates, covered = False, 0
        for estimate in self.estimator.estimates(self.optimizer, problem):
            meta_loss, final, grads = _of_all(estimate, len(seeds) / config.meta_batch)
            norm = global_norm(grads)
            usable = usable * (torch.isfinite(meta_loss) & torch.isfinite(norm))
            meta_update(self.meta_optimizer, self.optimizer, grads, norm, usable, meta.clip)
            imitates = estimate.imitates
            covered += len(estimate.losses)
            figures.append(torch.stack([meta_loss, final, norm, usable.to(norm)]))
        windows = torch.stack(figures).tolist()
        norms = [norm for _, _, norm, used in windows if used]
        trajectory_loss = sum(window[0] for window in windows)
        if len(norms) < len(windows):
            in_row = self.progress.skipped_in_row + 1 if not norms else 1
            self.progress = replace(self.progress, skipped=self.progress.skipped + 1, skipped_in_row=in_row)
            trajectory_loss = math.nan
        else:
            self.progress = replace(self.progress, skipped_in_row=0)
        self.progress = replace(self.progress, step=step + 1)
        # A distance is relative already; a meta-loss is a sum over the trajectory.
        event, name = ("imitation", "distance") if imitates else ("meta_step", "meta_loss")
        mean = trajectory_loss / (len(windows) if imitates else covered)
        norm_mean = sum(norms) / len(norms) if norms else math.nan
        self._record(
            event=event,
            step=step + 1,
            horizon=self.horizon,
            **{name: mean},
            final_loss=windows[-1][1],
            grad_norm=norm_mean,
            lr=lr,
            skipped=self.progress.skipped,
        )
        bar.set_postfix(self._figures(**{name: f"{mean:.4g}"}), refresh=False)
        bar.update()

    def _validate(self, shown: dict[str, Any], bar: tqdm[Any]) -> None:
        config = self.config
        curves = self._on_validation(self.horizon)
        score = distributed.run_on_first(lambda: curves.score(config.score))  # one for all, to the last bit
        better = score < self.progress.best_score or self.progress.best_step < 0
        self.progress = replace(self.progress, validated=self.progress.step)
        if better:
            self.progress = replace(self.progress, best_score=score, best_step=self.progress.step)
        self._record(
            event="validation",
            step=self.progress.step,
            horizon=self.horizon,
            score=score,
            sum=curves.mean(curves.sums),
            final=curves.mean(curves.finals),
            **curves.mean_metrics(),
            diverged=int(curves.diverged.sum()),
            best_score=self.progress.best_score,
            best_step=self.progress.best_step,
            curve=thinned(curves.losses.mean(1).tolist()),
        )
        if distributed.is_first():
            self._draw(curves, shown)
        if better:
            self._save(self.folder.best)
        self._save(self.folder.last)
        bar.set_postfix(self._figures(validation=f"{score:.4g}"))

    def _on_validation(self, steps: int) -> Curves:
        config = self.config
        seeds = config.optimizee.seeds(config.seed, "validation", 0, config.optimizee.validation_problems)
        return run(self.optimizer, config.optimizee, seeds, steps, self.runtime, config.evaluation.chunk)

    def _baselines(self) -> dict[str, HandDesigned]:
        config = self.config
        tuned = tuned_baselines(
            config.evaluation, config.optimizee, config.seed, config.unroll.steps, config.score, self.runtime
        )
        if tuned:
            rates = ", ".join(f"{name} lr {baseline.lr:.3g}" for name, baseline in tuned.items())
            log.info("Baselines, tuned on validation problems: %s", rates)
        return tuned

    def _shown(self, baselines: Mapping[str, HandDesigned]) -> dict[str, Any]:
        """The baselines' entries in the picture of the learning, on the validation problems."""
        config = self.config
        seeds = config.optimizee.seeds(config.seed, "validation", 0, config.optimizee.validation_problems)
        steps, chunk = config.unroll.steps, config.evaluation.chunk
        curves = {n: run(b, config.optimizee, seeds, steps, self.runtime, chunk) for n, b in baselines.items()}
        if not curves:
            return {}
        summary = Comparison(config.optimizee.name, curves, {n: b.lr for n, b in baselines.items()}).summary()
        return dict(summary["optimizers"])

    def _draw(self, curves: Curves, shown: dict[str, Any]) -> None:
        optimizee = self.config.optimizee
        summary = Comparison(optimizee.name, {self.name: curves}, {self.name: None}, gain=optimizee.gain).summary()
        summary["optimizers"] |= shown
        records = self.folder.records()
        self.folder.draw(
            plotting.learning,
            ["learning.png", f"frames/{self.progress.step:08d}.png"],
            self.progress.step,
            self.meta.steps,
            summary,
            [(r["step"], r["meta_loss"]) for r in records if r["event"] == "meta_step"],
            [
                (r["step"], r[self.config.score]["mean"], r.get("horizon", self.horizon))  # older runs have but one
                for r in records
                if r["event"] == "validation"
            ],
            self.config.score,
        )

    def _animate(self) -> None:
        self.folder.draw(plotting.animation, "learning.gif", sorted(self.folder.frames.glob("*.png")))

    def _compare(self, baselines: Mapping[str, HandDesigned]) -> dict[str, dict[str, float]]:
        """On held-out problems; the learned optimizer's metrics there."""
        config = self.config
        steps = config.evaluation.steps or config.unroll.steps
        problems = config.evaluation.problems or config.optimizee.test_problems
        learned = {self.name: self.optimizer}
        chunk = config.evaluation.chunk
        comparison = compare(learned, baselines, config.optimizee, config.seed, problems, steps, self.runtime, chunk)
        if distributed.is_first():
            log.info(write_comparison(self.folder, comparison))
        log.info("%s\n%s\n%s", self.folder.path / "learning.png", self.folder.path / "learning.gif", self.folder.best)
        return comparison.curves[self.name].mean_metrics()

    @property
    def _last_stage(self) -> bool:
        return self.progress.stage == len(self.horizons) - 1

    def _stalled(self) -> int:
        return (self.progress.validated - self.progress.best_step) // self.meta.validate_every

    def _figures(self, **figures: str) -> dict[str, str]:
        best = {"best": f"{self.progress.best_score:.4g} at {self.progress.best_step}"}
        skipped = {"skipped": str(self.progress.skipped)} if self.progress.skipped else {}
        self._shown_figures |= figures
        return {**self._shown_figures, **best, **skipped}

    def _bar(self) -> tqdm[Any]:
        step, total = self.progress.step, self.meta.steps
        return tqdm(
            initial=step, total=total, desc="meta-training", unit="meta-step", disable=distributed.bar_disabled()
        )
