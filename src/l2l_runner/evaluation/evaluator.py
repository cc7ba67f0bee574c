"""Fair comparison: the same held-out problems for all optimizers, and baselines at their best learning rates."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tqdm import tqdm

from l2l_runner import distributed
from l2l_runner.evaluation.comparison import Comparison
from l2l_runner.evaluation.curves import PICTURED, Curves, run
from l2l_runner.optimizees import Optimizee
from l2l_runner.optimizers import HandDesigned, Optimizer
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Evaluation, Tuning
from l2l_runner.stopping import raise_if_stopped

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Runs optimizers on the validation problems and on the held-out problems of one optimizee.

    Attributes:
        optimizee: the distribution over problems.
        seed: of the problems.
        steps: of a trajectory.
        score: what selections minimise: the `final` loss or the `sum` of losses.
        settings: baselines, how they are tuned, and the size of the comparison.
        runtime: where to compute.
    """

    optimizee: Optimizee
    seed: int
    steps: int
    score: str
    settings: Evaluation
    runtime: Runtime

    def validate(
        self, optimizer: Optimizer, steps: int | None = None, on_step: Callable[[], object] | None = None
    ) -> Curves:
        """Return the curves of an optimizer on the validation problems.

        Args:
            optimizer: the rule.
            steps: of a trajectory, if not all.
            on_step: called after each step.
        """
        seeds = self.optimizee.seeds(self.seed, "validation", 0, self.optimizee.validation_problems)
        return run(optimizer, self.optimizee, seeds, steps or self.steps, self.runtime, self.settings.chunk, on_step)

    def tuned(self) -> dict[str, HandDesigned]:
        """Return the baselines at their best learning rates on the validation problems.

        A baseline that diverges at every rate keeps the rate of its lowest score and is shown as diverged.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        tuning = self.settings.tune
        problems = tuning.problems or self.optimizee.validation_problems
        seeds = self.optimizee.seeds(self.seed, "validation", 0, problems)
        best: dict[str, HandDesigned] = {}
        with tqdm(desc="tuning baselines", unit="run", leave=False, disable=distributed.bar_disabled()) as bar:
            for name, baseline in self.settings.baselines.items():

                def score_of(candidate: HandDesigned, name: str = name) -> float:
                    bar.set_postfix_str(f"{name} lr={candidate.lr:.3g}")
                    bar.update()
                    curves = run(
                        candidate,
                        self.optimizee,
                        seeds,
                        self.steps,
                        self.runtime,
                        self.settings.chunk,
                        raise_if_stopped,
                    )
                    return curves.score(self.score)

                best[name], tried = tune(baseline, score_of, tuning)
                if tried and not math.isfinite(dict(tried)[best[name].lr]):
                    log.warning("%s diverges at every learning rate that was tried.", name)
                if tried and best[name].lr in (tried[0][0], tried[-1][0]):
                    log.warning(
                        "The best learning rate of %s, %.3g, is at the end of the range that was tried: widen "
                        "%stune.low or %stune.high.",
                        *(name, best[name].lr, self.settings.prefix, self.settings.prefix),
                    )
        return best

    def compare(self, optimizers: Mapping[str, Optimizer]) -> Comparison:
        """Run all optimizers on the same held-out problems; the first is the reference.

        Raises:
            KeyboardInterrupt: a stop was requested.
        """
        steps, chunk = self.settings.steps or self.steps, self.settings.chunk
        problems = self.settings.problems or self.optimizee.test_problems
        seeds = self.optimizee.seeds(self.seed, "test", 0, problems)
        curves: dict[str, Curves] = {}
        own = len(seeds[distributed.shard(problems)])
        total = len(optimizers) * steps * math.ceil(own / max(1, chunk // self.optimizee.layout().size))
        with tqdm(total=total, desc="comparing", unit="step", leave=False, disable=distributed.bar_disabled()) as bar:
            for name, optimizer in optimizers.items():
                bar.set_postfix_str(name)

                def on_step() -> None:
                    bar.update()
                    raise_if_stopped()

                curves[name] = run(optimizer, self.optimizee, seeds, steps, self.runtime, chunk, on_step)
        rates = {name: optimizer.lr for name, optimizer in optimizers.items()}
        pictured = any(one.pictures is not None for one in curves.values())
        sources = self.optimizee.sample(seeds[:PICTURED], self.runtime).sources() if pictured else {}
        shown = {name: picture.cpu() for name, picture in sources.items()}
        return Comparison(self.optimizee.name, curves, rates, shown, self.optimizee.gain)


def tune(
    baseline: HandDesigned, score: Callable[[HandDesigned], float], tuning: Tuning
) -> tuple[HandDesigned, list[tuple[float, float]]]:
    """Return the baseline at its best learning rate, and the (rate, score) pairs tried, in order of rate.

    A logarithmic grid over [low, high] is tried first, then, `refinements` times, the two rates half-way to the
    neighbours of the best. A rate that diverges scores infinity.
    """
    if not tuning.enabled:
        return baseline, []
    ratio = 10 ** (1 / tuning.per_decade)
    count = math.floor(math.log(tuning.high / tuning.low, ratio) + 1e-9)
    scores: dict[float, float] = {}

    def attempt(lr: float) -> None:
        scores[lr] = score(replace(baseline, lr=lr))

    for power in range(count + 1):
        attempt(tuning.low * ratio**power)
    for _ in range(tuning.refinements):
        ratio = math.sqrt(ratio)
        best = min(scores, key=lambda lr: scores[lr])
        attempt(best / ratio)
        attempt(best * ratio)
    return replace(baseline, lr=min(scores, key=lambda lr: scores[lr])), sorted(scores.items())
