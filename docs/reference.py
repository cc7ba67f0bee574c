"""Generate the configuration reference from conf/ and the types that check it: `python docs/reference.py` prints it."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from l2l_runner import schema
from l2l_runner.meta import METAS, Unroll
from l2l_runner.optimizees import OPTIMIZEES
from l2l_runner.optimizers import RULES
from l2l_runner.pages.reproduction.settings import Budget, ReproduceConfig

CONF = Path(__file__).parents[1] / "conf"
COMMANDS = {"train": schema.TrainConfig, "eval": schema.EvalConfig, "reproduce": ReproduceConfig}
GROUPS: dict[str, Mapping[str, type] | type] = {
    "optimizee": OPTIMIZEES,
    "optimizer": RULES,
    "meta": METAS,
    "unroll": Unroll,
    "evaluation": schema.Evaluation,
    "device": schema.Device,
    "data": schema.Data,
    "logger": schema.LOGGERS,
    "budget": Budget,
}
PRESETS = ("experiment", "recipe", "sweep")
TYPED = {"figures": "figure"}
"""What a user types for fields that have another name in the parsed configuration."""
_NOUNS = {int: "integer", float: "number", bool: "true or false", str: "word"}

PRESETS_ARE = {
    "experiment": "Presets: `experiment=NAME` sets all of these values; the command line overrides them.",
    "recipe": "Good settings for an optimizee, an optimizer and an estimator, named after the three. They apply "
    "automatically if these three are chosen; presets and the command line override them.",
    "sweep": "How the jobs of a sweep are launched and chosen: `-m sweep=NAME`.",
}


def page() -> str:
    """Return the whole reference in Markdown."""
    return "\n".join([*_commands(), *_groups(), *_presets()])


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for name, cls in COMMANDS.items():
        comment, values = read(CONF / f"{name}.yaml")
        yield f"### {name}\n\n{comment}\n"
        yield table(cls, values)


def _groups() -> Iterator[str]:
    for group, options in GROUPS.items():
        yield f"## {group}\n"
        for path in sorted((CONF / group).glob("*.yaml")):
            comment, values = read(path)
            cls = options if isinstance(options, type) else options[values["name"]]
            yield f"### {group}={path.stem}\n\n{comment}\n\n{_prose(summary(cls))}\n"
            yield table(cls, values)


def _presets() -> Iterator[str]:
    for group in PRESETS:
        yield f"## {group}\n\n{PRESETS_ARE[group]}\n"
        for path in sorted((CONF / group).glob("*.yaml")):
            comment, _ = read(path)
            settings = re.sub(r"\A(#.*\n)*", "", path.read_text())
            yield f"### {group}={path.stem}\n\n{comment}\n\n```yaml\n{settings}```\n"


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a file of conf/: its first comment and its values."""
    text = path.read_text()
    lines = re.match(r"(#.*\n)*", text)[0].splitlines()  # type: ignore[index] # it matches any text
    comment = " ".join(line.lstrip("# ") for line in lines if line != "# @package _global_")
    return _prose(comment), values_of(path)


def values_of(path: Path) -> dict[str, Any]:
    """Return the values of a file of conf/, on top of those of the files that it shares keys with."""
    own = yaml.safe_load(path.read_text())
    merged: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base.endswith("@_here_"):
            name = base.removesuffix("@_here_")
            merged |= values_of((CONF if name.startswith("/") else path.parent) / f"{name.lstrip('/')}.yaml")
    return merged | own


def table(cls: type, values: Mapping[str, Any]) -> str:
    """Return a table of the keys of a dataclass, with their defaults from a file of conf/."""
    return "\n".join(["| key | default | type | meaning |", "|---|---|---|---|", *rows(cls, values)]) + "\n"


def rows(cls: type, values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield one row per key, and the rows of nested dataclasses."""
    hints, said = typing.get_type_hints(cls), words(cls)
    for field in fields(cls):
        hint, name = hints[field.name], TYPED.get(field.name, field.name)
        if "table" in field.metadata and "name" in (values.get(name) or {}):
            hint = field.metadata["table"][values[name]["name"]]
        if is_dataclass(hint) and name in values:
            yield from rows(hint, values[name], f"{path}{name}.")
            continue
        default = shown(values[name]) if name in values else "from its group"
        rule = field.metadata.get("rule")
        yield f"| `{path}{name}` | {default} | {kind(hint, rule.words if rule else '')} | {_prose(said[field.name])} |"


def words(cls: type) -> dict[str, str]:
    """Return the descriptions of attributes in the docstrings of a class and its bases."""
    said: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        section = (one.__doc__ or "").partition("Attributes:\n")[2]
        for name, text in re.findall(r"^ +(\w+): (.*(?:\n {12,}.*)*)", section, re.MULTILINE):
            said[name] = " ".join(text.split())
    return said


def summary(cls: type) -> str:
    """Return the part of a class's docstring before its sections."""
    return inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:")[0]


def kind(hint: Any, rule: str) -> str:
    """Describe a type and the rule for its values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        optional = type(None) in arguments
        inner = [one for one in arguments if one is not type(None)]
        whole = kind(inner[0], rule) if len(inner) == 1 else "group"
        return f"{whole}, or null" if optional else whole
    if origin is tuple:
        return f"list of {kind(arguments[0], rule)}"
    if origin is dict:
        return f"names to {kind(arguments[1], rule)}"
    if hint not in _NOUNS:
        return "group"
    noun = _NOUNS[hint]
    return rule if rule and hint is str else f"{noun} {rule}".strip()


def shown(value: Any) -> str:
    """Format a default as a user types it."""
    if value == "???":
        return "required"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    return f"`{yaml_line(value)}`"


def yaml_line(value: Any) -> str:
    """Format a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def _prose(text: str) -> str:
    """Escape the text of a docstring for Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*_<|\[])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    print(page())
