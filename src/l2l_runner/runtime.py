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
    """What a problem needs to know about the machine."""

    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    data_root: Path = Path("data")
    download: bool = False


def pick_device(name: str) -> torch.device:
    """Return the device that `auto`, `cpu` or `cuda` stands for on this machine.

    Raises:
        ConfigError: the name is cuda, and this machine has no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "device=cuda needs a GPU, but PyTorch finds none on this machine: use device=cpu or device=auto, or "
            "install a CUDA build of PyTorch and a matching driver."
        )
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def runtime_of(device: str, dtype: str, data_root: str, download: bool) -> Runtime:
    """Return the runtime that these settings describe.

    Raises:
        ConfigError: as `pick_device`.
    """
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    return Runtime(pick_device(device), dtypes[dtype], Path(data_root).expanduser().absolute(), download)


@contextmanager
def machine_settings(threads: int | None) -> Iterator[None]:
    """Set the number of threads and flush denormal numbers to zero, and restore both at the end.

    Vanishing gradients, such as those of the weights of dead pixels, become denormal numbers in the optimizer's state.
    A CPU computes with these several times more slowly, and nothing that is learned depends on them.
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
    """Make glibc's allocator, if it is in use, keep freed memory for reuse.

    By default it returns tensors of over 128 kB to the system at once, and each new one costs page faults: a third of
    the time of a meta-step on the MNIST MLP.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def describe(device: torch.device) -> dict[str, str]:
    """Describe the machine, so that readers can judge timings."""
    parts = {"processor": f"{os.cpu_count()} cores of {processor()}", "pytorch": f"PyTorch {torch.__version__}"}
    return ({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}) | parts
