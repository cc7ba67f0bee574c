"""SGD whose gradients pass through learned transforms: MetaSGD, meta-curvature, Kronecker factors, any module, rates.

Each tensor has one transform, from `l2l_runner.optim`. The transforms are meta-learned.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.func import vmap

from l2l_runner.errors import ConfigError, reason
from l2l_runner.fields import above, at_least, choice, named
from l2l_runner.imports import module_maker
from l2l_runner.layout import Layout
from l2l_runner.optim import (
    ByPattern,
    KroneckerLinear,
    KroneckerTransform,
    MetaCurvatureTransform,
    MetaSGD,
    ModuleTransform,
    Transform,
)
from l2l_runner.optim.transforms import make_transforms
from l2l_runner.optimizers.base import LearnedConfig, LearnedRule, State, check_patterns, drawn_from, fits, key_of

PATTERNS: dict[str, Transform | None] = {
    "none": None,
    "metasgd": MetaSGD,
    "metacurvature": MetaCurvatureTransform,
    "kronecker": KroneckerTransform(KroneckerLinear),
}
LARGEST = 4096  # elements of a tensor that a module of numel → numel is offered for


@dataclass(frozen=True, kw_only=True)
class TransformedConfig(LearnedConfig):
    """u = −lr T(g), with one transform T per tensor, at the start the identity or a rate.

    Attributes:
        lr: constant factor.
        patterns: other transforms by shell patterns of parameter names, of which the first that fits counts; null for
            none.
    """

    lr: float = above(0)
    patterns: dict[str, str] | None = choice("none", "metasgd", "metacurvature", "kronecker")

    @abstractmethod
    def transform(self) -> Transform:
        """Return what makes the transforms of the tensors that fit no pattern."""

    def build(self, layout: Layout, generator: torch.Generator) -> Transformed:
        with drawn_from(generator):
            return Transformed(self, layout)


@dataclass(frozen=True, kw_only=True)
class MetaSGDConfig(TransformedConfig):
    """A learned rate per element, lr at the start (Li et al. 2017, arXiv 1707.09835)."""

    name: str = named("metasgd")

    def transform(self) -> Transform:
        return MetaSGD


@dataclass(frozen=True, kw_only=True)
class MetaCurvatureConfig(TransformedConfig):
    """A learned matrix for each dimension of a tensor (Park & Oliva 2019, arXiv 1902.03356)."""

    name: str = named("metacurvature")

    def transform(self) -> Transform:
        return MetaCurvatureTransform


@dataclass(frozen=True, kw_only=True)
class KroneckerConfig(TransformedConfig):
    """A learned Kronecker product for each tensor (Arnold et al. 2019, arXiv 1910.13603).

    Attributes:
        psd: keep it positive semi-definite.
        bias: add a learned constant.
    """

    name: str = named("kronecker")
    psd: bool
    bias: bool

    def transform(self) -> Transform:
        return KroneckerTransform(KroneckerLinear, bias=self.bias, psd=self.psd)


@dataclass(frozen=True, kw_only=True)
class ModuleTransformConfig(TransformedConfig):
    """A module for each tensor, from all of its elements to all of its elements.

    Attributes:
        module: import path of a class that is called with (numel, numel), such as torch.nn.Linear.
        identity: add the gradient to the module's output, and start the module at zero.
    """

    name: str = named("module_transform")
    module: str
    identity: bool

    def transform(self) -> Transform:
        make = module_maker(self.module, "optimizer.module")

        def made(n: int, m: int) -> nn.Module:
            try:
                module = make(n, m)
            except Exception as error:  # the user's code may raise anything
                raise ConfigError(
                    f"optimizer.module={self.module} could not be called with ({n}, {m}): {reason(error)}; expected a "
                    "module from so many inputs to so many outputs, such as torch.nn.Linear."
                ) from error
            return _Residual(module) if self.identity else module

        return ModuleTransform(made)

    def build(self, layout: Layout, generator: torch.Generator) -> Transformed:
        for name, shape in layout.shapes.items():
            numel = prod(shape)
            if numel > LARGEST and not fits(name, self.patterns or {}):
                raise ConfigError(
                    f"optimizer=module_transform needs a module of {numel:,} inputs and outputs for {name}; expected "
                    f"at most {LARGEST:,}: name another kind in optimizer.patterns, as in {{{name}:metacurvature}}, "
                    "or use optimizer=metacurvature or optimizer=kronecker."
                )
        return super().build(layout, generator)


@dataclass(frozen=True, kw_only=True)
class HypergradientConfig(TransformedConfig):
    """Learned rates: lr · rate, to be learned while the optimizee trains (Baydin et al. 2018, arXiv 1703.04782).

    Attributes:
        init: the rates at the start.
        rates: one for all (`global`), one per `tensor`, or one per `element`.
    """

    name: str = named("hypergradient")
    init: float = at_least(0)
    rates: str = choice("global", "tensor", "element")

    def transform(self) -> Transform:
        if self.rates == "element":
            return lambda param: MetaSGD(param, self.init)
        shared = MetaSGD(torch.empty(()), self.init)
        return lambda param: shared if self.rates == "global" else MetaSGD(param, self.init, per="tensor")


class Transformed(LearnedRule):
    """u = −lr T(g) for each tensor by itself; there is no state.

    Attributes:
        transforms: T of each tensor, by `key_of` its name.
    """

    def __init__(self, config: TransformedConfig, layout: Layout):
        super().__init__()
        self.config, self.layout = config, layout
        patterns = {pattern: PATTERNS[kind] for pattern, kind in (config.patterns or {}).items()}
        check_patterns("optimizer.patterns", patterns, layout)
        params = [(name, torch.empty(shape)) for name, shape in layout.shapes.items()]
        patterns.setdefault("*", config.transform())
        made = make_transforms(params, ByPattern(patterns))
        self.transforms = nn.ModuleDict(
            {key_of(name): module for (name, _), module in zip(params, made, strict=True) if module}
        )
        if not list(self.parameters()):
            raise ConfigError("optimizer.patterns leaves nothing to learn: give some parameter a transform.")

    def fitted(self, layout: Layout) -> Transformed:
        if layout.shapes != self.layout.shapes:
            expected, found = (
                ", ".join(f"{n} {list(s)}" for n, s in one.shapes.items()) for one in (self.layout, layout)
            )
            raise ConfigError(
                f"This optimizer has a transform for each of the tensors {expected}, but the optimizee has {found}: "
                "evaluate it on the optimizee that it was trained on."
            )
        return self

    def init(self, params: Tensor) -> State:
        return ()

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        parts = {name: self._transformed(key_of(name), part) for name, part in self.layout.views(grads).items()}
        return -self.config.lr * self.layout.flatten(parts), ()

    def _transformed(self, key: str, grads: Tensor) -> Tensor:
        if key not in self.transforms:
            return grads
        transform = self.transforms[key]
        # A single problem does without vmap, which costs more than most transforms.
        return transform(grads[0]).unsqueeze(0) if len(grads) == 1 else vmap(transform)(grads)  # type: ignore[no-any-return]

    def rates(self) -> dict[str, Tensor]:
        pairs = (
            (name, self.transforms[key_of(name)]) for name in self.layout.shapes if key_of(name) in self.transforms
        )
        return {name: self.config.lr * one.rate.detach() for name, one in pairs if isinstance(one, MetaSGD)}

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():  # without a state, steps are independent, like problems: one batch of all is faster
            updates, _ = self.update(grads.flatten(0, 1), (), grads)
            return torch.autograd.grad(updates, list(self.parameters()), cotangents.flatten(0, 1))


class _Residual(nn.Module):
    """x + module(x), the identity at the start: the module's last parameters start at zero."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module
        last = [part for part in module.modules() if list(part.parameters(recurse=False))][-1:]
        for part in last:
            for parameter in part.parameters(recurse=False):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        update: Tensor = x + self.module(x)
        return update
