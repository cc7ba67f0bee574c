"""Parameters that are sharded over processes (DTensor: FSDP2, tensor parallelism), as each process has them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor."""
    module = sys.modules.get("torch.distributed.tensor")  # an import takes long; before it there is no DTensor
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Any) -> Tensor:
    """Return this process's shard of a DTensor, and any other tensor as it is."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor
    return shard


def local_grad(param: Any) -> Tensor:
    """Return the gradient for this process's shard of a parameter, summed over processes where that is pending."""
    grad = param.grad
    if is_sharded(param) and grad.placements != param.placements:
        grad = grad.redistribute(placements=param.placements)
    return local(grad)


def sharded_like(param: Any, value: Tensor) -> Tensor:
    """Return a value [rows, *shard] of each process as one tensor [rows, *param.shape], sharded as the parameter is.

    Scalars, which all processes have alike, stay as they are.
    """
    if not is_sharded(param) or not value.dim():
        return value
    from torch.distributed.tensor import DTensor

    shape = torch.Size((len(value), *param.shape))
    stride = value.new_empty(shape, device="meta").stride()
    made: Tensor = DTensor.from_local(
        value, param.device_mesh, _placements(param), run_check=False, shape=shape, stride=stride
    )
    return made


def alike(param: Any, value: Any) -> bool:
    """Return whether a value [rows, *param.shape] is sharded as the parameter is."""
    if not (is_sharded(param) and is_sharded(value)):
        return is_sharded(param) == is_sharded(value)
    return value.device_mesh == param.device_mesh and list(value.placements) == _placements(param)


def _placements(param: Any) -> list[Any]:
    """Return the parameter's placements with each dimension one later."""
    from torch.distributed.tensor import Shard

    def later(placement: Any) -> Any:
        if hasattr(placement, "split_factor"):  # FSDP2 over tensor parallelism
            return type(placement)(placement.dim + 1, split_factor=placement.split_factor)
        return Shard(placement.dim + 1) if placement.is_shard() else placement

    return [later(placement) for placement in param.placements]
