"""The typed content of the result files that a run leaves: comparison.json and result.json.

Losses are stored as they are minimised. Where an optimizee minimises minus a gain (a return, say), `Summary.gain` names
the gain, and whoever shows a loss multiplies it by `Summary.sign`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from l2l_runner.files import with_nan


@dataclass(frozen=True)
class Interval:
    """A mean with half of the width of its 95 % confidence interval; NaN where they are not finite.

    Attributes:
        mean: the mean.
        ci95: the half-width.
    """

    mean: float
    ci95: float = math.nan

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Interval:
        return cls(float(with_nan(content["mean"])), float(with_nan(content["ci95"])))

    def shown(self, sign: int = 1) -> str:
        """Return the interval as it is printed.

        Args:
            sign: −1 where the mean is of losses that are minus a gain.

        Examples:
            >>> Interval(0.15712, 0.0301).shown(), Interval(-7.25).shown(sign=-1), Interval(math.inf).shown()
            ('0.1571 ± 0.03', '7.25', 'diverged')
        """
        if not math.isfinite(self.mean):
            return "diverged"
        return f"{sign * self.mean:.4g}" + (f" ± {self.ci95:.2g}" if math.isfinite(self.ci95) else "")


@dataclass(frozen=True)
class MetricCurve:
    """A metric at several steps of the trajectories.

    Attributes:
        steps: at which it was read.
        mean: over the steps, by the trapezoidal rule.
        curve: its mean at each of the steps.
        ci95: half-widths of the confidence intervals there.
    """

    steps: list[int]
    mean: Interval
    curve: list[float]
    ci95: list[float]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MetricCurve:
        steps, mean = list(content["steps"]), Interval.from_json(content["mean"])
        return cls(steps, mean, with_nan(list(content["curve"])), with_nan(list(content["ci95"])))


@dataclass(frozen=True)
class Paired:
    """Mean differences to a reference optimizer, problem by problem.

    Attributes:
        against: name of the reference.
        sum: of the sums of losses.
        final: of the final losses.
        metrics: of each metric at the end.
    """

    against: str
    sum: Interval
    final: Interval
    metrics: dict[str, Interval]

    def to_json(self) -> dict[str, Any]:
        content = asdict(self)
        metrics: dict[str, Any] = content.pop("metrics")
        return content | metrics

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Paired:
        intervals = {name: Interval.from_json(value) for name, value in content.items() if name != "against"}
        return cls(str(content["against"]), intervals.pop("sum"), intervals.pop("final"), intervals)


@dataclass(frozen=True)
class Entry:
    """What one optimizer reached in a comparison.

    Attributes:
        lr: the learning rate of a hand-designed optimizer; None for a learned one.
        sum: sum of the losses met at the steps, f(θ_0) + … + f(θ_{T−1}).
        final: loss after the last step, f(θ_T).
        diverged: number of problems that diverged.
        curve: mean losses f(θ_0) … f(θ_T), or those at `steps`.
        ci95: half-widths of the confidence intervals of `curve`.
        metrics: each metric at the last step.
        readings: metrics that were read along the trajectories.
        paired: differences to the reference; None for the reference itself.
        steps: the steps of `curve`; None for all of them.
    """

    lr: float | None
    sum: Interval
    final: Interval
    diverged: int
    curve: list[float]
    ci95: list[float]
    metrics: dict[str, Interval] = field(default_factory=dict)
    readings: dict[str, MetricCurve] = field(default_factory=dict)
    paired: Paired | None = None
    steps: list[int] | None = None

    def to_json(self) -> dict[str, Any]:
        absent = {"steps", *([] if self.readings else ["readings"]), *([] if self.paired else ["paired"])}
        content = {key: value for key, value in asdict(self).items() if key not in absent}
        return content if self.paired is None else content | {"paired": self.paired.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Entry:
        """Build the entry that `to_json` wrote.

        Raises:
            KeyError: a key is missing.
            ValueError: it has not as many confidence intervals as means, or none.
        """
        curve, ci95 = with_nan(list(content["curve"])), with_nan(list(content["ci95"]))
        if len(curve) != len(ci95) or not curve:
            raise ValueError(f"a curve of {len(curve)} means and {len(ci95)} confidence intervals")
        return cls(
            lr=None if content["lr"] is None else float(content["lr"]),
            sum=Interval.from_json(content["sum"]),
            final=Interval.from_json(content["final"]),
            diverged=int(content["diverged"]),
            curve=curve,
            ci95=ci95,
            metrics={name: Interval.from_json(value) for name, value in content["metrics"].items()},
            readings={name: MetricCurve.from_json(value) for name, value in content.get("readings", {}).items()},
            paired=Paired.from_json(content["paired"]) if "paired" in content else None,
        )


@dataclass(frozen=True)
class Summary:
    """A comparison of several optimizers on the same problems: the content of comparison.json.

    Attributes:
        optimizee: its name.
        steps: of a trajectory.
        problems: number of held-out problems.
        optimizers: by name; the first is the reference of the paired differences.
        gain: what the losses are minus of; None where they are losses.
        tasks: number of tasks that the problems belong to, where they belong to tasks.
    """

    optimizee: str
    steps: int
    problems: int
    optimizers: dict[str, Entry]
    gain: str | None = None
    tasks: int | None = None

    @property
    def sign(self) -> int:
        """Factor by which losses are shown: −1 where they are minus a gain."""
        return -1 if self.gain else 1

    def to_json(self) -> dict[str, Any]:
        gain = {} if self.gain is None else {"gain": self.gain}
        tasks = {} if self.tasks is None else {"tasks": self.tasks}
        about = {"optimizee": self.optimizee, **gain, "steps": self.steps, "problems": self.problems, **tasks}
        return {**about, "optimizers": {name: entry.to_json() for name, entry in self.optimizers.items()}}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """Build the summary that `to_json` wrote.

        Raises:
            KeyError: a key is missing.
            ValueError: a value makes no sense.
        """
        return cls(
            optimizee=str(content["optimizee"]),
            steps=int(content["steps"]),
            problems=int(content["problems"]),
            optimizers={name: Entry.from_json(entry) for name, entry in content["optimizers"].items()},
            gain=content.get("gain"),
            tasks=content.get("tasks"),
        )


@dataclass(frozen=True)
class RunResult:
    """How a run ended: the content of result.json.

    Attributes:
        status: completed, diverged or failed.
        score: what the configuration minimises; infinite where it is not finite, NaN where the run failed.
        final: the final loss.
        sum: the sum of losses.
        metrics: other metrics after the last step.
        error: why a run failed.
    """

    status: str
    score: float
    final: Interval | None = None
    sum: Interval | None = None
    metrics: dict[str, Interval] = field(default_factory=dict)
    error: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the run need not be run again."""
        return self.status in ("completed", "diverged")

    def to_json(self) -> dict[str, Any]:
        content = {key: value for key, value in asdict(self).items() if value is not None}
        return {key: value for key, value in content.items() if key != "metrics" or self.error is None}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RunResult:
        """Build the result that `to_json` wrote; a completed run without a finite score is a diverged one.

        Raises:
            KeyError: a key is missing.
            TypeError: a value has the wrong type.
        """
        status, score = str(content["status"]), float(with_nan(content["score"]))
        if status == "completed" and not math.isfinite(score):
            status = "diverged"
        final, total = (Interval.from_json(content[key]) if content.get(key) else None for key in ("final", "sum"))
        metrics = {name: Interval.from_json(value) for name, value in (content.get("metrics") or {}).items()}
        return cls(status, score, final, total, metrics, content.get("error"))
