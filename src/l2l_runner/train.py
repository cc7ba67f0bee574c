"""python -m l2l_runner.train: meta-train an optimizer, or run a hand-designed one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig

from l2l_runner.launch.hydra import conf_folder, launch, overrides_of, resumed, with_first

if TYPE_CHECKING:
    from l2l_runner.schema import TrainConfig


def train(composed: dict[str, Any], path: Path) -> dict[str, Any]:
    """Train what a composed configuration describes, in the folder `path`; return the result, with its score."""
    from l2l_runner.schema import parse_train

    return run(parse_train(composed, overrides_of(HydraConfig.get().overrides.task)), path)


def run(config: TrainConfig, path: Path) -> dict[str, Any]:
    """Train in the folder `path`; return the result, with its score."""
    from l2l_runner import distributed
    from l2l_runner.runs.folder import RunFolder
    from l2l_runner.runs.tracking import tracked
    from l2l_runner.runtime import machine_settings
    from l2l_runner.training import run_type

    config.check_processes(distributed.world_size())
    runtime = config.runtime()
    distributed.use_device(runtime.device)
    folder = RunFolder(path)
    with machine_settings(config.device.threads), distributed.resume_hint(folder.how_to_resume):
        training = run_type(config)(config, folder, runtime)
        if distributed.is_first():
            folder.accept()
        with tracked(folder, config) as tracker:
            result = training.run().to_json()
            tracker.end(result)
    return result


def with_own_experiment(arguments: list[str]) -> list[str]:
    """`optimizee=NAME` alone is `experiment=NAME`, where there is one: such as for an agent in a maze.

    Whoever says what it is to be trained with gets just that.
    """
    given = overrides_of(arguments)
    name = given.get("optimizee", "")
    own = name.isidentifier() and (conf_folder() / "experiment" / f"{name}.yaml").is_file()
    if not own or given.keys() & {"optimizer", "meta", "experiment", "resume"}:
        return arguments
    return with_first([f"experiment={name}"], arguments)


def main() -> None:
    """The console script l2l-train."""
    launch("train", train, lambda arguments: resumed(with_own_experiment(arguments)))


if __name__ == "__main__":
    main()
