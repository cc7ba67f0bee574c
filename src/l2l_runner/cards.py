"""python -m l2l_runner.cards: print the cards of the pretrained optimizers, or pack a checkpoint as one."""

from __future__ import annotations

import sys
from pathlib import Path

from l2l_runner.weights import pretrained


def main() -> None:
    """Print the cards; or, given SOURCE and TARGET, pack a checkpoint."""
    if len(sys.argv) == 3:
        from l2l_runner.runs.checkpoint import pack  # PyTorch takes seconds to import

        pack(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        print("\n\n".join(map(str, pretrained().values())))


if __name__ == "__main__":
    main()
