"""Named parameters as flat coordinates, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """Names and shapes of one problem's parameters, in the order in which they lie in the flat vector."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """Number of coordinates of one problem."""
        return sum(prod(shape) for shape in self.shapes.values())

    def flatten(self, params: Params) -> Tensor:
        """Named tensors [problems, *shape] as one tensor [problems, coordinates]."""
        return torch.cat([params[name].reshape(-1, prod(shape)) for name, shape in self.shapes.items()], dim=1)

    def views(self, flat: Tensor) -> Params:
        """A flat tensor [problems, coordinates] as named views [problems, *shape]."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(len(flat), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
