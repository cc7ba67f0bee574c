"""Omniglot of noise."""

from __future__ import annotations

import torch

from l2l_runner.optimizees.omniglot import ALPHABETS

# Tasks and splits


def noise() -> dict[str, torch.Tensor]:
    """As many alphabets as there are, of noise, in no order; a pixel of each drawing tells its character."""
    generator = torch.Generator().manual_seed(0)
    sizes = {f"Alphabet {i}": 14 if i % 12 == 0 else 20 + i % 3 for i in range(50)}
    assert sum(size >= 20 for size in sizes.values()) == ALPHABETS - 1
    sizes["Alphabet 0"] = 20
    drawings = {
        name: torch.randint(0, 256, (size, 20, 28, 28), dtype=torch.uint8, generator=generator)
        for name, size in sizes.items()
    }
    for own in drawings.values():
        own[:, :, 0, 0] = torch.arange(len(own))[:, None]
    return drawings


DRAWINGS = noise()
