"""The one inner loop: any optimizer on any problem, with as much of a graph as its caller needs."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import Optimizer, State


class Graph(Enum):
    """How much of a trajectory is kept for differentiation."""

    NONE = "nothing: evaluation, and replays"
    FIRST_ORDER = "everything but the derivatives of the gradients"
    SECOND_ORDER = "everything"


class Point(NamedTuple):
    """A point of a trajectory.

    Attributes:
        step: steps taken.
        params: [problems, coordinates].
        state: the optimizer's.
        loss: [problems], at `params`, on the minibatch of `step`.
        grads: [problems, coordinates], the gradient of `loss`.
    """

    step: int
    params: Tensor
    state: State
    loss: Tensor
    grads: Tensor

    def detach(self) -> Point:
        """Return the same point without its history: the truncation of truncated BPTT."""
        state = tuple(tensor.detach() for tensor in self.state)
        return Point(self.step, self.params.detach(), state, self.loss.detach(), self.grads.detach())

    def to(self, device: torch.device) -> Point:
        """Return the same point on a device."""
        state = tuple(tensor.to(device) for tensor in self.state)
        return Point(self.step, self.params.to(device), state, self.loss.to(device), self.grads.to(device))


def start(problem: Problem, optimizer: Optimizer, graph: Graph = Graph.NONE) -> Point:
    """Return the point before the first step, of a problem that is adapted to the optimizer."""
    params = problem.layout.flatten(problem.init())
    if graph is Graph.NONE:
        params = params.detach()
    return Point(0, params, optimizer.init(params), *_loss_and_grads(problem, params, 0, graph))


def unroll(
    problem: Problem, optimizer: Optimizer, point: Point, steps: int, graph: Graph = Graph.NONE
) -> Iterator[tuple[Tensor, Point]]:
    """Take `steps` steps from `point`; yield the update [problems, coordinates] of each and the point that it reaches.

    With `Graph.NONE` a step keeps nothing, so that memory does not grow with the number of steps.
    """
    for _ in range(steps):
        with torch.set_grad_enabled(graph is not Graph.NONE):
            update, state = optimizer.update(point.grads, point.state, point.params)
            params = point.params + update
        point = Point(point.step + 1, params, state, *_loss_and_grads(problem, params, point.step + 1, graph))
        yield update, point


def _loss_and_grads(problem: Problem, params: Tensor, step: int, graph: Graph) -> tuple[Tensor, Tensor]:
    """Return losses [problems] and gradients [problems, coordinates], from the sum: problems are independent."""
    through = graph is not Graph.NONE
    if not (through and params.requires_grad):
        params = params.detach().requires_grad_()
    with torch.enable_grad():
        loss = problem.loss(problem.layout.views(params), step)
        (grads,) = torch.autograd.grad(
            loss.sum(), params, retain_graph=through, create_graph=graph is Graph.SECOND_ORDER
        )
    return (loss if through else loss.detach()), grads
