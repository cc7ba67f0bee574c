"""A run that can be stopped after any of its steps, or killed, and resumed: the one life cycle of all kinds of runs."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from tqdm import tqdm

from l2l_runner import distributed, streams
from l2l_runner.evaluation.evaluator import Evaluator
from l2l_runner.optimizers import LearnedRule
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.results import RunResult
from l2l_runner.runs.resuming import last_state, stopped
from l2l_runner.runtime import Runtime
from l2l_runner.schema import TrainConfig
from l2l_runner.stopping import stop_requests

log = logging.getLogger(__name__)


class HasMetricsBytes(Protocol):
    """What every run's progress has: the size of metrics.jsonl when the progress was saved, in bytes."""

    @property
    def metrics_bytes(self) -> int: ...


Progress = TypeVar("Progress", bound=HasMetricsBytes)


class Run(ABC, Generic[Progress]):
    """A run in its folder.

    A kind of run defines `begin`, what a checkpoint holds (`state`, `restore`), one `step` after another until the
    run is `done`, and its result (`finish`). The rest is here: between two steps the run listens to stop requests; it
    saves, and a resumed run drops the lines of metrics.jsonl that its checkpoint does not know of.

    Attributes:
        resumable: whether the run has checkpoints; otherwise it starts anew when it is resumed.
        config: of the run.
        folder: of the run.
        runtime: where to compute.
        progress: where the run stands.
    """

    resumable: ClassVar[bool] = True

    progress: Progress

    def __init__(self, config: TrainConfig, folder: RunFolder, runtime: Runtime):
        self.config, self.folder, self.runtime = config, folder, runtime
        self.evaluator = Evaluator(
            optimizee=config.optimizee,
            seed=config.seed,
            steps=config.unroll.steps,
            score=config.score,
            settings=config.evaluation,
            runtime=runtime,
        )
        self.begin()
        content = distributed.run_on_first(lambda: last_state(folder, config))
        if content is None:
            self.initialise()
        else:
            self.restore(content)
        if distributed.is_first():
            folder.truncate(self.progress.metrics_bytes)
        if content is not None:
            log.info("Resumed %s at %s.", folder.path, self.where)

    @abstractmethod
    def begin(self) -> None:
        """Set all attributes to those before the first step."""

    def initialise(self) -> None:
        """Do what a new run does once and a resumed one does not."""

    @abstractmethod
    def state(self) -> Mapping[str, Any]:
        """Return the content of a checkpoint, as `checkpoint.run_state` begins it."""

    @abstractmethod
    def restore(self, content: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""

    @property
    @abstractmethod
    def where(self) -> str:
        """The place that the run has reached, in the words of a log."""

    @property
    @abstractmethod
    def description(self) -> str:
        """What the run is, in the words of a log."""

    def prepare(self) -> None:
        """Do what every start of the run needs, resumed or not, and what can be interrupted by Ctrl-C."""

    @abstractmethod
    def bar(self) -> tqdm[Any]:
        """Return the progress bar, at the place that the run has reached."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether there is no further step."""

    @abstractmethod
    def step(self, bar: tqdm[Any]) -> None:
        """Do the next step: the smallest piece of work after which the run can be stopped."""

    @abstractmethod
    def finish(self) -> RunResult:
        """Return the result, after the last step."""

    def run(self) -> RunResult:
        """Do all steps from where the run stands; return the result.

        Raises:
            Stopped: Ctrl-C or SIGTERM; the state is saved.
        """
        with stop_requests() as stop:  # from before the first line is logged, which takes the bars' lock
            log.info("%s; in %s", self.description, self.folder.path)
            self.prepare()
            with self.bar() as bar:
                while not self.done:
                    signal = distributed.max_over_ranks(stop[0] if stop else 0)
                    if signal:
                        self.save(self.folder.last)
                        raise stopped(self.where, self.folder, signal)
                    self.step(bar)
            self.save(self.folder.last)
            return self.finish()

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically.

        Raises:
            StorageError: it could not be written.
        """
        if distributed.is_first() and self.resumable:
            checkpoint.save(path, self.state())
            if path == self.folder.last:
                self.folder.tracker.saved()

    def record(self, **record: Any) -> None:
        """Append a line to metrics.jsonl."""
        if distributed.is_first():
            self.update_progress(metrics_bytes=self.folder.log(record))

    def update_progress(self, **changes: Any) -> None:
        """Change some fields of the progress."""
        self.progress = replace(self.progress, **changes)  # type: ignore[type-var]


def new_rule(config: TrainConfig, runtime: Runtime) -> LearnedRule:
    """Return the learned rule of a configuration at its random start, where and in what it is computed."""
    rule = config.optimizer.build(config.optimizee.layout(), streams.generator(config.seed, "optimizer"))
    assert isinstance(rule, LearnedRule)  # checked with the configuration
    rule.to(runtime.device, runtime.dtype)
    rule.use_kernel(config.kernel)
    return rule
