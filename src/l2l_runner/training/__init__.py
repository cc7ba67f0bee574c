"""The outer loops, each a resumable run: see `base.Run`."""

from typing import Any

from l2l_runner.schema import TrainConfig
from l2l_runner.training.base import Run
from l2l_runner.training.hand_designed import HandDesignedRun
from l2l_runner.training.meta_training import MetaTraining
from l2l_runner.training.online import OnlineTraining
from l2l_runner.training.reweighting import Reweighting

RUNS: dict[str, type[Run[Any]]] = {"online": OnlineTraining, "reweight": Reweighting}
"""Kinds of runs by the `meta` that they belong to; all other estimators belong to `MetaTraining`."""


def run_type(config: TrainConfig) -> type[Run[Any]]:
    """Return the kind of run that a configuration asks for."""
    if config.meta.many_problems and not config.optimizer.learns:
        return HandDesignedRun
    return RUNS.get(config.meta.name, MetaTraining)
