"""The paper's numbers, and the claims that a reproduction is checked against.

The paper prints no table; its numbers were read off its figures, to about ±5 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from l2l_runner.pages.reproduction.results import Results
from l2l_runner.pages.reproduction.settings import Budget
from l2l_runner.pages.reproduction.stages import grid
from l2l_runner.plots.style import label_of


@dataclass(frozen=True)
class Row:
    """Mean losses of the paper, on one problem at one step.

    Attributes:
        figure: of the paper.
        what: the problem.
        stage: the stage that compares on the same problem.
        step: the step at which the losses are read.
        losses: by optimizer.
    """

    figure: str
    what: str
    stage: str
    step: int
    losses: Mapping[str, float]


SHOWN = ("lstm", "nag", "adam", "rms", "sgd")


def _row(figure: str, what: str, stage: str, step: int, *losses: float) -> Row:
    return Row(figure, what, stage, step, dict(zip(SHOWN, losses, strict=True)))


NUMBERS = [
    _row("4", "quadratics, uniform", "quadratic-uniform", 20, 0.153, 0.205, 2.1, 0.65, 0.45),
    _row("4", "quadratics, uniform", "quadratic-uniform", 98, 0.041, 0.082, 0.052, 0.061, 0.22),
    _row("4", "MNIST", "mnist", 20, 0.46, 1.41, 1.5, 1.7, 1.95),
    _row("4", "MNIST", "mnist", 98, 0.255, 0.324, 0.357, 0.357, 0.464),
    _row("4", "MNIST, 200 steps", "mnist-200", 197, 0.211, 0.261, 0.300, 0.291, 0.331),
    _row("5", "MNIST, 40 units", "mnist-40-units", 97, 0.197, 0.312, 0.334, 0.327, 0.452),
    _row("5", "MNIST, 2 layers", "mnist-2-layers", 97, 0.336, 0.79, 0.72, 0.76, 1.80),
    _row("5", "MNIST, ReLU", "mnist-relu", 97, 2.6, 0.37, 0.37, 0.41, 0.45),
]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds here, with the results that decide it.

    Attributes:
        holds: None where what was run cannot decide it.
        obtained: the results, as text.
    """

    holds: bool | None
    obtained: str


Check = Callable[[Results], Verdict | None]


@dataclass(frozen=True)
class Claim:
    """A claim, of the paper or of this project.

    Attributes:
        key: its name in reports.
        figure: the figure that it belongs to.
        text: what is claimed.
        check: returns the verdict; None where what it needs was not run.
    """

    key: str
    figure: str
    text: str
    check: Check


def claims(budget: Budget) -> list[Claim]:
    """Return all claims."""
    cells = grid(budget)
    return [
        Claim("quadratic-best", "4", f"Quadratics, uniform: {_BELOW_ALL}", _below_all("quadratic-uniform")),
        Claim("quadratic-loss", "4", "Quadratics, uniform: final loss ≤ .035", _at_most("quadratic-uniform", 0.035)),
        Claim(
            "quadratic-ratio",
            "4",
            "Quadratics, uniform: final loss ≤ .45 × the best tuned baseline's",
            _ratio("quadratic-uniform", 0.45),
        ),
        Claim("gaussian-best", "4", f"Quadratics, gaussian: {_BELOW_ALL}", _below_all("quadratic-gaussian")),
        Claim(
            "gaussian-sum",
            "4",
            "Quadratics, gaussian: sum of 100 losses ≤ 66",
            _at_most("quadratic-gaussian", 66, what="sum"),
        ),
        Claim("mnist-best", "4", f"MNIST, 100 steps: {_BELOW_ALL}", _below_all("mnist")),
        Claim("mnist-loss", "4", "MNIST: loss at step 100 ≤ .255", _at_most("mnist", 0.255)),
        Claim("mnist-200-best", "4", f"MNIST, 200 steps: {_BELOW_ALL}", _below_all("mnist-200")),
        Claim("mnist-200-loss", "4", "MNIST: loss at step 200 ≤ .211", _at_most("mnist-200", 0.211, 200)),
        Claim("40-units-best", "5", f"40 units: {_BELOW_ALL}", _below_all("mnist-40-units")),
        Claim("40-units-loss", "5", "40 units: loss at step 100 ≤ .197", _at_most("mnist-40-units", 0.197)),
        Claim("2-layers-best", "5", f"2 layers: {_BELOW_ALL}", _below_all("mnist-2-layers")),
        Claim("2-layers-loss", "5", "2 layers: loss at step 100 ≤ .336", _at_most("mnist-2-layers", 0.336)),
        Claim("relu-fails", "5", "ReLU: the LSTM fails, it ends above every tuned baseline", _above_all("mnist-relu")),
        Claim(
            "grid",
            "6",
            "In most architectures the LSTM ends below the best tuned baseline",
            _most(list(cells.values())),
        ),
        Claim("cifar-horizon", "7", f"CIFAR-10: {_HORIZON}", _whole_horizon("cifar-10")),
        Claim("cifar-5-best", "7", f"CIFAR-5: {_BELOW_ALL}", _below_all("cifar-5")),
        Claim("cifar-2-best", "7", f"CIFAR-2: {_BELOW_ALL}", _below_all("cifar-2")),
        Claim("art-horizon", "8", f"Neural art, 64×64, the training style: {_HORIZON}", _whole_horizon("art-test")),
        Claim("art-128-horizon", "8", f"Neural art, 128×128, a new style: {_HORIZON}", _whole_horizon("art-128")),
        Claim(
            "robust-relu",
            "long",
            "ReLU: RNNprop's loss at step 100 ≤ .37",
            _at_most("long-relu", 0.37, optimizer="rnnprop"),
        ),
        Claim("robust-stable", "long", "RNNprop: no problem diverges over the long horizon", _none_diverge("long")),
        Claim(
            "robust-adam",
            "long",
            "RNNprop: the loss at the end of the long horizon is no higher than tuned Adam's",
            _no_worse("long", "adam"),
        ),
    ]


_BELOW_ALL = "the learned optimizer ends below every tuned baseline"
_HORIZON = "the learned optimizer is below every tuned baseline at every step"


def _at_most(stage: str, bound: float, steps: int = 100, optimizer: str = "lstm", what: str = "final") -> Check:
    """Check that the `final` loss or the `sum` of losses is at most a bound, which is one for so many steps."""

    def check(results: Results) -> Verdict | None:
        comparison = results.comparison(stage)
        if comparison is None or optimizer not in comparison.optimizers:
            return None
        entry, ran = comparison.optimizers[optimizer], comparison.steps
        value = entry.final if what == "final" else entry.sum
        holds = None if ran != steps else value.mean <= bound
        return Verdict(holds, value.shown() + (f", after {ran} steps" if ran != steps else ""))

    return check


def _ratio(stage: str, bound: float) -> Check:
    """Check that the final loss is at most `bound` times that of the best baseline."""

    def check(results: Results) -> Verdict | None:
        mine = results.final(stage, "lstm")
        if mine is None or not results.baselines(stage):
            return None
        best = results.best_baseline(stage)
        theirs = results.optimizers(stage)[best].final
        ratio = mine.mean / theirs.mean
        return Verdict(ratio <= bound, f"{ratio:.2f} × {label_of(best)}'s {theirs.shown()}")

    return check


def _below_all(stage: str) -> Check:
    """Check that the learned optimizer ends below every baseline, with 95 % confidence in each difference."""

    def check(results: Results) -> Verdict | None:
        if not results.baselines(stage):
            return None
        mine = results.optimizers(stage)[results.learned(stage)[0]].final
        gaps = {baseline: results.advantage(stage, baseline) for baseline in results.baselines(stage)}
        # A loss that diverged counts as above all others.
        holds = math.isfinite(mine.mean) and all(
            not math.isfinite(results.optimizers(stage)[baseline].final.mean) or gap.mean > gap.ci95
            for baseline, gap in gaps.items()
        )
        best = results.best_baseline(stage)
        return Verdict(holds, f"{mine.shown()}; {label_of(best)}, the best baseline, is higher by {gaps[best].shown()}")

    return check


def _above_all(stage: str) -> Check:
    """Check that the LSTM ends above every baseline."""

    def check(results: Results) -> Verdict | None:
        mine = results.final(stage, "lstm")
        if mine is None or not results.baselines(stage):
            return None
        finals = {name: results.optimizers(stage)[name].final for name in results.baselines(stage)}
        holds = not math.isfinite(mine.mean) or all(mine.mean > final.mean for final in finals.values())
        best = results.best_baseline(stage)
        return Verdict(holds, f"{mine.shown()}; {label_of(best)} {finals[best].shown()}")

    return check


def _most(stages: list[str]) -> Check:
    """Check that the LSTM ends below the best baseline in more than half of the stages."""

    def check(results: Results) -> Verdict | None:
        done = [stage for stage in stages if results.final(stage, "lstm") and results.baselines(stage)]
        if not done or len(done) < len(stages):
            return None
        below = sum(results.advantage(stage, results.best_baseline(stage)).mean > 0 for stage in done)
        return Verdict(2 * below > len(done), f"{below} of {len(done)}")

    return check


def _whole_horizon(stage: str) -> Check:
    """Check that the learned optimizer is below every baseline at every step."""

    def check(results: Results) -> Verdict | None:
        optimizers = results.optimizers(stage)
        if not results.baselines(stage):
            return None
        mine = optimizers[results.learned(stage)[0]].curve
        theirs = [optimizers[name].curve for name in results.baselines(stage)]
        steps = range(1, len(mine))
        # A loss that diverged counts as above all others.
        below = [s for s in steps if math.isfinite(mine[s]) and all(not curve[s] <= mine[s] for curve in theirs)]
        since = next((s for s in steps if len([b for b in below if b >= s]) == len(mine) - s), None)
        end = f", at all from step {since} on" if since is not None else ""
        return Verdict(len(below) == len(steps), f"below all at {len(below)} of {len(steps)} steps{end}")

    return check


def _none_diverge(stage: str) -> Check:
    """Check that the learned optimizer diverges on no problem."""

    def check(results: Results) -> Verdict | None:
        comparison = results.comparison(stage)
        if comparison is None:
            return None
        diverged = comparison.optimizers[results.learned(stage)[0]].diverged
        return Verdict(diverged == 0, f"{diverged} of {comparison.problems} in {comparison.steps} steps")

    return check


def _no_worse(stage: str, baseline: str) -> Check:
    """Check that the final loss is no higher than that of a baseline."""

    def check(results: Results) -> Verdict | None:
        if baseline not in results.optimizers(stage):
            return None
        mine = results.optimizers(stage)[results.learned(stage)[0]].final
        theirs, gap = results.optimizers(stage)[baseline].final, results.advantage(stage, baseline)
        holds = math.isfinite(mine.mean) and not mine.mean > theirs.mean
        text = f"{mine.shown()}; {label_of(baseline)} {theirs.shown()}, which is higher by {gap.shown()}"
        return Verdict(holds, text)

    return check
