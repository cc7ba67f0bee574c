"""Meta-training and comparison from Python, without a configuration, a folder or Hydra.

`python -m l2l_runner.train` does the same with checkpoints, pictures and resuming.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from l2l_runner import streams
from l2l_runner.evaluation.comparison import Comparison
from l2l_runner.evaluation.curves import Curves, run
from l2l_runner.evaluation.evaluator import Evaluator
from l2l_runner.fields import plain
from l2l_runner.meta import TBPTT, MetaGradient, Unroll
from l2l_runner.optimizees import Optimizee
from l2l_runner.optimizers import HandDesigned, LearnedConfig, LearnedRule, Optimizer
from l2l_runner.runs import checkpoint
from l2l_runner.runtime import Runtime
from l2l_runner.schema import Evaluation, Tuning
from l2l_runner.training.meta_step import meta_step

CHUNK = 1 << 18
"""Coordinates computed at once in an evaluation, which bounds memory."""

TUNING = Tuning(enabled=True, problems=None, low=1e-4, high=10.0, per_decade=3, refinements=2)


@dataclass(frozen=True)
class MetaTrained:
    """A meta-trained rule, at its best validation score.

    Attributes:
        rule: the update rule.
        settings: from which it was built.
        optimizee: that it was trained on.
        unroll: lengths of the windows and trajectories that it was trained on.
        seed: of the training.
        scores: (meta-step, validation score) of all validations.
    """

    rule: LearnedRule
    settings: LearnedConfig
    optimizee: Optimizee
    unroll: Unroll
    seed: int
    scores: list[tuple[int, float]]

    def save(self, path: Path | str) -> None:
        """Write a checkpoint, which `LearnedOptimizer` and `python -m l2l_runner.eval checkpoint=` take.

        Raises:
            StorageError: it could not be written.
        """
        config = {
            "seed": self.seed,
            "optimizee": plain(self.optimizee),
            "optimizer": plain(self.settings),
            "unroll": plain(self.unroll),
        }
        parameters = {name: value.detach().cpu() for name, value in self.rule.state_dict().items()}
        progress = {"step": self.scores[-1][0]}
        content = {"config": config, "optimizer": parameters, "meta_optimizer": {}, "progress": progress}
        checkpoint.save(Path(path), content)


def meta_train(
    optimizee: Optimizee,
    settings: LearnedConfig,
    *,
    estimator: MetaGradient | None = None,
    unroll: Unroll | None = None,
    meta_steps: int = 400,
    lr: float = 0.01,
    clip: float | None = 1.0,
    validate_every: int = 25,
    seed: int = 0,
    runtime: Runtime | None = None,
    on_validation: Callable[[int, Curves], object] | None = None,
) -> MetaTrained:
    """Meta-train a rule with Adam and cosine decay; return it at its best score on a fixed validation set.

    Args:
        optimizee: the distribution over problems.
        settings: of the rule.
        estimator: of the meta-gradient; None for truncated BPTT over the windows of `unroll`.
        unroll: lengths of windows and trajectories; None for 20 of 100 steps.
        meta_steps: each trains through the trajectories of `optimizee.batch` new problems.
        lr: the meta-optimizer's learning rate at the start.
        clip: largest norm of a meta-gradient; None for any.
        validate_every: meta-steps between validations.
        seed: of the rule's start and of all problems.
        runtime: where to compute; None for the CPU in single precision.
        on_validation: called with the meta-step and the curves on the validation problems.

    Raises:
        ConfigError: the rule cannot be built for these problems.

    Examples:
        >>> from l2l_runner.meta import Unroll
        >>> from l2l_runner.optimizees import Rosenbrock
        >>> from l2l_runner.optimizers import RNNpropConfig
        >>> sizes = {"batch": 8, "validation_problems": 8, "test_problems": 8}
        >>> rosenbrock = Rosenbrock(name="rosenbrock", dim=2, steepness=100.0, init_scale=1.0, **sizes)
        >>> rnnprop = RNNpropConfig(hidden=4, layers=1, beta1=0.95, beta2=0.95, eps=1e-8, output_scale=0.1)
        >>> trained = meta_train(rosenbrock, rnnprop, meta_steps=2, unroll=Unroll(length=5, steps=10))
        >>> [step for step, score in trained.scores]
        [0, 2]
    """
    runtime, unroll = runtime or Runtime(), unroll or Unroll(length=20, steps=100)
    estimator = estimator or TBPTT(length=unroll.length, steps=unroll.steps)
    rule = settings.build(optimizee.layout(), streams.generator(seed, "optimizer"))
    rule.to(runtime.device, runtime.dtype).use_kernel("auto")
    rule.initialise_from(optimizee.sample(optimizee.seeds(seed, "train", 0, 1), runtime))
    meta_optimizer = torch.optim.Adam(rule.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(meta_optimizer, max(1, meta_steps))
    validation = optimizee.seeds(seed, "validation", 0, optimizee.validation_problems)
    scores: list[tuple[int, float]] = []
    best, state = math.inf, copy.deepcopy(rule.state_dict())
    for step in tqdm(range(meta_steps + 1), desc="meta-training", unit="meta-step", disable=None):
        if step % validate_every == 0 or step == meta_steps:
            curves = run(rule, optimizee, validation, unroll.steps, runtime, CHUNK)
            scores.append((step, curves.score("final")))
            if scores[-1][1] < best:
                best, state = scores[-1][1], copy.deepcopy(rule.state_dict())
            if on_validation is not None:
                on_validation(step, curves)
        if step < meta_steps:
            seeds = optimizee.seeds(seed, "train", step * optimizee.batch, optimizee.batch, runtime.device)
            meta_step(rule, meta_optimizer, estimator, optimizee.sample(seeds, runtime), clip)
            schedule.step()
    rule.load_state_dict(state)
    return MetaTrained(rule, settings, optimizee, unroll, seed, scores)


def compare(
    optimizers: Mapping[str, Optimizer],
    optimizee: Optimizee,
    *,
    baselines: Mapping[str, HandDesigned] | None = None,
    steps: int = 100,
    problems: int | None = None,
    score: str = "final",
    tuning: Tuning = TUNING,
    seed: int = 0,
    runtime: Runtime | None = None,
) -> Comparison:
    """Run optimizers and tuned baselines on the same held-out problems.

    Args:
        optimizers: by name; the first is the reference of the paired differences. Learned rules must be where `runtime`
            computes.
        optimizee: the distribution over problems.
        baselines: hand-designed rules whose learning rates are tuned on validation problems first.
        steps: of a trajectory.
        problems: held-out problems; None for `optimizee.test_problems`.
        score: what tuning minimises: the `final` loss or the `sum` of losses.
        tuning: how rates are found.
        seed: of the problems.
        runtime: where to compute; None for the CPU in single precision.

    Returns:
        The curves of all; `evaluation.comparison.table(comparison.summary())` is the table that `eval` prints.

    Examples:
        >>> from l2l_runner.optimizees import Quadratic
        >>> from l2l_runner.optimizers import SGD
        >>> sizes = {"batch": 8, "validation_problems": 8, "test_problems": 8}
        >>> quadratic = Quadratic(name="quadratic", distribution="uniform", dim=2, init_scale=0.0, **sizes)
        >>> rates = {f"lr {lr}": SGD(lr=lr, weight_decay=0.0) for lr in (0.1, 0.01)}
        >>> summary = compare(rates, quadratic, steps=20).summary()
        >>> summary.optimizers["lr 0.1"].final.mean < summary.optimizers["lr 0.01"].final.mean
        True
    """
    evaluator = Evaluator(
        optimizee=optimizee,
        seed=seed,
        steps=steps,
        score=score,
        settings=Evaluation(baselines=dict(baselines or {}), steps=steps, problems=problems, tune=tuning, chunk=CHUNK),
        runtime=runtime or Runtime(),
    )
    return evaluator.compare({**optimizers, **evaluator.tuned()})
