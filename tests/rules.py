"""A learned rule of two methods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2l_runner.optimizers import LearnedRule, State

F64 = torch.float64


class Momentum(LearnedRule):
    """Heavy-ball descent with a learned rate and a learned momentum; it counts its steps in a scalar."""

    coordinatewise = True

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.02, dtype=F64))
        self.momentum = nn.Parameter(torch.tensor(0.6, dtype=F64))
        self.unused = nn.Parameter(torch.ones(2, dtype=F64))

    def init(self, params: Tensor) -> State:
        return torch.zeros_like(params), params.new_zeros(())

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        velocity, count = self.momentum * state[0] + grads, state[1] + 1
        return -self.rate * velocity * (1 + 1 / count), (velocity, count)
