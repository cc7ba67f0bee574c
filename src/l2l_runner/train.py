"""python -m l2l_runner.train: meta-train an optimizer, or run a hand-designed one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2l_runner.launch.hydra import Command, launch
from l2l_runner.launch.overrides import resume_run

if TYPE_CHECKING:
    from l2l_runner.schema import TrainConfig


def parse(composed: dict[str, Any], given: Collection[str]) -> TrainConfig:
    """Check a composed configuration, with the keys that the user gave, and return it typed."""
    from l2l_runner.schema import parse_train

    return parse_train(composed, given)


def train(config: TrainConfig, path: Path) -> dict[str, Any]:
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


def main() -> None:
    """Run the console script l2l-train."""
    launch(Command("train", parse, train, resume_run))


if __name__ == "__main__":
    main()
