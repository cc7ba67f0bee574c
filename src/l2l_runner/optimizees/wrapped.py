"""Problems around other problems: in other coordinates, or from other starting points."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from l2l_runner import streams
from l2l_runner.layout import Params
from l2l_runner.optimizees.base import Problem


class Wrapped(Problem):
    """The same problems; a subclass overrides what it changes.

    Args:
        problem: what is wrapped.
    """

    def __init__(self, problem: Problem):
        self.problem = problem
        self.seeds, self.layout, self.tasks = problem.seeds, problem.layout, problem.tasks

    def inner(self, params: Params) -> Params:
        """Return the parameters of the wrapped problem, from those of this one; by default the same."""
        return params

    def around(self, problem: Problem) -> Problem:
        """Wrap another problem in the same way."""
        return type(self)(problem)

    def init(self) -> Params:
        return self.problem.init()

    def loss(self, params: Params, step: int) -> Tensor:
        return self.problem.loss(self.inner(params), step)

    def example_losses(self, params: Params, step: int) -> Tensor:
        return self.problem.example_losses(self.inner(params), step)

    def clean_loss(self, params: Params) -> Tensor:
        return self.problem.clean_loss(self.inner(params))

    def metrics(self, params: Params) -> dict[str, Tensor]:
        return self.problem.metrics(self.inner(params))

    def pictures(self, params: Params) -> Tensor | None:
        return self.problem.pictures(self.inner(params))

    def sources(self) -> dict[str, Tensor]:
        return self.problem.sources()

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        return self.around(self.problem.warped(layers))

    def take(self, rows: Tensor) -> Problem:
        return self.around(self.problem.take(rows))


class Started(Wrapped):
    """The same problems from other starting points.

    Args:
        problem: what is wrapped.
        start: the starting points, named tensors [problems, *shape]; they keep their graph.
    """

    def __init__(self, problem: Problem, start: Params):
        super().__init__(problem)
        self.start = start

    def around(self, problem: Problem) -> Problem:
        return Started(problem, self.start)

    def init(self) -> Params:
        return self.start

    def take(self, rows: Tensor) -> Problem:
        return Started(self.problem.take(rows), {name: value[rows] for name, value in self.start.items()})


class Scaled(Wrapped):
    """The same problems in coordinates of very different sizes.

    f_c(θ') = f(c ⊙ θ') from θ'_0 = θ_0 / c, with c = e^{U(−spread, spread)} for each coordinate of each problem (random
    scaling: Lv, Jiang & Li 2017, arXiv 1703.03633, section 4.1). Its gradients are c ⊙ ∇f(c ⊙ θ'). An optimizer that
    learns on such problems cannot rely on the sizes of gradients and parameters.

    Args:
        problem: f; its seeds fix c.
        spread: the largest |log c|; the paper takes 3.
    """

    def __init__(self, problem: Problem, spread: float):
        super().__init__(problem)
        self.spread = spread
        start = problem.init()
        exponents = (2 * streams.uniform(problem.seeds, problem.layout.size, "scaling") - 1) * spread
        factors = problem.layout.views(exponents.exp())
        self.factors = {name: factors[name].to(value.dtype) for name, value in start.items()}
        self.start = {name: value / self.factors[name] for name, value in start.items()}

    def around(self, problem: Problem) -> Problem:
        return Scaled(problem, self.spread)

    def init(self) -> Params:
        return self.start

    def inner(self, params: Params) -> Params:
        return {name: value * self.factors[name] for name, value in params.items()}
