"""The features that a learned optimizer reads of a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEATURES = {"none": 1, "log_sign": 2}  # inputs per coordinate


def preprocess(grads: Tensor, kind: str, p: float) -> Tensor:
    """Return the features [features, *shape] of gradients of any shape.

    `none` is the gradient itself. `log_sign` keeps gradients of all magnitudes legible (Andrychowicz et al. 2016,
    appendix A): (log|g| / p, sgn g) where |g| ≥ e^−p, else (−1, e^p g). Clamps compute the same function without the
    logarithm of zero.
    """
    if kind == "none":
        return grads.unsqueeze(0)
    magnitude = grads.abs().clamp(min=math.exp(-p)).log() / p
    direction = (grads * math.exp(p)).clamp(-1, 1)
    return torch.stack([magnitude, direction])
