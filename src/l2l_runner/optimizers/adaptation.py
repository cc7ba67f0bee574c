"""Gradient descent from a learned starting point, through warp layers, or both.

The starting point θ0 is that of MAML (Finn et al. 2017, arXiv 1703.03400), Reptile (Nichol et al. 2018, arXiv
1803.02999) and Leap (Flennerhag et al. 2019, arXiv 1812.01054), which differ in how they learn it: see l2l_runner.meta.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, choice, named
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizees.wrapped import Started
from l2l_runner.optimizers.base import (
    START,
    UPDATES,
    WARP,
    LearnedConfig,
    LearnedRule,
    State,
    check_patterns,
    drawn_from,
    fits,
    key_of,
)
from l2l_runner.optimizers.transformed import PATTERNS, MetaSGDConfig, Transformed
from l2l_runner.optimizers.warp import WarpConfig


@dataclass(frozen=True, kw_only=True)
class AdaptationConfig(LearnedConfig):
    """u = −lr T(g), from a start θ0 and through warp layers.

    Attributes:
        lr: constant factor.
        start: learned, or random, as the problems give it.
        fresh: shell patterns of the names of parameters, such as those of a head, that start as the problems give them.
        own: keep the fresh parameters of each training task, and learn them too.
        warp: the layers at each of the network's sites; null for none.
        transform: T of each tensor: none, or one that is learned with the start, as in MetaSGD and meta-curvature.
    """

    name: str = named("maml", "fomaml", "reptile", "leap", "finetune", "warp", "warp_leap")
    lr: float = above(0)
    start: str = choice("learned", "random")
    fresh: tuple[str, ...]
    own: bool
    warp: WarpConfig | None
    transform: str = choice(*PATTERNS)

    def __post_init__(self) -> None:
        """Refuse settings that would have no effect.

        Raises:
            ConfigError: `fresh` or `own` is set for a random start, or `own` without `fresh`.
        """
        if not self.learns_start and (self.own or self.fresh):
            raise ConfigError(
                "optimizer.fresh and optimizer.own change a learned start, but optimizer.start=random learns no start: "
                "use optimizer.start=learned, or optimizer.fresh=[] and optimizer.own=false."
            )
        if self.own and not self.fresh:
            raise ConfigError(
                "optimizer.own=true keeps the parameters that optimizer.fresh names for each task, but it names none: "
                "use optimizer.fresh=[head.*], say, or optimizer.own=false."
            )

    @property
    def learns_start(self) -> bool:
        """Whether θ0 is learned."""
        return self.start == "learned"

    @property
    def learns(self) -> frozenset[str]:
        parts = {START: self.learns_start, WARP: self.warp is not None, UPDATES: self.transform != "none"}
        return frozenset(part for part, learned in parts.items() if learned)

    def build(self, layout: Layout, generator: torch.Generator) -> Adaptation:
        with drawn_from(generator):
            return Adaptation(self, layout, generator)


class Adaptation(LearnedRule):
    """Gradient descent from the start and through the warp layers that the settings ask for.

    Attributes:
        start: θ0 of each tensor that has a learned start, of the tensor's shape, by `key_of` its name.
        heads: what each training task keeps for itself, [tasks, *shape], by `key_of` the tensor's name.
        warp: the layers, by the names of their sites.
        transforms: T, where gradients are transformed.
    """

    def __init__(self, config: AdaptationConfig, layout: Layout, generator: torch.Generator):
        super().__init__()
        self.config, self.layout = config, layout
        if config.own and layout.tasks is None:
            raise ConfigError(
                "optimizer.own=true keeps parameters for each task, but the problems of this optimizee belong to no "
                "tasks: use optimizer.own=false, or optimizee=omniglot."
            )
        check_patterns("optimizer.fresh", config.fresh, layout)
        sites = {name: site for name, site in layout.sites.items() if not site.hidden} if config.warp else {}
        if config.warp is not None and not sites:
            raise ConfigError(
                "optimizer.warp needs an optimizee whose network takes warp layers, such as optimizee=omniglot, but "
                "this one takes none: use optimizer.warp=null."
            )
        fresh = {name for name in layout.shapes if fits(name, config.fresh)}
        learned = [name for name in layout.shapes if config.learns_start and name not in fresh]
        self.start = nn.ParameterDict(
            {key_of(name): nn.Parameter(torch.zeros(layout.shapes[name])) for name in learned}
        )
        self.heads = nn.ParameterDict(
            {key_of(name): nn.Parameter(torch.zeros(layout.tasks, *layout.shapes[name])) for name in sorted(fresh)}
            if config.own and layout.tasks is not None
            else {}
        )
        self.warp = nn.ModuleDict({name: config.warp.build(site) for name, site in sites.items() if config.warp})
        self.transforms: Transformed | None = None
        if config.transform != "none":
            rule = MetaSGDConfig(lr=config.lr, patterns={"*": config.transform})
            self.transforms = Transformed(rule, layout)
        if config.learns_start and not (self.start or self.heads):
            raise ConfigError(
                f"optimizer.fresh={list(config.fresh)} leaves no part of the start to learn: use fewer patterns, or "
                "optimizer.start=random with optimizer.warp."
            )
        if not list(self.parameters()):
            raise ConfigError(
                "This optimizer has nothing to learn: use optimizer.start=learned, or give it optimizer.warp."
            )

    def initialise_from(self, problem: Problem) -> None:
        with torch.no_grad():
            for name, value in problem.init().items():
                if key_of(name) in self.start:
                    self.start[key_of(name)].copy_(value[0])
                if key_of(name) in self.heads:
                    self.heads[key_of(name)].copy_(value[0].expand_as(self.heads[key_of(name)]))

    def adapt(self, problem: Problem) -> Problem:
        if self.warp:
            problem = problem.warped(dict(self.warp.items()))
        return Started(problem, self._start(problem)) if self.start or self.heads else problem

    def _start(self, problem: Problem) -> Params:
        params = {name: value.detach() for name, value in problem.init().items()}
        for name, value in params.items():
            if key_of(name) in self.start:
                params[name] = self.start[key_of(name)].expand_as(value)
            elif key_of(name) in self.heads:
                assert problem.tasks is not None
                heads = self.heads[key_of(name)]
                known = (problem.tasks < len(heads)).view(-1, *[1] * (value.dim() - 1))
                params[name] = torch.where(known, heads[problem.tasks.clamp(max=len(heads) - 1)], value)
        return params

    def fitted(self, layout: Layout) -> Adaptation:
        if layout.shapes != self.layout.shapes or (self.warp and layout.sites != self.layout.sites):
            mine, other = (", ".join(f"{n} {list(s)}" for n, s in one.shapes.items()) for one in (self.layout, layout))
            raise ConfigError(
                f"This optimizer has learned a start or warp layers for the tensors {mine}, but the optimizee has "
                f"{other}: evaluate it on an optimizee with the network that it was trained on."
            )
        return self

    def init(self, params: Tensor) -> State:
        return ()

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        if self.transforms is not None:
            return self.transforms.update(grads, (), params)
        return -self.config.lr * grads, ()

    def rates(self) -> dict[str, Tensor]:
        return self.transforms.rates() if self.transforms is not None else {}
