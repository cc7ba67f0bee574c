"""python -m l2l_runner.eval: compare a trained optimizer with tuned baselines on held-out problems."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l_runner.errors import ConfigError
from l2l_runner.launch.hydra import launch, overrides_of, quoted, unquoted, with_first

if TYPE_CHECKING:
    from l2l_runner.optimizees import Optimizee
    from l2l_runner.optimizers import LearnedRule

log = logging.getLogger(__name__)


def evaluate(composed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compare as a composed configuration describes, in `folder`; the result, with its score."""
    from l2l_runner import schema
    from l2l_runner.evaluation.comparison import compare, tuned_baselines, write_comparison
    from l2l_runner.runs import checkpoint
    from l2l_runner.runs.folder import RunFolder
    from l2l_runner.runs.tracking import tracked
    from l2l_runner.runtime import machine_settings, runtime_of
    from l2l_runner.stopping import stop_requests

    source = _source("checkpoint", str(composed["checkpoint"]))
    content = checkpoint.load(source)
    trained = content["config"]
    evaluation_keys = ("baselines", "steps", "problems", "tune", "chunk")
    node = {key: value for key, value in composed.items() if key not in evaluation_keys}
    node["evaluation"] = {key: composed[key] for key in evaluation_keys if key in composed}
    node.setdefault("optimizee", trained["optimizee"])
    config = schema.parse_eval(node)
    name = str(trained["optimizer"]["name"])
    learned = {name: _learned(source, content, config.optimizee)}
    origins = [_origin(source, content)]
    for other, path in config.others.items():
        if other in learned or other in config.evaluation.baselines:
            raise ConfigError(f"others.{other} would be the second {other} of the comparison: give it another name.")
        source = _source(f"others.{other}", path)
        content = checkpoint.load(source)
        learned[other] = _learned(source, content, config.optimizee)
        origins.append(_origin(source, content))
    runtime = runtime_of(config.device.name, config.device.dtype, config.data.root, config.data.download)
    layout = config.optimizee.layout()
    learned = {name: optimizer.to(runtime.device, runtime.dtype).fitted(layout) for name, optimizer in learned.items()}
    for optimizer in learned.values():
        optimizer.use_kernel(config.kernel)
    seed = int(trained["seed"]) if config.seed is None else config.seed
    steps = config.evaluation.steps or int(trained["unroll"]["steps"])
    problems = config.evaluation.problems or config.optimizee.test_problems
    run = RunFolder(folder)
    with (
        machine_settings(config.device.threads),
        stop_requests(),
        tracked(run, config.logger, node) as tracker,
    ):
        log.info("\n".join(origins))
        baselines = tuned_baselines(config.evaluation, config.optimizee, seed, steps, config.score, runtime)
        comparison = compare(
            learned, baselines, config.optimizee, seed, problems, steps, runtime, config.evaluation.chunk
        )
        log.info(write_comparison(run, comparison))
        curves = comparison.curves[name]
        result = {
            "status": "completed",
            "score": curves.score(config.score),
            "final": curves.mean(curves.finals),
            "sum": curves.mean(curves.sums),
            "metrics": curves.mean_metrics(),
        }
        tracker.end(result)
    return result


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


def _learned(source: Path, content: Mapping[str, Any], optimizee: Optimizee) -> LearnedRule:
    """The optimizer that a checkpoint holds, which has not met the tasks that it is to be tested on."""
    from l2l_runner import schema
    from l2l_runner.runs import checkpoint

    learned = checkpoint.restore_optimizer(content, source)  # first, as it says what is wrong with a configuration
    optimizee.refuse_training_tasks(schema.parse_optimizee(content["config"]["optimizee"]))
    return learned


def _origin(source: Path, content: Mapping[str, Any]) -> str:
    name, meta_steps = content["config"]["optimizee"]["name"], content["progress"]["step"]
    return f"{source}, trained on {name} for {meta_steps} meta-steps"


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
