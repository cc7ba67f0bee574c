"""Rosenbrock's valley: a small non-convex optimizee with a curved, badly conditioned floor (Rosenbrock 1960)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from l2l_runner import streams
from l2l_runner.fields import at_least
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Rosenbrock(Optimizee):
    """f(θ) = Σ_i (1 − θ_i)² + b (θ_{i+1} − θ_i²)², from a random start; the minimum is 0, at θ = 1.

    Attributes:
        dim: number of coordinates.
        steepness: largest b; each problem draws its own, log-uniformly in [1, steepness].
        init_scale: standard deviation of the starting point.
    """

    dim: int = at_least(2)
    steepness: float = at_least(1)
    init_scale: float = at_least(0)

    def layout(self) -> Layout:
        return Layout({"theta": (self.dim,)})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        return _Rosenbrocks(self, seeds.to(runtime.device), runtime)


class _Rosenbrocks(Problem):
    def __init__(self, optimizee: Rosenbrock, seeds: Tensor, runtime: Runtime):
        self.seeds, self.layout = seeds, optimizee.layout()
        self.steepness = (optimizee.steepness ** streams.uniform(seeds, 1, "steepness")).to(runtime.dtype)
        self.start = (streams.normal(seeds, optimizee.dim, "start") * optimizee.init_scale).to(runtime.dtype)

    def init(self) -> Params:
        return {"theta": self.start}

    def loss(self, params: Params, step: int) -> Tensor:
        x, following = params["theta"][:, :-1], params["theta"][:, 1:]
        return ((1 - x).square() + self.steepness * (following - x.square()).square()).sum(-1)
