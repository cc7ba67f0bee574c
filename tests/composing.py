"""Command lines that are composed and parsed without a run: what most tests of settings and refusals need."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from l2l_runner import eval as eval_module
from l2l_runner.errors import UserError
from l2l_runner.launch.hydra import explain
from l2l_runner.launch.overrides import (
    allow_new_keys,
    check_choices,
    choices,
    conf_folder,
    keep_trained_optimizee,
    overrides_of,
    quote_paths,
)
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import LearnedRule
from l2l_runner.schema import EvalConfig, TrainConfig, parse_train
from l2l_runner.training.base import new_rule


@cache
def _composed(command: str, arguments: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose(command, list(arguments))


def _chooses(key: str) -> bool:
    return bool(choices(key.split("@")[0]))


def composed(*arguments: str, command: str = "train") -> dict[str, Any]:
    """Compose a command line as the command does.

    Hydra takes a tenth of a second, so choices of groups are composed once, and plain `key=value` are set afterwards,
    as Hydra itself does it.
    """
    arguments = tuple(allow_new_keys(quote_paths(arguments)))
    check_choices(arguments)
    plain = [item for item in arguments if item[0] not in "+~" and "=" in item and not _chooses(item.split("=")[0])]
    try:
        config = copy.deepcopy(_composed(command, tuple(item for item in arguments if item not in plain)))
        for override in OverridesParser.create().parse_overrides(plain):
            OmegaConf.update(config, override.key_or_group, override.value())
    except (HydraException, OmegaConfBaseException):
        config = _composed(command, arguments)  # refuses it in the words that a user would read
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def parsed(*arguments: str) -> TrainConfig:
    """Return the configuration that `train` would run."""
    return parse_train(composed(*arguments), overrides_of(arguments).keys())


def built(*arguments: str) -> tuple[LearnedRule, Problem]:
    """Return what a meta-training on the CPU would begin with: a new rule, and a problem."""
    config = parsed(*arguments, "device=cpu")
    runtime = config.runtime()
    rule = new_rule(config, runtime)
    return rule, rule.adapt(config.optimizee.sample(config.optimizee.seeds(config.seed, "train", 0, 1), runtime))


def parsed_eval(*arguments: str) -> EvalConfig:
    """Return the configuration that `eval` would run."""
    rewritten = keep_trained_optimizee(arguments)
    return eval_module.parse(composed(*rewritten, command="eval"), overrides_of(rewritten).keys())


def refusal(arguments: Sequence[str], parse: Any = parsed) -> str:
    """Return the sentence by which a command line is refused before its run starts."""
    try:
        parse(*arguments)
    except UserError as error:
        return str(error)
    except (HydraException, OmegaConfBaseException) as error:
        return explain(error)
    raise AssertionError(f"{' '.join(arguments)} is accepted")
