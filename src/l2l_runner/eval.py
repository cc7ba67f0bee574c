"""python -m l2l_runner.eval: compare a trained optimizer with tuned baselines on held-out problems."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from l2l_runner.errors import ConfigError
from l2l_runner.launch.hydra import launch, overrides_of, quoted, unquoted, with_first

if TYPE_CHECKING:
    from l2l_runner.optimizers import LearnedRule
    from l2l_runner.schema import EvalConfig

log = logging.getLogger(__name__)


def evaluate(composed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare as a composed configuration describes, in `folder`; return the result, with its score."""
    from l2l_runner import schema
    from l2l_runner.runs import checkpoint

    content = checkpoint.load(_source("checkpoint", str(composed["checkpoint"])))
    return run(schema.parse_eval({"optimizee": content["config"]["optimizee"], **composed}), folder)


def run(config: EvalConfig, path: Path) -> dict[str, Any]:
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
    """What a checkpoint holds, for a comparison.

    Attributes:
        name: of the rule.
        rule: for the problems of the comparison, where it is computed.
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
    """Load the optimizer that a checkpoint holds, which has not met the tasks that it is to be tested on."""
    from l2l_runner.runs import checkpoint

    source, runtime = _source(key, given), config.runtime()
    content = checkpoint.load(source)
    trained, meta_steps = content["config"], content["progress"]["step"]
    rule = checkpoint.restore_rule(content, source)  # first, as it says what is wrong with a configuration
    config.optimizee.refuse_training_tasks(checkpoint.trained_optimizee(content))
    rule = rule.to(runtime.device, runtime.dtype).fitted(config.optimizee.layout())
    rule.use_kernel(config.kernel)
    origin = f"{source}, trained on {trained['optimizee']['name']} for {meta_steps} meta-steps"
    return Trained(trained["optimizer"]["name"], rule, int(trained["seed"]), int(trained["unroll"]["steps"]), origin)


def with_trained_optimizee(arguments: list[str]) -> list[str]:
    """`optimizee.key=value` without `optimizee=…` changes the optimizee that the checkpoint was trained on."""
    given = overrides_of(arguments)
    if "optimizee" in given or "checkpoint" not in given or not any(key.startswith("optimizee.") for key in given):
        return arguments
    from l2l_runner.runs import checkpoint  # heavy, and --help has no use for it

    trained = checkpoint.load(_source("checkpoint", unquoted(given["checkpoint"])))["config"]["optimizee"]
    return with_first([f"+optimizee={_override(trained)}"], arguments)


def _source(key: str, given: str) -> Path:
    if not given:
        raise ConfigError(f"{key} is empty: give a best.pt, or the folder of its run, as {key}=PATH.")
    return Path(given).expanduser()


def _override(value: Any) -> str:
    """A plain value in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_override(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) else repr(value)


def main() -> None:
    """The console script l2l-eval."""
    launch("eval", evaluate, with_trained_optimizee)


if __name__ == "__main__":
    main()
