"""Named parameters as flat coordinates, and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

Params = dict[str, Tensor]


@dataclass(frozen=True)
class Columns:
    """A subset of the coordinates, as contiguous slices in order."""

    runs: tuple[slice, ...]

    def take(self, rows: Tensor) -> Tensor:
        """Select [..., columns] from a tensor [..., coordinates]; a view if there is a single slice."""
        parts = [rows[..., run] for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def put(self, columns: Tensor, rows: Tensor) -> None:
        """Write [..., columns] into a tensor [..., coordinates]."""
        sizes = [run.stop - run.start for run in self.runs]
        for run, part in zip(self.runs, torch.split(columns, sizes, dim=-1), strict=True):
            rows[..., run] = part


ALL = Columns((slice(None),))


@dataclass(frozen=True)
class Site:
    """A place in a network where a warp layer can be put.

    Attributes:
        channels: of what comes in, and of what must come out.
        dims: dimensions of an image whose points have these channels; 0 where they are a vector's elements.
        hidden: units of a recurrent cell, which a layer there gates (see `MazeProblem.warped`); 0 for any other place.
    """

    channels: int
    dims: int = 2
    hidden: int = 0


@dataclass(frozen=True)
class Layout:
    """What an optimizer must know of a problem to be built for it.

    Attributes:
        shapes: names and shapes of its parameters, in the order in which they lie in the flat vector.
        sites: where its network takes warp layers, by name.
        tasks: number of tasks that training problems are drawn from, where they are finitely many.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sites: Mapping[str, Site] = field(default_factory=dict)
    tasks: int | None = None

    @property
    def size(self) -> int:
        """Number of coordinates of one problem."""
        return sum(prod(shape) for shape in self.shapes.values())

    def only(self, names: Collection[str]) -> Layout:
        """Return the layout of a subset of the tensors."""
        return Layout({name: shape for name, shape in self.shapes.items() if name in names})

    def columns(self, names: Collection[str]) -> Columns:
        """Return the columns of the coordinates of a subset of the tensors."""
        runs: list[slice] = []
        begin = 0
        for name, shape in self.shapes.items():
            end = begin + prod(shape)
            if name in names:
                adjoining = bool(runs) and runs[-1].stop == begin
                runs.append(slice(runs.pop().start if adjoining else begin, end))
            begin = end
        return Columns(tuple(runs))

    def flatten(self, params: Params) -> Tensor:
        """Concatenate named tensors [problems, *shape] to one tensor [problems, coordinates]."""
        return torch.cat([params[name].reshape(-1, prod(shape)) for name, shape in self.shapes.items()], dim=1)

    def views(self, flat: Tensor) -> Params:
        """Split a flat tensor [problems, coordinates] into named views [problems, *shape]."""
        parts = torch.split(flat, [prod(shape) for shape in self.shapes.values()], dim=1)
        return {
            name: part.reshape(len(flat), *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
