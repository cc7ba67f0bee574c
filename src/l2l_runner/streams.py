"""Explicit randomness: numbers that are a pure function of (run seed, stream name, index).

Nothing here has state. A problem's numbers follow from its 64-bit seed alone, so the same seed gives the same
problem on every device, in any batch and in any order: a resumed run needs no generator state, a job of a
sweep equals the same job alone, and every optimizer meets the very same minibatches.

The generator is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) used as a counter-based hash, in integer tensor arithmetic that is exact on every device.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the integer modulo 2^64, as the int64 with the same bits."""
    value %= 1 << 64
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX1 = _signed(0xBF58476D1CE4E5B9)
_MIX2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift logically (unsigned); torch's shift of int64 is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finaliser, a bijection of 64-bit words whose output bits look independent of the input's."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def _key(words: str) -> int:
    return _signed(int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big"))


def seeds(run_seed: int, stream: str, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Return seeds [count] (int64) of items start … start+count-1 of a named stream; streams are disjoint."""
    index = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    return _mix(index * _GOLDEN + _key(f"{run_seed}/{stream}"))


def generator(run_seed: int, stream: str) -> torch.Generator:
    """Return a CPU generator seeded from (run seed, stream name), for torch's own initialisers."""
    return torch.Generator().manual_seed(_key(f"{run_seed}/{stream}"))


def _bits(seeds: Tensor, count: int, purpose: str, step: int) -> Tensor:
    key = _mix(_mix(seeds + _key(purpose)) + _signed(step * _GOLDEN))
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=seeds.device) * _GOLDEN
    return _mix(key[:, None] + counter)


def uniform(seeds: Tensor, count: int, purpose: str, step: int = 0) -> Tensor:
    """Return numbers in [0, 1), float64 [problems, count], a function of (seed, purpose, step)."""
    return _shift_right(_bits(seeds, count, purpose, step), 11).double() * 2.0**-53


def normal(seeds: Tensor, count: int, purpose: str, step: int = 0) -> Tensor:
    """Return standard normal numbers, float64 [problems, count], by the Box-Muller transform."""
    radius, angle = uniform(seeds, 2 * count, purpose, step).chunk(2, dim=1)
    return torch.sqrt(-2.0 * torch.log1p(-radius)) * torch.cos(2.0 * math.pi * angle)


def integers(seeds: Tensor, count: int, high: int, purpose: str, step: int = 0) -> Tensor:
    """Return integers in [0, high), int64 [problems, count], drawn with replacement."""
    return (uniform(seeds, count, purpose, step) * high).long()
