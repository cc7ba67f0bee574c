"""python -m l2l_runner.train: meta-train an optimizer, or run a hand-designed one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from l2l_runner.launch.hydra import conf_folder, launch, overrides_of, resumed, with_first


def train(composed: dict[str, Any], path: Path) -> dict[str, Any]:
    """Train what a composed configuration describes, in the folder `path`; the result, with its score."""
    from dataclasses import asdict
    from functools import partial

    from l2l_runner import distributed, schema
    from l2l_runner.optimizers import HandDesigned
    from l2l_runner.runs.folder import RunFolder
    from l2l_runner.runs.tracking import tracked
    from l2l_runner.runtime import machine_settings, runtime_of
    from l2l_runner.training import meta_training as trainer
    from l2l_runner.training.online import OnlineTraining
    from l2l_runner.training.reweighting import Reweighting

    config = schema.parse_train(composed)
    config.check_processes(distributed.world_size())
    if distributed.is_first():  # the others weren't given anything
        schema.check_given(config, overrides_of(HydraConfig.get().overrides.task))
    runtime = runtime_of(config.device.name, config.device.dtype, config.data.root, config.data.download)
    distributed.use_device(runtime.device)
    folder = RunFolder(path)
    with machine_settings(config.device.threads), distributed.resume_hint(folder.how_to_resume):
        job: Callable[[], Any]
        if isinstance(config.meta, schema.Reweight):
            job = Reweighting(config, composed, folder, runtime).train
        elif isinstance(config.optimizer, HandDesigned):
            folder.truncate(0)
            name = str(composed["optimizer"]["name"])
            job = partial(trainer.run_hand_designed, config, config.optimizer, name, folder, runtime)
        else:
            kind = OnlineTraining if isinstance(config.meta, schema.Online) else trainer.MetaTraining
            job = kind(config, composed, folder, runtime).train
        if distributed.is_first():
            folder.accept()
        logger = config.logger if distributed.is_first() else schema.Logger(name="none")
        with tracked(folder, logger, composed) as tracker:
            outcome = job()
            result = outcome if isinstance(outcome, dict) else asdict(outcome)
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
