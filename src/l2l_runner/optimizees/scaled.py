"""Random scaling of parameters (Lv, Jiang & Li 2017, "Learning Gradient Descent: Better Generalization and Longer
Horizons", arXiv 1703.03633, section 4.1): the same problems in coordinates of very different sizes.
"""

from __future__ import annotations

from torch import Tensor

from l2l_runner import streams
from l2l_runner.layout import Params
from l2l_runner.optimizees.base import Problem


class Scaled(Problem):
    """f_c(θ') = f(c ⊙ θ') from θ'_0 = θ_0 / c, with c = e^{U(−spread, spread)} for each coordinate of each problem.

    Its gradients are c ⊙ ∇f(c ⊙ θ'). An optimizer that learns on such problems can't rely on the sizes that gradients
    and parameters have in one of them.

    Args:
        problem: f; its seeds fix c.
        spread: the largest |log c|; the paper takes 3.
    """

    def __init__(self, problem: Problem, spread: float):
        self.problem, self.seeds, self.layout = problem, problem.seeds, problem.layout
        start = problem.init()
        exponents = (2 * streams.uniform(problem.seeds, problem.layout.size, "scaling") - 1) * spread
        factors = problem.layout.views(exponents.exp())
        self.factors = {name: factors[name].to(value.dtype) for name, value in start.items()}
        self.start = {name: value / self.factors[name] for name, value in start.items()}

    def init(self) -> Params:
        return self.start

    def loss(self, params: Params, step: int) -> Tensor:
        return self.problem.loss(self._unscaled(params), step)

    def metrics(self, params: Params) -> dict[str, Tensor]:
        return self.problem.metrics(self._unscaled(params))

    def _unscaled(self, params: Params) -> Params:
        return {name: value * self.factors[name] for name, value in params.items()}
