"""The optimizees in PyTorch, for all variants written in it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.problems import Arrays, P

Data = dict[str, Tensor]


def tensors(arrays: Arrays, dtype: torch.dtype) -> Data:
    """Convert arrays to tensors, floating-point ones to the given precision."""
    made = {name: torch.from_numpy(array) for name, array in arrays.items() if array.dtype.kind != "U"}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in made.items()}


class TorchProblem:
    """An optimizee's losses.

    Attributes:
        start: θ_0, [problems, coordinates].
    """

    def __init__(self, arrays: Arrays, dtype: torch.dtype):
        self.kind = str(arrays["kind"])
        self.data = tensors(arrays, dtype)
        self.start = self.data["start"]

    def losses(self, params: Tensor, step: int) -> Tensor:
        """Compute the losses [problems] at params [problems, coordinates], on the minibatch of `step`."""
        data = self.data
        if self.kind == "quadratic":
            residual = (data["weight"] @ params.unsqueeze(-1)).squeeze(-1) - data["target"]
            return residual.square().sum(-1)
        if self.kind == "separable":
            return 0.5 * (data["curvature"] * (params - data["target"]).square()).sum(-1)
        index = data["index"][step]
        pixels, labels = data["pixels"][index], data["labels"][index]
        hidden, inputs = int(data["hidden"]), pixels.shape[1]
        w1, b1, w2, b2 = params[0].split([hidden * inputs, hidden, 10 * hidden, 10])
        out = torch.sigmoid(F.linear(pixels, w1.view(hidden, inputs), b1))
        return F.cross_entropy(F.linear(out, w2.view(10, hidden), b2), labels).view(1)


def log_sign(grads: Tensor) -> Tensor:
    """Turn gradients into features [*shape, 2] (Andrychowicz et al. 2016, appendix A), as a user would write it."""
    magnitude = grads.abs().clamp(min=math.exp(-P)).log() / P
    direction = (grads * math.exp(P)).clamp(-1, 1)
    return torch.stack([magnitude, direction], dim=-1)
