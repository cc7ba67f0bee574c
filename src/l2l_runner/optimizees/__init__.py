"""Distributions over problems. To add one: a file here, a line in OPTIMIZEES, and a YAML in conf/optimizee/."""

from __future__ import annotations

from l2l_runner.optimizees.art import Art
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.classification import Classification
from l2l_runner.optimizees.imbalance import Imbalance, ImbalanceProblem
from l2l_runner.optimizees.maze import Maze
from l2l_runner.optimizees.module import Module
from l2l_runner.optimizees.omniglot import Omniglot
from l2l_runner.optimizees.quadratic import Quadratic
from l2l_runner.optimizees.reweighted import Reweighted
from l2l_runner.optimizees.rosenbrock import Rosenbrock
from l2l_runner.optimizees.wrapped import Scaled, Started, Wrapped

OPTIMIZEES: dict[str, type[Optimizee]] = {
    "quadratic": Quadratic,
    "mnist": Classification,
    "digits": Classification,
    "rosenbrock": Rosenbrock,
    "module": Module,
    "imbalance": Imbalance,
    "art": Art,
    "omniglot": Omniglot,
    "maze": Maze,
}

__all__ = [
    "OPTIMIZEES",
    "Art",
    "Classification",
    "Imbalance",
    "ImbalanceProblem",
    "Maze",
    "Module",
    "Omniglot",
    "Optimizee",
    "Problem",
    "Quadratic",
    "Reweighted",
    "Rosenbrock",
    "Scaled",
    "Started",
    "Wrapped",
]
