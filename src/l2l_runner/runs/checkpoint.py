"""Checkpoints: a whole truth, written atomically, read without executing anything.

A checkpoint is a dictionary of plain values and tensors: `format`, the `config` that made it (as composed), the
`optimizer`'s parameters, and, for resuming, the `meta_optimizer`'s state and the `progress` of the run.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2l_runner import streams
from l2l_runner.cards import pretrained
from l2l_runner.errors import CheckpointError, ConfigError, StorageError
from l2l_runner.fields import did_you_mean
from l2l_runner.optimizers import LEARNED, HandDesigned, LearnedRule
from l2l_runner.schema import parse_optimizee, parse_optimizer

FORMAT = 1
FOLDER = 0x10  # the attribute of a folder in a ZIP archive
SINCE = {"module": {"labels": None}}  # what keys that optimizees of older checkpoints haven't got stand for in them
_KEYS = {"format", "config", "optimizer", "meta_optimizer", "progress"}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, wholly or not at all, even if the machine stops meanwhile.

    Raises:
        StorageError: the folder cannot be written, or is full; what was there before is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        kept = "; what was there before is untouched" if path.exists() else ""
        raise StorageError(
            f"{path} could not be written ({error.strerror}){kept}: make room or permit writing there, then resume."
        ) from error


def run_state(
    composed: Mapping[str, Any], progress: Any, optimizer: nn.Module | None = None, meta_optimizer: Any = None
) -> dict[str, Any]:
    """What every run's checkpoint holds; `optimizer` and `meta_optimizer` are None where nothing is meta-learned.

    Args:
        composed: the configuration.
        progress: a dataclass of plain values.
        optimizer: what is meta-learned.
        meta_optimizer: the torch.optim.Optimizer that learns it.
    """
    parameters = {} if optimizer is None else optimizer.state_dict()
    return {
        "config": dict(composed),
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
        with zipfile.ZipFile(path) as archive:
            # torch.load doesn't look at the checksums, and of what is marked as a folder it reads nothing.
            if archive.testzip() is not None or any(entry.external_attr & FOLDER for entry in archive.infolist()):
                raise zipfile.BadZipFile
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds something else than tensors and plain values, and was not read, because reading it could "
            "run code: give a checkpoint that l2l_runner wrote."
        ) from error
    except Exception as error:  # there is no end to what parsers raise about damaged files
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
    optimizee = content["config"].get("optimizee", {})
    optimizee.update({**SINCE.get(optimizee.get("name"), {}), **optimizee})
    return content


def build_optimizer(config: Mapping[str, Any], seed: int) -> LearnedRule:
    """A new learned optimizer for a composed configuration, initialised from (seed, "optimizer")."""
    settings = parse_optimizer(config["optimizer"])
    if isinstance(settings, HandDesigned):
        name = config["optimizer"]["name"]
        raise ConfigError(f"optimizer={name} has nothing to be meta-learned: use a learned one ({', '.join(LEARNED)}).")
    layout = parse_optimizee(config["optimizee"]).layout()
    built: LearnedRule = settings.build(layout, streams.generator(seed, "optimizer"))
    return built


def restore_optimizer(content: Mapping[str, Any], path: Path) -> LearnedRule:
    """The learned optimizer that a checkpoint holds, built from the configuration inside it.

    Raises:
        CheckpointError: the parameters are not those of that configuration.
    """
    try:
        optimizer = build_optimizer(content["config"], 0)
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"The configuration inside {path} is none that this version can build: {error}"
        ) from error
    load_parameters(optimizer, content["optimizer"], path)
    return optimizer


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
