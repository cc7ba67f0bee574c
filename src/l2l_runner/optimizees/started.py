"""Problems that start where an optimizer wants them to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from l2l_runner.layout import Params
from l2l_runner.optimizees.base import Problem


class Started(Problem):
    """The same problems from other starting points.

    Args:
        problem: what is wrapped.
        start: the starting points, named tensors [problems, *shape]; whatever they depend on stays in the graph.
    """

    def __init__(self, problem: Problem, start: Params):
        self.problem, self.start = problem, start
        self.seeds, self.layout, self.tasks = problem.seeds, problem.layout, problem.tasks

    def init(self) -> Params:
        return self.start

    def loss(self, params: Params, step: int) -> Tensor:
        return self.problem.loss(params, step)

    def metrics(self, params: Params) -> dict[str, Tensor]:
        return self.problem.metrics(params)

    def pictures(self, params: Params) -> Tensor | None:
        return self.problem.pictures(params)

    def sources(self) -> dict[str, Tensor]:
        return self.problem.sources()

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        return Started(self.problem.warped(layers), self.start)

    def take(self, rows: Tensor) -> Problem:
        return Started(self.problem.take(rows), {name: value[rows] for name, value in self.start.items()})
