"""The settings in which configurations differ: those that were chosen, and those that follow from a choice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

LOCATION_PREFIXES = ("resume", "data.")
"""What keys begin with that say where something is, not what is computed."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """All values, as they are shown, by their dotted keys; the name of a group's choice by the group's own."""
    found: dict[str, str] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif key == "name" and prefix:
            found[prefix[:-1]] = shown(value)
        else:
            found[name] = shown(value)
    return found


def shown(value: Any) -> str:
    """A value as a configuration has it; 3 and 3.0 are the same."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def differing(
    settings: Sequence[Mapping[str, str]], kinds: Sequence[str], given: Collection[str]
) -> tuple[list[str], list[str]]:
    """The keys in which those differ that have them: the chosen ones, groups first, and those that follow.

    Chosen are groups, keys that a command line gave, and keys that differ between two whose groups around the key are
    the same; the others differ because another group was chosen, as one optimizer's defaults do from another's.

    Args:
        settings: of each configuration, as `flat` has them.
        kinds: of each, a group around all of its keys.
        given: keys of command lines.
    """
    groups, chosen, follow = [], [], []
    for key in dict.fromkeys(key for one in settings for key in one):
        having = [(one, kind) for one, kind in zip(settings, kinds, strict=True) if key in one]
        if key.startswith(LOCATION_PREFIXES) or len({one[key] for one, _ in having}) == 1:
            continue
        values: dict[tuple[str | None, ...], set[str]] = {}
        for one, kind in having:
            values.setdefault((kind, *(one.get(group) for group in _around(key))), set()).add(one[key])
        if key != "device" and any(other.startswith(f"{key}.") for one, _ in having for other in one):
            groups.append(key)
        elif key in given or any(len(found) > 1 for found in values.values()):
            chosen.append(key)
        else:
            follow.append(key)
    return [*groups, *sorted(chosen, key=lambda key: key not in given)], follow


def _around(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
