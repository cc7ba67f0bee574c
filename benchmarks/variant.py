"""What a variant is: one way to compute a meta-training window."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Unavailable(Exception):
    """The variant can't be had on this machine; the message says why."""


class Estimate(NamedTuple):
    """What a window computes, for comparison between variants.

    Attributes:
        losses: f(θ_1) … f(θ_K), [steps, problems].
        grads: the meta-gradient, named and laid out as problems.network; empty where a variant has none.
    """

    losses: np.ndarray
    grads: dict[str, np.ndarray]


class Variant(Protocol):
    """One way to compute a window."""

    def window(self) -> float:
        """Compute a window from θ_0, update the LSTM's parameters, and give the meta-loss."""

    def estimate(self) -> Estimate:
        """The same without the update."""

    def close(self) -> None:
        """Put process-wide settings back."""
