"""A run of a hand-designed rule: nothing is learned, and its learning rate can be chosen by the result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from l2l_runner import plots
from l2l_runner.evaluation import comparison
from l2l_runner.evaluation.comparison import Comparison
from l2l_runner.evaluation.curves import Curves
from l2l_runner.optimizers import HandDesigned
from l2l_runner.runs import checkpoint
from l2l_runner.runs.results import RunResult
from l2l_runner.stopping import raise_if_stopped
from l2l_runner.training.base import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandDesignedProgress:
    """Where the run stands: it has one step, and starts anew when it is resumed."""

    metrics_bytes: int = 0


class HandDesignedRun(Run[HandDesignedProgress]):
    """One evaluation on the validation problems; for `held_out` rules a comparison on held-out ones too.

    Attributes:
        curves: on the validation problems; None before they were computed.
    """

    resumable = False

    def begin(self) -> None:
        assert isinstance(self.config.optimizer, HandDesigned)
        self.rule, self.name = self.config.optimizer, self.config.optimizer.name
        self.progress = HandDesignedProgress()
        self.curves: Curves | None = None

    def state(self) -> Mapping[str, Any]:
        return checkpoint.run_state(self.config, self.progress)

    def restore(self, content: Mapping[str, Any]) -> None:
        raise AssertionError("it has no checkpoints")

    @property
    def where(self) -> str:
        return "the start"

    @property
    def description(self) -> str:
        return f"{self.name} on {self.config.optimizee.name}, seed {self.config.seed}"

    def bar(self) -> tqdm[Any]:
        steps = self.config.unroll.steps
        return tqdm(total=steps, desc="running", unit="step", leave=False, disable=None)

    @property
    def done(self) -> bool:
        return self.curves is not None

    def step(self, bar: tqdm[Any]) -> None:
        def on_step() -> None:
            bar.update()
            raise_if_stopped()

        self.curves = self.evaluator.validate(self.rule, on_step=on_step)

    def finish(self) -> RunResult:
        curves, optimizee = self.curves, self.config.optimizee
        assert curves is not None
        validation = Comparison(optimizee.name, {self.name: curves}, {self.name: self.rule.lr}, gain=optimizee.gain)
        summary = validation.summary()
        entry = summary.optimizers[self.name]
        for step, (mean, ci95) in enumerate(zip(entry.curve, entry.ci95, strict=True)):
            self.record(event="step", step=step, loss=mean, ci95=ci95)
        self.folder.draw(plots.single_curve, "curve.png", self.name, summary)
        loss, losses = summary.gain or "loss", f"{summary.gain}s" if summary.gain else "losses"
        log.info(
            "%s at lr %.3g on %d validation problems of %s, %d steps: final %s %s, sum of %s %s, %d diverged",
            *(self.name, self.rule.lr, summary.problems, optimizee.name, summary.steps),
            *(loss, entry.final.shown(summary.sign), losses, entry.sum.shown(summary.sign), entry.diverged),
        )
        metrics = entry.metrics
        if self.rule.held_out and self.config.evaluate:
            compared = self.evaluator.compare({self.name: self.rule, **self.evaluator.tuned()})
            log.info(comparison.write(self.folder, compared))
            metrics = compared.curves[self.name].mean_metrics()
        return RunResult("completed", curves.score(self.config.score), entry.final, entry.sum, metrics)
