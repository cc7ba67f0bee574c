"""The pretrained optimizers that come with the package, each with its card."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Card:
    """What a user must know of a pretrained optimizer.

    Attributes:
        name: what `LearnedOptimizer` and `checkpoint=` take.
        trained_on: the problems.
        good_for: how many steps, and of what.
        reached: what it reached against tuned baselines, and how that was measured.
        command: the command that made it.
    """

    name: str
    trained_on: str
    good_for: str
    reached: str
    command: str

    @property
    def path(self) -> Path:
        """Return the path of its checkpoint."""
        return FOLDER / f"{self.name}.pt"

    def __str__(self) -> str:
        rows = [("trained on", self.trained_on), ("good for", self.good_for), ("reached", self.reached)]
        return "\n".join([self.name, *(f"  {key}: {value}" for key, value in [*rows, ("made by", self.command)])])


@lru_cache(maxsize=1)
def pretrained() -> dict[str, Card]:
    """Return the cards of all pretrained optimizers, by name.

    Examples:
        >>> sorted(pretrained())
        ['mnist', 'quadratic', 'robust']
    """
    cards = json.loads((FOLDER / "cards.json").read_text())
    return {name: Card(name=name, **fields) for name, fields in cards.items()}
