"""Checkpoints: the whole state of a run, written atomically, read without executing anything.

A checkpoint is a dictionary of plain values and tensors: `format`, the `config` that made it, the `optimizer`'s
parameters, and, for resuming, the `meta_optimizer`'s state and the `progress` of the run.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from l2l_runner import streams
from l2l_runner.errors import CheckpointError, ConfigError, reason
from l2l_runner.fields import did_you_mean, parse_one_of, plain
from l2l_runner.files import write_atomically
from l2l_runner.optimizees import OPTIMIZEES, Optimizee
from l2l_runner.optimizers import LEARNED, LearnedConfig, LearnedRule
from l2l_runner.schema import TrainConfig
from l2l_runner.tensors import TensorFileError, UnsafeFileError, is_plain, plain_defaults, read_tensors
from l2l_runner.weights import pretrained

P = TypeVar("P")

FORMAT = 1
PACKED = ("seed", "meta_batch", "score", "optimizee", "optimizer", "unroll", "meta")
"""Groups of the configuration that a packed checkpoint keeps."""

_KEYS = {"format", "config", "optimizer", "meta_optimizer", "progress"}


def run_state(
    config: TrainConfig, progress: Any, optimizer: nn.Module | None = None, meta_optimizer: Any = None
) -> dict[str, Any]:
    """Return what every run's checkpoint holds.

    Args:
        config: the configuration.
        progress: a dataclass of plain values.
        optimizer: what is meta-learned; None where nothing is.
        meta_optimizer: the torch.optim.Optimizer that learns it; None where nothing is meta-learned.
    """
    parameters = {} if optimizer is None else optimizer.state_dict()
    return {
        "config": plain(config),
        "optimizer": {key: value.detach().cpu() for key, value in parameters.items()},
        "meta_optimizer": {} if meta_optimizer is None else meta_optimizer.state_dict(),
        "progress": asdict(progress),
    }


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        StorageError: as `write_atomically`.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **content}, buffer)
    write_atomically(path, buffer.getvalue())


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in the file is executed.

    Args:
        path: of a checkpoint, of the folder of its run, or the name of a pretrained one.

    Raises:
        CheckpointError: the file is missing, damaged, or something else than a checkpoint of this program.
    """
    is_run = path.is_dir() and ((path / "checkpoints").is_dir() or (path / "best.pt").is_file())
    if str(path) in pretrained() and not (path.is_file() or is_run):
        path = pretrained()[str(path)].path
    if path.is_dir():
        path = path / "checkpoints" / "best.pt" if (path / "checkpoints").is_dir() else path / "best.pt"
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}: give the path of a best.pt, of the run folder that holds it, or the name "
            f"of a pretrained optimizer ({', '.join(pretrained())}).{did_you_mean(str(path), list(pretrained()))}"
        )
    try:
        content = read_tensors(path)
    except UnsafeFileError as error:
        raise CheckpointError(
            f"{path} holds something else than tensors and plain values, and was not read, because reading it could "
            "run code: give a checkpoint that l2l_runner wrote."
        ) from error
    except TensorFileError as error:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint at all (expected a file that l2l_runner wrote, whole): "
            "take another copy of it, or best.pt or last.pt of the same run."
        ) from error
    if not isinstance(content, dict) or not content.keys() >= _KEYS:
        raise CheckpointError(
            f"{path} is no checkpoint of l2l_runner: expected the entries {', '.join(sorted(_KEYS))}."
        )
    if content["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {content['format']}; expected {FORMAT}: read it with the version of "
            "l2l_runner that wrote it."
        )
    odd = next((words for words, holds in _CONTENT.items() if not holds(content)), None)
    if odd is not None:
        raise CheckpointError(f"{path} is no checkpoint of l2l_runner: expected {odd}.")
    return content


_CONTENT: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "groups of keys in its entries": lambda content: all(isinstance(content[key], dict) for key in _KEYS - {"format"}),
    "an optimizee, an optimizer and an unroll in its config": lambda content: all(
        isinstance(content["config"].get(key), dict) for key in ("optimizee", "optimizer", "unroll")
    ),
    "a seed and unroll.steps in its config": lambda content: all(
        type(value) is int for value in (content["config"].get("seed"), content["config"]["unroll"].get("steps"))
    ),
    "the number of steps done in its progress": lambda content: type(content["progress"].get("step")) is int,
    "dense floating-point tensors as the optimizer's parameters": lambda content: all(
        map(is_plain, content["optimizer"].values())
    ),
}
"""What a checkpoint must hold for others to rely on, in words and as a test of its content."""


def pack(source: Path, target: Path) -> None:
    """Write a checkpoint of what was learned alone: no paths, nothing that only resuming needs."""
    content = load(source)
    config = {key: content["config"][key] for key in PACKED}
    progress = {"step": content["progress"]["step"]}
    save(target, {"config": config, "optimizer": content["optimizer"], "meta_optimizer": {}, "progress": progress})


@plain_defaults()
def build_rule(settings: LearnedConfig, optimizee: Optimizee, seed: int) -> LearnedRule:
    """Return a new learned rule for an optimizee's problems, initialised from (seed, "optimizer")."""
    return settings.build(optimizee.layout(), streams.generator(seed, "optimizer"))


def trained_optimizee(content: Mapping[str, Any]) -> Optimizee:
    """Return the optimizee that a checkpoint's optimizer was trained on.

    Raises:
        ConfigError: this version has no such optimizee.
    """
    return parse_one_of(OPTIMIZEES, content["config"]["optimizee"], "optimizee")


@plain_defaults()
def restore_rule(content: Mapping[str, Any], path: Path) -> LearnedRule:
    """Return the learned rule that a checkpoint holds, built from the configuration inside it.

    Raises:
        CheckpointError: the parameters are not those of that configuration.
    """
    try:
        settings = parse_one_of(LEARNED, content["config"]["optimizer"], "optimizer")
        rule = build_rule(settings, trained_optimizee(content), 0)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"This version cannot build the optimizer of the configuration in {path}: {error}"
        ) from error
    load_parameters(rule, content["optimizer"], path)
    return rule


def load_parameters(optimizer: LearnedRule, parameters: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's parameters into an optimizer of the same architecture.

    Raises:
        CheckpointError: names or shapes differ.
    """
    expected = {name: tuple(value.shape) for name, value in optimizer.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in parameters.items()}
    if expected != found:
        odd = next(n for n in [*expected, *found] if expected.get(n) != found.get(n))
        raise CheckpointError(
            f"{path} holds an optimizer of another architecture: its {odd} is {found.get(odd, 'absent')}, expected "
            f"{expected.get(odd, 'none')}: use the optimizer settings that it was trained with."
        )
    optimizer.load_state_dict(dict(parameters))


def load_meta_optimizer(meta_optimizer: torch.optim.Optimizer, state: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's state into a meta-optimizer; fused optimizers trust its shapes.

    Raises:
        CheckpointError: it is not the state of this optimizer with these parameters.
    """
    try:
        parameters = [parameter for group in meta_optimizer.param_groups for parameter in group["params"]]
        for number, own in state["state"].items():
            for name, value in own.items():
                expected = torch.Size() if name == "step" else parameters[number].shape
                if value is not None and not (is_plain(value) and value.shape == expected):
                    raise ValueError(f"{name} of parameter {number} does not fit")
        meta_optimizer.load_state_dict(dict(state))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} holds a state of the meta-optimizer that does not fit its parameters ({reason(error)}): take "
            "another copy of it, or start a new run with init=CHECKPOINT."
        ) from error


def load_progress(progress: type[P], state: Mapping[str, Any], path: Path) -> P:
    """Return the progress that a checkpoint holds, of a dataclass of numbers.

    Raises:
        CheckpointError: a number is missing, unknown, or something else.
    """
    defaults = {field.name: field.default for field in fields(progress)}  # type: ignore[arg-type]
    for name in {*defaults, *state}:
        value, absent = state.get(name), defaults.get(name) is None  # some numbers are not known yet
        if (
            name not in defaults
            or name not in state
            or not (isinstance(value, (int, float)) or (value is None and absent))
        ):
            raise CheckpointError(
                f"{path} holds no progress of this kind of run: its {name} is {value!r}. Start a new run."
            )
    return progress(**state)


def initialise(optimizer: LearnedRule, init: str | None) -> None:
    """Start from the parameters that another run has learned, where one is named (a checkpoint, or its run's folder).

    Groups of parameters can all start from one optimizer that was learned for parameters of any kind.

    Raises:
        CheckpointError: it can't be read, or is of another architecture.
    """
    if init is not None:
        source = Path(init).expanduser()
        content = load(source)
        several = "groups" in content["config"]["optimizer"]
        for rule in [optimizer] if several else [part.rule for part in optimizer.parts()]:
            load_parameters(rule, content["optimizer"], source)
