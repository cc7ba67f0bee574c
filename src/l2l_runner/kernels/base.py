"""The interface of a kernel: the arithmetic of an LSTM optimizer, forward and backward, in two calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2l_runner.kernels.preprocessing import FEATURES

State = tuple[Tensor, ...]


class Network(NamedTuple):
    """The weights and settings of an LSTM optimizer (for what it computes, see optimizers/lstm.py and rnnprop.py).

    Attributes:
        weights: of each layer, [4 hidden, inputs + hidden], the gates in the order input, forget, output, candidate.
        biases: of each layer, [4 hidden].
        readout_weight: [width, hidden].
        readout_bias: [width].
        preprocessing: of its inputs, a key of preprocessing.FEATURES.
        p: the range of log_sign.
        output_scale: factor of the read-out.
        squash: apply tanh to the read-out before it is scaled.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    readout_weight: Tensor
    readout_bias: Tensor
    preprocessing: str
    p: float
    output_scale: float
    squash: bool = False

    @property
    def hidden(self) -> int:
        return self.weights[0].shape[0] // 4

    @property
    def features(self) -> int:
        """Number of inputs of the first layer."""
        return self.weights[0].shape[1] - self.hidden

    @property
    def rows(self) -> int:
        """Numbers that a column reads per step, before preprocessing."""
        return self.features // FEATURES[self.preprocessing]

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """All learned tensors, in the order of the optimizer's own parameters."""
        return (self.readout_weight, self.readout_bias, *self.weights, *self.biases)


def in_memory(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory holds its numbers, for kernels that read through pointers.

    Pending negations and lazy zeros are carried out, because they exist in PyTorch's bookkeeping alone.

    Raises:
        TypeError: the tensor has no memory of its own, such as a sparse tensor, a DTensor or a FakeTensor.
    """
    if tensor.layout != torch.strided or type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        kind = type(tensor).__name__ if tensor.layout == torch.strided else str(tensor.layout)
        raise TypeError(f"The LSTM kernel was given a {kind}, and reads plain dense tensors only: use kernel=torch.")
    if tensor._is_zerotensor():
        return torch.zeros_like(tensor)
    if tensor.numel() and tensor.untyped_storage().nbytes() == 0:
        raise TypeError(f"The LSTM kernel was given a tensor {list(tensor.shape)} whose memory has been freed.")
    return tensor.resolve_neg()


class Kernel(ABC):
    """One way to compute an LSTM optimizer.

    A column is one run of the network: a coordinate (coordinatewise, then `width` is 1), or a problem with all of its
    `width` coordinates. It reads `rows` numbers per step: the gradients of the column's coordinates, or what an
    optimizer makes of them. The state is (h, c) of each layer in turn, each [hidden, columns]. Columns do not interact.

    Attributes:
        name: in the configuration.
        chunk: columns to replay at once; None for any number.
        recordable: columns × steps up to which it can record what it computes, to spare the replay.
    """

    name: str
    chunk: int | None = None
    recordable: int = 0

    @abstractmethod
    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the updates [width, columns] for gradients [rows, columns], and the next state."""

    @abstractmethod
    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        """Return ∂(Σ_t ⟨cotangents_t, u_t⟩)/∂φ, where the gradients and the first state lead to the updates u_t.

        Args:
            network: its parameters are the φ.
            grads: [steps, rows, columns], held constant.
            state: before the first step.
            cotangents: [steps, width, columns].

        Returns:
            One tensor for each of `network.parameters`.
        """

    def record_step(self, network: Network, grads: Tensor, state: State, record: list[Any]) -> tuple[Tensor, State]:
        """Do as `step`, and append to the record what `backward` needs."""
        raise NotImplementedError(f"{self.name} records nothing")

    def backward(self, network: Network, record: list[Any], cotangents: Tensor) -> tuple[Tensor, ...]:
        """Return what `replay` would, of the recorded steps."""
        raise NotImplementedError(f"{self.name} records nothing")
