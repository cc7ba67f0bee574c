"""Random quadratics ‖Wθ − y‖²: the first optimizee of Andrychowicz et al. 2016 (arXiv 1606.04474, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from l2l_runner import streams
from l2l_runner.fields import at_least, choice
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Quadratic(Optimizee):
    """f(θ) = ‖Wθ − y‖², with W [dim, dim] and y [dim] drawn anew for each problem.

    The paper's text draws them from N(0, 1) (`gaussian`). The code released with it draws them from U[0, 1)
    (`uniform`), which also gives the scale of the paper's figure 4.

    Attributes:
        distribution: gaussian or uniform.
        dim: number of coordinates of θ.
        init_scale: standard deviation of the starting point; 0 starts at the origin.
    """

    distribution: str = choice("gaussian", "uniform")
    dim: int = at_least(1)
    init_scale: float = at_least(0)

    def layout(self) -> Layout:
        return Layout({"theta": (self.dim,)})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        return _Quadratics(self, seeds.to(runtime.device), runtime)


class _Quadratics(Problem):
    def __init__(self, optimizee: Quadratic, seeds: Tensor, runtime: Runtime):
        dim = optimizee.dim
        draw = streams.normal if optimizee.distribution == "gaussian" else streams.uniform
        self.seeds, self.layout = seeds, optimizee.layout()
        self.weight = draw(seeds, dim * dim, "weight").to(runtime.dtype).view(-1, dim, dim)
        self.target = draw(seeds, dim, "target").to(runtime.dtype)
        self.start = (streams.normal(seeds, dim, "start") * optimizee.init_scale).to(runtime.dtype)

    def init(self) -> Params:
        return {"theta": self.start}

    def loss(self, params: Params, step: int) -> Tensor:
        residual = (self.weight @ params["theta"].unsqueeze(-1)).squeeze(-1) - self.target
        return residual.square().sum(-1)
