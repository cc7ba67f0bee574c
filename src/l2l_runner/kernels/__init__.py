"""The arithmetic of the LSTM optimizer: one reference in plain PyTorch, and faster ways to the same numbers."""

from __future__ import annotations

from l2l_runner.kernels.base import Kernel, Network, State
from l2l_runner.kernels.preprocessing import FEATURES, preprocess
from l2l_runner.kernels.reference import TorchKernel

__all__ = ["FEATURES", "Kernel", "Network", "State", "TorchKernel", "preprocess"]
