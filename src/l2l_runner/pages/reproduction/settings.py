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
        hidden: numbers of hidden units per layer of the networks of figure 6.
        layers: numbers of hidden layers of the networks of figure 6.
        train: settings of all meta-trainings.
        eval: settings of all evaluations.
        settings: further settings, by shell patterns of stage names; the last setting of a key counts.
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
        style: the painting of the training style.
        new_style: the painting of the test style.
        weights: of the feature network; null for those of torchvision.
    """

    content: str = path()
    style: str = path()
    new_style: str = path()
    weights: str | None = path()


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """All of `reproduce`.

    Attributes:
        figures: the figures to reproduce.
        seed: of all runs.
        jobs: number of runs at once.
        folder: of the results and the page.
        art: files for figures 8 and 9.
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
    """Parse a composed `reproduce` configuration.

    Raises:
        ConfigError: a key or a value is not valid, or a figure is unknown.
    """
    parts = {key: value for key, value in node.items() if key != "figure"}
    given = node.get("figure")
    listed = given if isinstance(given, list) and given else [given]
    figures = FIGURES if given == "all" else tuple(str(figure) for figure in listed)
    for figure in figures:
        if figure not in FIGURES:
            raise ConfigError(f"figure is {figure}; expected all, or some of {', '.join(FIGURES)}.")
    return parse(ReproduceConfig, {**parts, "figures": figures})
