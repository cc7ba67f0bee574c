"""Settings of `reproduce`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l2l_runner.errors import ConfigError
from l2l_runner.fields import at_least, parse, path
from l2l_runner.schema import Data, Device

FIGURES = ("4", "5", "6", "7", "8", "9", "long")
"""Figures of the paper, and the one that continues where the paper's optimizer fails."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the paper's protocol is computed.

    Attributes:
        name: the configuration's name for it.
        hidden: hidden units a layer of the nets of figure 6.
        layers: hidden layers of the nets of figure 6.
        train: settings of all meta-trainings.
        eval: settings of all evaluations.
        settings: more of them, by shell patterns of the stages' names; where two say something, the last counts.
    """

    name: str
    hidden: tuple[int, ...] = at_least(1)
    layers: tuple[int, ...] = at_least(1)
    train: tuple[str, ...]
    eval: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ArtFiles:
    """Files for neural art.

    Attributes:
        content: a folder of photographs.
        style: a painting, whose style is trained with.
        new_style: a painting, whose style is tested with.
        weights: of the network that sees them; null for torchvision's.
    """

    content: str = path()
    style: str = path()
    new_style: str = path()
    weights: str | None = path()


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """All of `reproduce`.

    Attributes:
        figures: those to be made.
        seed: of all runs.
        jobs: runs at once.
        folder: of the results and the page.
        art: what figures 8 and 9 are made of.
        against: a report whose claims must still hold.
        keep: a folder that gets a copy of the figures, the page and the report.
        budget: how much is computed.
        device: where to compute.
        data: where the data sets are.
    """

    figures: tuple[str, ...]
    seed: int = at_least(0)
    jobs: int = at_least(1)
    folder: str = path()
    art: ArtFiles
    against: str | None = path()
    keep: str | None = path()
    budget: Budget
    device: Device
    data: Data


def parse_reproduce(node: Mapping[str, Any]) -> ReproduceConfig:
    """The whole of a composed `reproduce` configuration.

    Raises:
        ConfigError: as `parse_train`.
    """
    parts = {key: value for key, value in node.items() if key != "figure"}
    given = node.get("figure")
    listed = given if isinstance(given, list) and given else [given]
    figures = FIGURES if given == "all" else tuple(str(figure) for figure in listed)
    for figure in figures:
        if figure not in FIGURES:
            raise ConfigError(f"figure is {figure}; expected all, or some of {', '.join(FIGURES)}.")
    return parse(ReproduceConfig, {**parts, "figures": figures})
