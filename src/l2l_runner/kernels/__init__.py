"""The arithmetic of the LSTM optimizer: one reference in plain PyTorch, and faster ways to the same numbers.

To add a kernel: a file here with a class and an `unsupported`, and a line in `pick_kernel`.
"""

from __future__ import annotations

import logging

from l2l_runner.errors import ConfigError
from l2l_runner.kernels import cpp
from l2l_runner.kernels.base import Kernel, Network, State
from l2l_runner.kernels.preprocessing import FEATURES, preprocess
from l2l_runner.kernels.reference import TorchKernel

__all__ = ["FEATURES", "KERNELS", "Kernel", "Network", "State", "TorchKernel", "pick_kernel", "preprocess"]

KERNELS = ("auto", "torch", "cpp")

log = logging.getLogger(__name__)


def pick_kernel(name: str, network: Network) -> Kernel:
    """The kernel of that name for a network where it lies; `auto` takes the fastest that can serve.

    Raises:
        ConfigError: a kernel was asked for by name and can't serve.
    """
    parameter = network.readout_weight
    if name == "torch":
        return TorchKernel()
    reason = cpp.unsupported(parameter.device, parameter.dtype, len(parameter), network.preprocessing)
    if reason is None:
        return cpp.CppKernel()
    if name == "cpp":
        raise ConfigError(f"kernel=cpp cannot be had: {reason}; use kernel=auto or kernel=torch.")
    log.info("The fused kernel cannot be had (%s): plain PyTorch computes the same, more slowly.", reason)
    return TorchKernel()
