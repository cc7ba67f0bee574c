"""Small networks, and transforms of their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l2l_runner.optim import (
    KroneckerLinear,
    KroneckerTransform,
    MetaCurvatureTransform,
    MetaSGD,
)

TRANSFORMS: dict[str, Callable[[Tensor], nn.Module]] = {
    "metasgd": MetaSGD,
    "metasgd a tensor": lambda param: MetaSGD(param, per="tensor"),
    "metacurvature": MetaCurvatureTransform,
    "kronecker": KroneckerTransform(KroneckerLinear, psd=False),
    "kronecker psd bias": KroneckerTransform(KroneckerLinear, bias=True, psd=True),
}


def scattered(module: nn.Module, seed: int = 0) -> Any:
    """The module with other parameters than those at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


# LearnableOptimizer


def net() -> Any:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 1, 3, 3, generator=generator)
    return model(images).square().mean() + model(-images).sin().sum()
