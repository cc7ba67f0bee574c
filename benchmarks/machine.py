"""The machine, and its measured peak of floating-point operations per second."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

from l2l_runner.runtime import processor

HERE = Path(__file__).parent


def free_memory() -> int | None:
    """Return the bytes that new processes may use; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def compiler() -> str | None:
    """Return the system's C++ compiler: CXX, or the first one found."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)


def describe() -> dict[str, str | int | None]:
    """Describe the machine for readers of the results."""
    found = compiler()
    told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout if found else ""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "compiler": told.splitlines()[0] if told else None,
    }


def build_fma(folder: Path) -> Path | None:
    """Compile fma.cpp for this processor; return None where that is not possible."""
    found, program = compiler(), folder / "fma"
    if found is None:
        return None
    command = [found, "-O3", "-march=native", "-std=c++17", "-pthread", str(HERE / "fma.cpp"), "-o", str(program)]
    ended = subprocess.run(command, capture_output=True, check=False)
    return program if ended.returncode == 0 else None


def peak(threads: int, fma: Path | None) -> dict[str, float]:
    """Measure GFLOP/s of multiply-adds and of PyTorch's matrix products, where possible."""
    measured = {}
    if fma is not None:
        ended = subprocess.run([str(fma), str(threads)], capture_output=True, text=True, check=False)
        if ended.returncode == 0:
            measured["multiply-adds"] = float(ended.stdout)
    command = [sys.executable, "-m", "benchmarks.machine", "--threads", str(threads)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent)
    if ended.returncode == 0:
        measured["matmul"] = float(json.loads(ended.stdout))
    return measured


def matmul(threads: int, size: int = 2048, repeats: int = 8) -> float:
    """Measure GFLOP/s of PyTorch's product of two large matrices, in float32."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        begun = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - begun)
    return 2e-9 * size**3 / best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GFLOP/s of PyTorch's matrix product.")
    parser.add_argument("--threads", type=int, required=True)
    print(json.dumps(matmul(parser.parse_args().threads)))
