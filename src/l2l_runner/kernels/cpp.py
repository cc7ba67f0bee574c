"""The fused CPU kernel: lstm.cpp, compiled on first use and called through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2l_runner.kernels.base import Kernel, Network, State, in_memory
from l2l_runner.kernels.build import BuildError, load_library

SOURCE = Path(__file__).with_name("lstm.cpp")
SUFFIXES = {torch.float32: "float32", torch.float64: "float64"}


class _Network(ctypes.Structure):
    """`struct Network` of lstm.cpp."""

    _fields_ = (
        ("hidden", ctypes.c_int64),
        ("layers", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("log_sign", ctypes.c_int64),
        ("squash", ctypes.c_int64),
        ("p", ctypes.c_double),
        ("output_scale", ctypes.c_double),
        ("weights", ctypes.c_void_p),
        ("biases", ctypes.c_void_p),
        ("readout_weight", ctypes.c_void_p),
        ("readout_bias", ctypes.c_void_p),
    )


def unsupported(network: Network, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this kernel cannot compute the network, as a phrase; None if it can."""
    if device.type != "cpu":
        return f"it computes on the CPU, not on {device}"
    if dtype not in SUFFIXES:
        return f"it has no {dtype}"
    if len(network.readout_weight) != 1:
        return "it is for coordinatewise optimizers"
    if network.preprocessing not in ("none", "log_sign"):
        return f"it has no preprocessing {network.preprocessing}"
    try:
        load_library(SOURCE)
    except BuildError as error:
        return str(error)
    return None


class CppKernel(Kernel):
    """A kernel in C++: blocks of columns that stay in the CPU's cache, and as many threads as PyTorch uses.

    The same number of threads gives the same bits.
    """

    name = "cpp"
    chunk = 1 << 16  # bounds the caller's memory for a replay; the kernel itself needs one block per thread

    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        _check(network, grads, *state)
        grads = _whole(grads)
        state, stride = _with_one_stride(state)
        columns = grads.shape[-1]
        updates = grads.new_empty(1, columns)
        following = tuple(tensor.new_empty(network.hidden, columns) for tensor in state)
        _call(
            *("step", grads.dtype, network, columns),
            *(grads.data_ptr(), _pointers(state), stride),
            *(updates.data_ptr(), _pointers(following), columns),
        )
        return updates, following

    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        _check(network, grads, cotangents, *state)
        state, stride = _with_one_stride(state)
        grads, cotangents = _with_rows(in_memory(grads)), _with_rows(in_memory(cotangents))
        steps, _, columns = grads.shape
        sizes = [parameter.numel() for parameter in network.parameters]
        totals = torch.zeros(sum(sizes), dtype=torch.float64, device="cpu")
        _call(
            *("replay", grads.dtype, network, steps, columns),
            *(grads.data_ptr(), *grads.stride()[:2], _pointers(state), stride),
            *(cotangents.data_ptr(), cotangents.stride(0), totals.data_ptr()),
        )
        parts = torch.split(totals.to(grads.dtype), sizes)
        return tuple(part.view_as(like) for part, like in zip(parts, network.parameters, strict=True))


@lru_cache(maxsize=8)
def _function(name: str, dtype: torch.dtype) -> Any:
    function = getattr(load_library(SOURCE), f"l2l_{name}_{SUFFIXES[dtype]}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = {
        "step": [pointer, integer, pointer, pointer, integer, pointer, pointer, integer, integer],
        "replay": [
            *(pointer, integer, integer, pointer, integer, integer, pointer, integer),
            *(pointer, integer, pointer, integer),
        ],
    }[name]
    return function


def _whole(tensor: Tensor) -> Tensor:
    return in_memory(tensor).contiguous()


def _with_rows(tensor: Tensor) -> Tensor:
    """Return the tensor with contiguous rows; slices of columns need no copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _with_one_stride(state: State) -> tuple[State, int]:
    """Return the state with contiguous rows, of the same stride in all tensors, and that stride."""
    state = tuple(map(in_memory, state))
    stride = state[0].stride(0)
    if any(tensor.stride() != (stride, 1) for tensor in state):
        state = tuple(tensor.contiguous() for tensor in state)
        stride = state[0].stride(0)
    return state, stride


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _check(network: Network, grads: Tensor, *tensors: Tensor) -> None:
    """Refuse tensors that the library would misread: it sees only pointers.

    Raises:
        TypeError: the tensors are not of one type that the library knows, or not on the CPU.
        ValueError: the number of rows is not what the network reads.
    """
    if grads.shape[-2] != network.rows:
        raise ValueError(f"The LSTM kernel was given {grads.shape[-2]} rows a column; expected {network.rows}.")
    kinds = {(tensor.dtype, tensor.device.type) for tensor in (*network.parameters, grads, *tensors)}
    if len(kinds) > 1 or grads.dtype not in SUFFIXES or grads.device.type != "cpu":
        found = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise TypeError(f"The LSTM kernel was given {found}; expected all float32 or all float64, on the CPU.")


def _call(name: str, dtype: torch.dtype, network: Network, *arguments: Any) -> None:
    weights, biases = (list(map(_whole, tensors)) for tensors in (network.weights, network.biases))
    readout = [_whole(network.readout_weight), _whole(network.readout_bias)]
    of_weights, of_biases = _pointers(weights), _pointers(biases)
    struct = _Network(
        *(network.hidden, len(weights), network.rows, network.preprocessing == "log_sign", network.squash),
        *(network.p, network.output_scale),
        *(ctypes.addressof(of_weights), ctypes.addressof(of_biases), *(tensor.data_ptr() for tensor in readout)),
    )
    if _function(name, dtype)(ctypes.byref(struct), *arguments, torch.get_num_threads()) != 0:
        raise MemoryError("The LSTM kernel found no memory.")
