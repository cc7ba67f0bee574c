"""Resuming a run: which settings may change meanwhile, and how a stopped run says how to resume it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2l_runner import distributed
from l2l_runner.errors import CheckpointError
from l2l_runner.fields import plain
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import WHERE_KEYS, RunFolder
from l2l_runner.schema import TrainConfig
from l2l_runner.stopping import Stopped

FREE_KEYS = (
    *WHERE_KEYS,
    *("evaluate", "evaluation"),
    *("meta.steps", "meta.patience", "meta.advance", "meta.max_skipped", "meta.chunk", "meta.runs"),
)
"""Keys that may differ between a run and its resumption: how long and how often, where and with what help, but not what
is computed."""


def stopped(where: str, folder: RunFolder, signal: int) -> Stopped:
    """Return what to raise when a run has stopped somewhere, because of a signal, and saved its state."""
    return Stopped(
        f"Stopped at {where}; everything is saved. To resume:\n  {distributed.command()} {folder.how_to_resume}",
        128 + signal,
    )


def last_state(folder: RunFolder, config: TrainConfig) -> dict[str, Any] | None:
    """Return the content of a run's last checkpoint, to be resumed with these settings; None for a run without one.

    Raises:
        CheckpointError: it cannot be read or is lost, or what the run computes has changed.
    """
    if not folder.last.exists():
        # A run that was killed before its first last.pt has at most the best state before its first step.
        if folder.best.exists() and checkpoint.load(folder.best)["progress"]["step"] > 0:
            raise CheckpointError(
                f"{folder.last}, from which the run is resumed, is missing: restore it, copy {folder.best.name} to "
                f"{folder.last.name} to resume from the best state, or start a new run with init={folder.best}."
            )
        return None
    content = checkpoint.load(folder.last)
    changed = difference(plain(config), content["config"])
    if changed:
        raise CheckpointError(
            f"{folder.path} cannot be resumed with other settings: {changed}; leave it as it was, or start a new run."
        )
    return content


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> str | None:
    """Return the first key in which two configurations differ in what is computed, with both values, or None."""
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        name = f"{path}{key}"
        if name in FREE_KEYS:
            continue
        a, b = mine.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found = difference(a, b, f"{name}.")
            if found:
                return found
        elif a != b:
            return f"{name} is {a!r} now and was {b!r}"
    return None
