"""Where and how tensors live: device, precision, threads, and the folder of the data sets."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from l2l_runner.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class Runtime:
    """What a problem needs to know of the machine."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    data_root: Path = Path("data")
    download: bool = False


def pick_device(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` stands for on this machine.

    Raises:
        ConfigError: cuda was asked for by name and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda was asked for, but PyTorch sees no CUDA GPU on this machine: use device=cpu or device=auto, "
            "or install a CUDA build of PyTorch and a driver that fits it."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def runtime_of(device: str, dtype: str, data_root: str, download: bool) -> Runtime:
    """The runtime that these settings name.

    Raises:
        ConfigError: as `pick_device`.
    """
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    return Runtime(pick_device(device), dtypes[dtype], Path(data_root).expanduser().absolute(), download)


@contextmanager
def machine_settings(threads: int | None) -> Iterator[None]:
    """Set the number of threads and flush denormal numbers to zero, and put both back at the end.

    Gradients that vanish (the weights of dead pixels, say) become denormal numbers in the optimizer's state,
    on which a CPU computes several times more slowly; nothing that is learned depends on them.
    """
    _keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Tell glibc's allocator to reuse freed memory, where it is the allocator.

    By default it returns tensors of over 128 kB to the system at once, and each new one costs page faults: a third of
    the time of a meta-step on the MNIST MLP.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, str]:
    """What a reader needs to know of the machine to judge how long something took."""
    parts = {"processor": f"{os.cpu_count()} cores of {processor()}", "pytorch": f"PyTorch {torch.__version__}"}
    return ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}) | parts
