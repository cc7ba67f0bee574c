"""Typed, range-checked configuration: frozen dataclasses built from plain dictionaries.

A field's type and its rule (`at_least`, `choice`, …) are all there is to know about a key; whatever a user
writes that breaks them becomes one sentence naming the key, the value and what was expected.
"""

from __future__ import annotations

import sys
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from l2l_runner.errors import ConfigError

T = TypeVar("T")

_NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "a word"}


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy beyond its type, and the words that say so."""

    words: str
    holds: Callable[[Any], bool]


def _ruled(words: str, holds: Callable[[Any], bool]) -> Any:
    return field(metadata={"rule": Rule(words, holds)})


def at_least(low: float) -> Any:
    """Declare a field whose value (or every element of it) is ≥ low."""
    return _ruled(f"≥ {low:g}", lambda value: value >= low)


def above(low: float) -> Any:
    """Declare a field whose value is > low."""
    return _ruled(f"> {low:g}", lambda value: value > low)


def between(low: float, high: float) -> Any:
    """Declare a field with low ≤ value < high."""
    return _ruled(f"≥ {low:g} and < {high:g}", lambda value: low <= value < high)


def within(low: float, high: float) -> Any:
    """Declare a field with low ≤ value ≤ high."""
    return _ruled(f"≥ {low:g} and ≤ {high:g}", lambda value: low <= value <= high)


def choice(*options: str) -> Any:
    """Declare a field that takes one of the named options."""
    return _ruled(f"one of {', '.join(options)}", lambda value: value in options)


def path() -> Any:
    """Declare a field that takes a path, which cannot be empty."""
    return _ruled("a path", lambda value: value != "")


def filled() -> Any:
    """Declare a field that takes any non-empty word."""
    return _ruled("a word that isn't empty", lambda value: value != "")


def named(*names: str) -> Any:
    """Declare the field that holds the name of its class in a table; the first of several is the default in Python."""
    rule = Rule(f"one of {', '.join(names)}", lambda value: value in names)
    return field(default=names[0], metadata={"rule": rule})


def one_of(table: Mapping[str, type[Any]]) -> Any:
    """Declare a field of settings whose class `table` lists under their `name`; in a dict, each value is such a field.

    The table is read when settings are parsed, so it may be filled after the field was declared.
    """
    return field(metadata={"table": table})


def did_you_mean(word: str, options: list[str]) -> str:
    """' Did you mean …?' where an option is close, else ''."""
    close = get_close_matches(word, options, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def parse(cls: type[T], values: object, path: str = "") -> T:
    """Build `cls`, a dataclass, from a dictionary; nested dataclasses are built likewise.

    Args:
        cls: a dataclass; a default of one of its fields is for Python callers, a configuration holds every key.
        values: the dictionary.
        path: dotted key of the dictionary in the configuration, for messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or breaks its rule.

    Examples:
        >>> @dataclass(frozen=True)
        ... class Sizes:
        ...     hidden: int = at_least(1)
        >>> parse(Sizes, {"hidden": 20})
        Sizes(hidden=20)
        >>> parse(Sizes, {"hidden": 0}, "optimizer")
        Traceback (most recent call last):
        l2l_runner.errors.ConfigError: optimizer.hidden is 0; expected an integer ≥ 1.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'The configuration'} is {values!r}; expected a group of keys.")
    known: dict[str, Field[Any]] = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"Unknown key {_join(path, str(key))}: {path or 'the configuration'} has the keys "
                f"{', '.join(known)}.{did_you_mean(str(key), list(known))}"
            )
    hints = get_type_hints(cls)
    built: dict[str, Any] = {}
    for name, declared in known.items():
        if name not in values:
            raise ConfigError(f"{_join(path, name)} is missing: give it a value.")
        built[name] = _convert(values[name], hints[name], declared.metadata, _join(path, name))
    return cls(**built)


def parse_one_of(table: Mapping[str, type[T]], values: object, path: str) -> T:
    """Build the class that `table` has under the `name` in a dictionary.

    Raises:
        ConfigError: the table has no such name, or as `parse`.
    """
    name = values.get("name") if isinstance(values, Mapping) else None
    if name not in table:
        raise ConfigError(
            f"{path}.name is {name!r}; expected one of {', '.join(table)}.{did_you_mean(str(name), list(table))}"
        )
    return parse(table[str(name)], values, path)


def plain(value: Any) -> Any:
    """Return settings as the plain dictionaries, lists and scalars from which `parse` builds equal ones."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _convert(value: Any, hint: Any, metadata: Mapping[str, Any], path: str) -> Any:
    if hint is Any:
        return value
    origin = get_origin(hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; expected a group of keys.")
        return {str(k): _convert(v, get_args(hint)[1], metadata, _join(path, str(k))) for k, v in value.items()}
    if "table" in metadata:
        return parse_one_of(metadata["table"], value, path)
    if origin in (Union, types.UnionType):
        return None if value is None else _convert(value, get_args(hint)[0], metadata, path)
    if is_dataclass(hint):
        return parse(typing.cast(type[Any], hint), value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{path} is {value!r}; expected a list, such as [20,20].")
        return tuple(_convert(v, get_args(hint)[0], metadata, f"{path}[{i}]") for i, v in enumerate(value))
    converted, rule = _scalar(value, hint), metadata.get("rule")
    if converted is None or (rule is not None and not rule.holds(converted)):
        expected = rule.words if rule is not None and hint is str else _NOUNS[hint]
        if rule is not None and hint is not str:
            expected += f" {rule.words}"
        raise ConfigError(f"{path} is {value!r}; expected {expected}.")
    return converted


def _scalar(value: Any, hint: type) -> Any:
    """Return the value as the type, or None where it is no such thing (true is no number, 1.5 no integer)."""
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else None
    if hint is int and isinstance(value, bool):
        return None
    return value if isinstance(value, hint) else None
