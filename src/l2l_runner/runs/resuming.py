"""Going on with a run that was stopped: what may have changed meanwhile, and how a run says that it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2l_runner import distributed
from l2l_runner.errors import CheckpointError
from l2l_runner.launch.sweep_folder import WHERE_KEYS
from l2l_runner.runs import checkpoint
from l2l_runner.runs.folder import RunFolder
from l2l_runner.stopping import Stopped

# What may differ between a run and its resumption: how long and how often, where and with what help, but not what
# is computed.
FREE_KEYS = (
    *WHERE_KEYS,
    *("evaluate", "evaluation"),
    *("meta.steps", "meta.patience", "meta.advance", "meta.max_skipped", "meta.chunk", "meta.runs"),
)

# What keys that older runs haven't got stand for in them, where that isn't null.
SINCE = {"meta.optimizer": "adam", "meta.scaling": 0.0, "meta.imitation": 0.0, "meta.expert_lr": 0.01}


def stopped(where: str, folder: RunFolder, signal: int) -> Stopped:
    """What to raise when a run has stopped somewhere, because of a signal, and saved its state."""
    return Stopped(
        f"Stopped at {where}; everything is saved. To go on:\n  {distributed.command()} {folder.how_to_resume}",
        128 + signal,
    )


def last_state(folder: RunFolder, composed: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a run's last checkpoint, to go on from with these settings.

    Raises:
        CheckpointError: it cannot be read, or what the run computes has changed.
    """
    content = checkpoint.load(folder.last)
    changed = difference(composed, content["config"])
    if changed:
        raise CheckpointError(
            f"{folder.path} cannot be resumed with other settings: {changed}; leave it as it was, or start a new run."
        )
    return content


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any], path: str = "") -> str | None:
    """The first key in which two configurations differ in what matters, with both values, or None."""
    for key in [*mine, *(key for key in theirs if key not in mine)]:
        name = f"{path}{key}"
        if name in FREE_KEYS:
            continue
        a, b = mine.get(key), theirs.get(key, SINCE.get(name))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found = difference(a, b, f"{name}.")
            if found:
                return found
        elif a != b:
            return f"{name} is {a!r} now and was {b!r}"
    return None
