"""python -m l2l_runner.eval: compare a trained optimizer with tuned baselines on held-out problems."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from l2l_runner.errors import ConfigError
from l2l_runner.launch.hydra import Command, launch
from l2l_runner.launch.overrides import checkpoint_path, keep_trained_optimizee

if TYPE_CHECKING:
    from l2l_runner.optimizers import LearnedRule
    from l2l_runner.schema import EvalConfig

log = logging.getLogger(__name__)


def parse(composed: dict[str, Any], given: Collection[str]) -> EvalConfig:
    """Check a composed configuration and return it typed; the optimizee defaults to that of the checkpoint."""
    from l2l_runner.runs import checkpoint
    from l2l_runner.schema import parse_eval

    content = checkpoint.load(checkpoint_path("checkpoint", str(composed["checkpoint"])))
    return parse_eval({"optimizee": content["config"]["optimizee"], **composed})


def evaluate(config: EvalConfig, path: Path) -> dict[str, Any]:
    """Compare in the folder `path`; return the result, with its score."""
    from l2l_runner.evaluation import comparison
    from l2l_runner.evaluation.evaluator import Evaluator
    from l2l_runner.runs.folder import RunFolder
    from l2l_runner.runs.results import RunResult
    from l2l_runner.runs.tracking import tracked
    from l2l_runner.runtime import machine_settings
    from l2l_runner.stopping import stop_requests

    first, *others = (_trained(key, given, config) for key, given in config.sources())
    learned = {first.name: first}
    for name, other in zip(config.others, others, strict=True):
        if name in learned or name in config.baselines:
            raise ConfigError(f"others.{name} would be the second {name} of the comparison: give it another name.")
        learned[name] = other
    folder = RunFolder(path)
    evaluator = Evaluator(
        optimizee=config.optimizee,
        seed=first.seed if config.seed is None else config.seed,
        steps=config.steps or first.steps,
        score=config.score,
        settings=config,
        runtime=config.runtime(),
    )
    with machine_settings(config.device.threads), stop_requests(), tracked(folder, config) as tracker:
        log.info("\n".join(one.origin for one in learned.values()))
        rules = {name: one.rule for name, one in learned.items()}
        compared = evaluator.compare({**rules, **evaluator.tuned()})
        log.info(comparison.write(folder, compared))
        curves = compared.curves[first.name]
        final, total = curves.mean(curves.finals), curves.mean(curves.sums)
        score = curves.score(config.score)
        result = RunResult("completed", score, final, total, curves.mean_metrics()).to_json()
        tracker.end(result)
    return result


class Trained(NamedTuple):
    """The optimizer of a checkpoint, ready for a comparison.

    Attributes:
        name: of the rule.
        rule: on the device of the comparison, fitted to its problems.
        seed: of the run.
        steps: of the trajectories that it was trained on.
        origin: where it comes from, in the words of a log.
    """

    name: str
    rule: LearnedRule
    seed: int
    steps: int
    origin: str


def _trained(key: str, given: str, config: EvalConfig) -> Trained:
    """Load the optimizer of a checkpoint, and reject test tasks that it was trained on."""
    from l2l_runner.runs import checkpoint

    source, runtime = checkpoint_path(key, given), config.runtime()
    content = checkpoint.load(source)
    trained, meta_steps = content["config"], content["progress"]["step"]
    rule = checkpoint.restore_rule(content, source)  # first, as it says what is wrong with a configuration
    config.optimizee.refuse_training_tasks(checkpoint.trained_optimizee(content))
    rule = rule.to(runtime.device, runtime.dtype).fitted(config.optimizee.layout())
    rule.use_kernel(config.kernel)
    origin = f"{source}, trained on {trained['optimizee']['name']} for {meta_steps} meta-steps"
    return Trained(trained["optimizer"]["name"], rule, int(trained["seed"]), int(trained["unroll"]["steps"]), origin)


def main() -> None:
    """Run the console script l2l-eval."""
    launch(Command("eval", parse, evaluate, keep_trained_optimizee))


if __name__ == "__main__":
    main()
