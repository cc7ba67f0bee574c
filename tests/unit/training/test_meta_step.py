"""A meta-step: its updates of the parameters."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn

from l2l_runner.meta.base import global_norm
from l2l_runner.training.meta_step import meta_update


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_meta_updates_take_gradients_in_whatever_order_of_memory(kind):
    """As those of convolutions under vmap are; PyTorch's own fused optimizers take them for contiguous."""
    generator = torch.Generator().manual_seed(0)
    layers, reference = (cast(Any, nn.Conv2d(3, 4, 3)) for _ in range(2))
    reference.load_state_dict(layers.state_dict())
    fused, plain = kind(layers.parameters(), lr=0.1, fused=True), kind(reference.parameters(), lr=0.1)
    for _ in range(3):
        weight = torch.randn(3, 3, 4, 3, generator=generator).permute(2, 3, 0, 1)
        bias = torch.randn(8, generator=generator)[::2]
        reference.weight.grad, reference.bias.grad = weight.contiguous(), bias.contiguous()
        plain.step()
        meta_update(fused, layers, (weight, bias), global_norm((weight, bias)), torch.ones(()), None)
    torch.testing.assert_close(layers.weight, reference.weight)
    torch.testing.assert_close(layers.bias, reference.bias)
