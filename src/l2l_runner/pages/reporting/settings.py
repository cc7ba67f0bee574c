"""The settings in which configurations differ: those that were chosen, and those that follow from another choice."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

LOCATION_PREFIXES = ("resume", "data.")
"""Prefixes of keys that say where files are, not what is computed."""


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return all values, as they are shown, by their dotted keys; the name of a group's choice by the group's key."""
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
    """Return a value as it is written in a configuration; 3 and 3.0 look the same."""
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
    """Return the keys in which configurations differ: the chosen ones, groups first, and those that follow.

    Chosen are groups, keys given on a command line, and keys that differ between two configurations that agree in the
    groups around the key. The others follow: they differ because another group was chosen, as the defaults of one
    optimizer differ from those of another.

    Args:
        settings: of each configuration, as `flat` returns them; a configuration need not have every key.
        kinds: of each configuration; it counts as a group around all keys.
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
    """Return the keys of the groups around a key."""
    parts = key.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
