"""The command line before Hydra reads it: overrides are read, checked and rewritten here.

Nothing heavy is imported at the top, because `--help` passes through this module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from l2l_runner.errors import ConfigError, StorageError, reason
from l2l_runner.fields import did_you_mean

PATH_KEYS = (
    *("checkpoint", "init", "data.root", "logger.store", "hydra.run.dir", "hydra.sweep.dir"),
    *("optimizee.weights", "optimizee.content", "optimizee.style"),
    *("folder", "against", "keep", "art.content", "art.style", "art.new_style", "art.weights"),
)
"""Keys whose values are paths."""

OPEN_GROUPS = ("optimizee.model.", "optimizer.groups.", "others.")
"""Prefixes of keys that the user names, such as the arguments of a model's constructor."""

EXTRAS = {
    "joblib": "sweep-joblib",
    "submitit_local": "sweep-slurm",
    "submitit_slurm": "sweep-slurm",
    "ray": "sweep-ray",
    "optuna": "sweep-optuna",
}
"""Launchers and sweepers that Hydra ships as plugins, and our extra that installs each."""


def conf_folder() -> Path:
    """Return the folder of the configuration: inside an installed package, or at the top of the repository."""
    packaged = Path(__file__).parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "conf"


def choices(group: str) -> list[str]:
    """Return the choices of a config group, sorted; empty if there is no such group."""
    return sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))


def overrides_of(arguments: Sequence[str]) -> dict[str, str]:
    """Return the `key=value` arguments of a command line, without Hydra's + and ++."""
    pairs = (argument.split("=", 1) for argument in arguments if not argument.startswith("-") and "=" in argument)
    return {key.strip().lstrip("+"): value for key, value in pairs}


def is_sweep(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks for a sweep."""
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def prepend(overrides: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `overrides` before their own ones, but after their flags, as Hydra requires."""
    own = (i for i, a in enumerate(arguments) if not a.startswith("-") and ("=" in a or a.startswith("~")))
    start = next(own, len(arguments))
    return [*arguments[:start], *overrides, *arguments[start:]]


def quoted(value: str) -> str:
    """Return a string as a quoted value of Hydra's override grammar, where a backslash counts only before a quote."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def unquoted(value: str) -> str:
    """Return the string that an override's value stands for."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return re.sub(rf"\\+(?={value[0]}|$)", lambda found: "\\" * (len(found[0]) // 2), value[1:-1])
    return value


def literal(value: Any) -> str:
    """Return a plain value (mappings and lists included) in Hydra's override grammar.

    Raises:
        ConfigError: a text in it would be resolved instead of being taken as it is.
    """
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"The checkpoint's configuration has {value!r}, which is not resolved: give optimizee=NAME.")
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(literal(item) for item in value) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return quoted(value) if isinstance(value, str) else repr(value)


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """Quote paths with characters that Hydra's grammar does not accept bare, such as =, an umlaut or a parenthesis.

    Values that are quoted or escaped already stay as they are. So do the separators between the values of a sweep.
    """
    separators = "(),'\"\\[\\]" if is_sweep(arguments) else ""
    special = re.compile(rf"[^\w\s./:@%+$?*|{separators}-]", re.ASCII)

    def quote_path(argument: str) -> str:
        key, _, value = argument.partition("=")
        is_path = key in PATH_KEYS or key.startswith("others.")
        plain = not is_path or not special.search(re.sub(r"\\.", "", value)) or value[0] in "'\""
        return argument if plain else f"{key}={quoted(value)}"

    return [quote_path(argument) for argument in arguments]


def allow_new_keys(arguments: Sequence[str]) -> list[str]:
    """Prefix the keys of open groups with ++, so that Hydra changes or adds them."""
    return [f"++{argument}" if argument.startswith(OPEN_GROUPS) else argument for argument in arguments]


def check_choices(arguments: Sequence[str]) -> None:
    """Reject choices that do not exist.

    Hydra would report them by a traceback, or ignore them if the group is optional.

    Raises:
        ConfigError: a choice does not exist, or has no effect.
    """
    given = overrides_of(arguments)
    if given.get("sweep", "null") != "null" and not is_sweep(arguments):
        raise ConfigError("sweep=… says how to launch the jobs of a sweep: use it with -m, or leave it out.")
    if any(argument.startswith(("-cd", "--config-dir", "hydra.searchpath")) for argument in arguments):
        return  # choices may come from another folder
    for group, value in given.items():
        if (conf_folder() / group).is_dir() and not set(value) & set("[]{}()$'\""):
            for option in value.split(","):
                if option.strip() not in choices(group):
                    raise ConfigError(unknown_choice(group, option, choices(group)))


def unknown_choice(group: str, option: str, options: list[str]) -> str:
    """Return the error message for a choice that does not exist, with the valid ones listed."""
    if group in ("hydra/launcher", "hydra/sweeper") and option in EXTRAS:
        return f"{group}={option} needs a plugin that is not installed: pip install 'l2l_runner[{EXTRAS[option]}]'."
    return f"Unknown choice {group}={option}: expected one of {', '.join(options)}.{did_you_mean(option, options)}"


def check_torchrun(config_name: str, arguments: Sequence[str]) -> None:
    """Reject commands that several processes cannot run together.

    Raises:
        ConfigError: torchrun cannot run this command.
    """
    if config_name != "train":
        raise ConfigError(f"torchrun runs l2l_runner.train only: start l2l_runner.{config_name} with python -m.")
    given = overrides_of(arguments)
    if is_sweep(arguments) or "hydra.mode" in given:
        raise ConfigError("torchrun cannot run a sweep: start the sweep with python -m, or each job with torchrun.")
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and "resume" not in given:
        raise ConfigError(
            "A process has died, and torchrun's --max-restarts would start a new run: give resume=FOLDER, so that "
            "a restart resumes the old one."
        )


def resume_run(arguments: Sequence[str]) -> list[str]:
    """Replace `resume=PATH …` by the overrides of that run, in its own folder, followed by what else was given.

    Raises:
        ConfigError: the command is a sweep, or also names a folder for the run.
        StorageError: PATH is not the folder of a run.
    """
    given = overrides_of(arguments)
    path = unquoted(given.get("resume", "null"))
    if path == "null":
        return list(arguments)
    if not path:
        raise ConfigError("resume is empty: give the folder of the run to resume, as resume=FOLDER.")
    if is_sweep(arguments) or "hydra.run.dir" in given:
        raise ConfigError("resume=PATH resumes one run in its own folder: use it without -m and hydra.run.dir.")
    folder = Path(path).absolute()
    if folder.suffix == ".pt":
        folder = folder.parent.parent
    saved = folder / ".hydra" / "overrides.yaml"
    if not (folder / ".run").exists() or not saved.exists():
        raise StorageError(
            f"{path} is not a run: expected the folder of a run of l2l_runner.train (with .hydra, metrics.jsonl and "
            "checkpoints), or a checkpoint in it. To resume a sweep, repeat its command with hydra.sweep.dir=FOLDER."
        )
    before = recorded_overrides(saved, given)
    chosen = overrides_of(before)
    changed = {key for key, value in given.items() if choices(key) and chosen.get(key, value) != value}
    # The keys of a choice that was replaced, such as logger.store of another logger, would be unknown.
    before = [item for item in before if _group(item) not in {"resume", "sweep", *changed}]
    rest = [argument for argument in arguments if not argument.lstrip("+").startswith("resume=")]
    here = [f"resume={quoted(str(folder))}", f"hydra.run.dir={quoted(str(folder))}"]
    # Hydra writes the new settings beside the old ones, which they replace once the run has accepted them.
    return prepend(before, [*rest, *here, "hydra.output_subdir=.resuming"])


def recorded_overrides(path: Path, given: Container[str]) -> list[str]:
    """Read the overrides that a run was started with, as data: the record may be somebody else's.

    Hydra's own settings are left out, because they can name code to run.

    Raises:
        StorageError: the record is no list of overrides, or one would read or run something when it is resolved.
    """
    try:
        items = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # the parser raises many types for damaged files
        raise StorageError(f"{path} cannot be read ({reason(error)}): restore it, or start a new run.") from error
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise StorageError(f"{path} is no list of overrides, which a run is resumed with: restore it.")
    kept = []
    for item in map(str, items):
        key = item.lstrip("+~").partition("=")[0]
        if item.startswith("-") or _group(item) == "hydra":
            continue
        if "${" not in item and ("_target_" not in item or key == "optimizee.model._target_"):
            kept.append(item)
        elif key not in given:
            raise StorageError(
                f"{path} has {item!r}, which is not resolved for a run that is resumed: give {key}=VALUE again, beside "
                "resume=FOLDER."
            )
    return kept


def _group(item: str) -> str:
    """Return the first part of an override's key."""
    return re.split(r"[./@=]", item.lstrip("+~"))[0]


def keep_trained_optimizee(arguments: Sequence[str]) -> list[str]:
    """Insert the optimizee of the checkpoint, if `optimizee.key=value` is given without `optimizee=NAME`.

    Raises:
        ConfigError: the checkpoint's path is empty.
        CheckpointError: the checkpoint cannot be read.
    """
    given = overrides_of(arguments)
    if "optimizee" in given or "checkpoint" not in given or not any(key.startswith("optimizee.") for key in given):
        return list(arguments)
    from l2l_runner.runs import checkpoint  # imports torch, which --help does not need

    trained = checkpoint.load(checkpoint_path("checkpoint", unquoted(given["checkpoint"])))["config"]["optimizee"]
    return prepend([f"+optimizee={literal(trained)}"], arguments)


def checkpoint_path(key: str, given: str) -> Path:
    """Return the path that a user gave for a checkpoint.

    Raises:
        ConfigError: it is empty.
    """
    if not given:
        raise ConfigError(f"{key} is empty: give a best.pt, or the folder of its run, as {key}=PATH.")
    return Path(given).expanduser()
