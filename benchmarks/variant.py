"""The interface of a variant: one way to compute a meta-training window."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np


class Unavailable(Exception):
    """The variant does not run on this machine; the message says why."""


class Estimate(NamedTuple):
    """The results of a window, for comparison between variants.

    Attributes:
        losses: f(θ_1) … f(θ_K), [steps, problems].
        grads: the meta-gradient, with the names and shapes of problems.network; empty for variants without one.
    """

    losses: np.ndarray
    grads: dict[str, np.ndarray]


class Variant(Protocol):
    """One way to compute a window."""

    def window(self) -> float:
        """Compute a window from θ_0, update the LSTM's parameters, and return the meta-loss."""

    def estimate(self) -> Estimate:
        """Compute a window without the update."""

    def close(self) -> None:
        """Restore process-wide settings."""
