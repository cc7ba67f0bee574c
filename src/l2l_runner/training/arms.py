"""Two arms on the same problems, trajectory after trajectory: what learning while training has to be compared with.

Online learning has one problem and two optimizers, reweighting two problems and one optimizer. Both read losses and
metrics at intervals, and compare the means over independent runs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from l2l_runner.errors import CheckpointError
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import Optimizer
from l2l_runner.runs import checkpoint
from l2l_runner.training.base import Run
from l2l_runner.unroll import Point, start


@dataclass(frozen=True)
class ArmsProgress:
    """Where a run of two arms stands; part of its checkpoints.

    Attributes:
        trajectory: trajectories done.
        step: steps done of the present one.
        best_loss: the lowest loss that a learning arm has ended with; None before the first end.
        metrics_bytes: size of metrics.jsonl.
    """

    trajectory: int = 0
    step: int = 0
    best_loss: float | None = None
    metrics_bytes: int = 0


class Reading(Protocol):
    """What is read of a trajectory at a step: a frozen dataclass that becomes a line of metrics.jsonl."""

    @property
    def run(self) -> int: ...
    @property
    def arm(self) -> str: ...
    @property
    def step(self) -> int: ...
    @property
    def loss(self) -> float: ...


AReading = TypeVar("AReading", bound=Reading)


class Window(NamedTuple):
    """Some steps of a trajectory.

    Attributes:
        losses: [steps], met by them.
        end: the point that they lead to.
    """

    losses: Tensor
    end: Point


class Arms(Run[ArmsProgress], Generic[AReading]):
    """Trajectories of two arms, of which a checkpoint can hold any point. A step is a window of a trajectory.

    Attributes:
        reading_type: the dataclass of the readings.
        ends_when_diverged: whether a trajectory ends at the first reading that is not finite.
        trajectories: settings of all trajectories, in order.
        steps: of a trajectory.
        point: where the present trajectory stands; None before its first point.
        pending: losses since the last reading.
        readings: of all trajectories so far.
    """

    reading_type: ClassVar[type[Any]]
    ends_when_diverged: ClassVar[bool] = False

    trajectories: Sequence[Any]

    def begin(self) -> None:
        self.steps = self.config.unroll.steps
        self.progress = ArmsProgress()
        self.readings: list[AReading] = []
        self.point: Point | None = None
        self.pending: list[Tensor] = []
        self._problem: Problem | None = None
        self._windows: Iterator[Window] = iter(())

    # What a kind of arms says of itself.

    @property
    @abstractmethod
    def read_every(self) -> int:
        """Steps between readings."""

    @abstractmethod
    def open(self) -> tuple[Problem, Optimizer]:
        """Return the problem of the present trajectory and the optimizer that starts it."""

    @abstractmethod
    def windows(self, problem: Problem, point: Point) -> Iterator[Window]:
        """Take the windows of the present trajectory from a point on; learn after each, where the arm learns."""

    @abstractmethod
    def read(self, problem: Problem, params: Tensor, step: int, loss: float) -> AReading:
        """Return what is to be read of a point.

        Args:
            problem: of the trajectory.
            params: [1, coordinates].
            step: steps taken.
            loss: mean loss of the steps since the last reading; of the start, its loss.
        """

    def after_reading(self) -> None:
        """Refresh what shows the run."""

    def close(self, problem: Problem, complete: bool) -> None:
        """Keep what the present trajectory has led to; it diverged where it is not `complete`."""

    # The life cycle.

    def saved_point(self) -> dict[str, Any]:
        """Return what a checkpoint holds of the present trajectory."""
        return {"point": None if self.point is None else tuple(self.point), "pending": self.pending}

    def restore(self, content: Mapping[str, Any]) -> None:
        self.progress = checkpoint.load_progress(ArmsProgress, content["progress"], self.folder.last)
        device = self.runtime.device
        try:
            self.point = None if content["point"] is None else Point(*content["point"]).to(device)
            self.pending = [losses.to(device) for losses in content["pending"]]
        except (TypeError, KeyError, AttributeError) as error:
            raise self._odd_point from error
        self.folder.truncate(self.progress.metrics_bytes)  # before its lines are read
        self.readings = [self.reading_type(**fields) for fields in self.folder.readings()]

    @property
    def present(self) -> Any:
        """The settings of the present trajectory."""
        return self.trajectories[self.progress.trajectory]

    @property
    def done(self) -> bool:
        return self.progress.trajectory == len(self.trajectories)

    def bar(self) -> tqdm[Any]:
        total, done = len(self.trajectories) * self.steps, self.progress.trajectory * self.steps + self.progress.step
        return tqdm(total=total, initial=done, unit="step", disable=None)

    def step(self, bar: tqdm[Any]) -> None:
        if self._problem is None:
            self._problem = self._open(bar)
        window = None if self.ends_when_diverged and self._diverged else next(self._windows, None)
        if window is None:
            self._close()
            return
        self.point = window.end
        self.pending.append(window.losses.flatten())
        before, now = self.progress.step, window.end.step
        bar.update(now - before)
        self.update_progress(step=now)
        if now // self.read_every > before // self.read_every or now == self.steps:
            self._read(self._problem, torch.cat(self.pending), bar)
            self.after_reading()
            self.save(self.folder.last)

    def _open(self, bar: tqdm[Any]) -> Problem:
        """Begin the present trajectory, or take it up where a checkpoint left it."""
        bar.set_description(self.label)
        problem, optimizer = self.open()
        if self.point is None:
            self.point = start(problem, optimizer)
            self._read(problem, self.point.loss, bar)
        elif _shapes(self.point) != _shapes(start(problem, optimizer)):
            raise self._odd_point  # kernels trust shapes
        self._windows = self.windows(problem, self.point)
        return problem

    @property
    def _odd_point(self) -> CheckpointError:
        return CheckpointError(
            f"{self.folder.last} holds no point of such a trajectory: take another copy of it, or start a new run."
        )

    @property
    @abstractmethod
    def label(self) -> str:
        """The name of the present trajectory, for the bar."""

    @property
    def _diverged(self) -> bool:
        """Whether the last reading of the present trajectory, after its start, was not finite."""
        return self.progress.step > 0 and not math.isfinite(self.readings[-1].loss)

    def _read(self, problem: Problem, losses: Tensor, bar: tqdm[Any]) -> None:
        assert self.point is not None
        self.pending = []
        with torch.no_grad():
            reading = self.read(problem, self.point.params, self.point.step, losses.mean().item())
        self.readings.append(reading)
        self.record(event="reading", **asdict(reading))  # type: ignore[call-overload]
        bar.set_postfix(self.figures(reading))

    @abstractmethod
    def figures(self, reading: AReading) -> dict[str, str]:
        """Return what the bar shows of a reading."""

    def _close(self) -> None:
        """End the present trajectory, and go on to the next one."""
        assert self._problem is not None
        self.close(self._problem, complete=self.progress.step == self.steps and not self._diverged)
        self.point, self.pending, self._problem, self._windows = None, [], None, iter(())
        self.update_progress(trajectory=self.progress.trajectory + 1, step=0)
        self.after_trajectory()
        self.save(self.folder.last)

    def after_trajectory(self) -> None:
        """Do what comes between two trajectories."""


def _shapes(point: Point) -> list[tuple[torch.Size, torch.dtype]]:
    return [(tensor.shape, tensor.dtype) for tensor in (point.params, *point.state, point.loss, point.grads)]
