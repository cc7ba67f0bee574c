"""The pretrained optimizers that come with the package, each with its card."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "weights"
KEPT = ("seed", "meta_batch", "score", "optimizee", "optimizer", "unroll", "meta")


@dataclass(frozen=True)
class Card:
    """What there is to know of a pretrained optimizer.

    Attributes:
        name: what `LearnedOptimizer` and `checkpoint=` take.
        trained_on: the problems.
        good_for: how many steps, and of what.
        reached: what it reached against tuned baselines, and how that was measured.
        command: what made it.
    """

    name: str
    trained_on: str
    good_for: str
    reached: str
    command: str

    @property
    def path(self) -> Path:
        """Its checkpoint."""
        return FOLDER / f"{self.name}.pt"

    def __str__(self) -> str:
        rows = [("trained on", self.trained_on), ("good for", self.good_for), ("reached", self.reached)]
        return "\n".join([self.name, *(f"  {key}: {value}" for key, value in [*rows, ("made by", self.command)])])


@lru_cache(maxsize=1)
def pretrained() -> dict[str, Card]:
    """The cards of all pretrained optimizers, by name."""
    cards = json.loads((FOLDER / "cards.json").read_text())
    return {name: Card(name=name, **fields) for name, fields in cards.items()}


def pack(source: Path, target: Path) -> None:
    """Write a checkpoint of what was learned alone: no paths, nothing that only a resumption needs."""
    from l2l_runner.runs import checkpoint

    content = checkpoint.load(source)
    config = {key: content["config"][key] for key in KEPT}
    progress = {"step": content["progress"]["step"]}
    kept = {"config": config, "optimizer": content["optimizer"], "meta_optimizer": {}, "progress": progress}
    checkpoint.save(target, kept)


def main() -> None:
    """Print the cards; or, given SOURCE and TARGET, pack a checkpoint."""
    if len(sys.argv) == 3:
        pack(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print("\n\n".join(map(str, pretrained().values())))


if __name__ == "__main__":
    main()
