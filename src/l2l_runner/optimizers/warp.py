"""Warp layers: shared layers between those that a task adapts (Flennerhag et al. 2019, WarpGrad, arXiv 1909.00025).

They are constant while a task is learned, and precondition its gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l_runner.fields import at_least
from l2l_runner.layout import Site


@dataclass(frozen=True, kw_only=True)
class WarpConfig:
    """The layers at one site: 3×3 convolutions where it has images, linear maps where it has vectors.

    Attributes:
        layers: number of layers, with ReLU between them.
        residual: add their output to their input, instead of replacing it.
        batch_norm: normalise after each layer, by the statistics of the present images.
    """

    layers: int = at_least(1)
    residual: bool
    batch_norm: bool

    def build(self, site: Site) -> nn.Module:
        """Build the layers; at the start they are the identity, up to the ReLUs between them and to batch norm."""
        parts: list[nn.Module] = []
        for layer in range(self.layers):
            parts += [nn.ReLU()] if layer else []
            parts.append(_linear(site))
            if self.batch_norm:
                norm = nn.BatchNorm2d if site.dims == 2 else nn.BatchNorm1d
                parts.append(norm(site.channels, track_running_stats=False))
        if not self.residual:
            return nn.Sequential(*parts)
        last = parts[-1]
        assert isinstance(last.weight, Tensor)
        nn.init.zeros_(last.weight)
        return Residual(parts)


class Residual(nn.Sequential):
    """x + layers(x)."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + super().forward(x)  # type: ignore[no-untyped-call]
        return y


def _linear(site: Site) -> nn.Module:
    """Return a linear map from a site's channels to as many, the identity at the start."""
    if site.dims == 2:
        conv = nn.Conv2d(site.channels, site.channels, 3, padding=1)
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv
    linear = nn.Linear(site.channels, site.channels)
    with torch.no_grad():
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    return linear
