"""The arithmetic of the LSTM optimizer: a reference in plain PyTorch, and faster kernels for the same numbers.

To add a kernel: a file here with a class and an `unsupported`, and a line in `pick_kernel`.
"""

from __future__ import annotations

import logging

from l2l_runner.errors import ConfigError
from l2l_runner.kernels import cpp, triton_lstm
from l2l_runner.kernels.base import Kernel, Network, State
from l2l_runner.kernels.preprocessing import FEATURES, preprocess
from l2l_runner.kernels.reference import TorchKernel

__all__ = ["FEATURES", "KERNELS", "Kernel", "Network", "State", "TorchKernel", "pick_kernel", "preprocess"]

KERNELS = ("auto", "torch", "cpp", "triton")

log = logging.getLogger(__name__)


def pick_kernel(name: str, network: Network) -> Kernel:
    """Return the kernel of this name for a network on its present device; `auto` takes the fastest that can compute it.

    Raises:
        ConfigError: there is no such kernel, or a kernel was asked for by name and cannot compute it.
    """
    if name not in KERNELS:
        raise ConfigError(f"kernel is {name!r}; expected one of {', '.join(KERNELS)}.")
    if name == "torch":
        return TorchKernel()
    place = network.readout_weight.device, network.readout_weight.dtype
    fused = name if name != "auto" else "triton" if place[0].type == "cuda" else "cpp"
    reason = {"cpp": cpp, "triton": triton_lstm}[fused].unsupported(network, *place)
    if reason is None:
        return cpp.CppKernel() if fused == "cpp" else triton_lstm.TritonKernel()
    if name == "auto":
        log.info("Kernel %s is not available (%s): plain PyTorch computes the same, more slowly.", fused, reason)
        return TorchKernel()
    raise ConfigError(f"kernel={name} is not available here ({reason}): use kernel=auto or kernel=torch.")
