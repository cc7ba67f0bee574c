"""The variants, and the process that runs one of them.

A worker is one variant at one size, unroll and number of threads. It reports that it is ready. Then it answers each
request, one line of JSON on its standard input, with one line of JSON. It ends when its input does.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import problems
from benchmarks.variant import Unavailable, Variant


@dataclass(frozen=True)
class Kind:
    """The properties of a variant.

    Attributes:
        label: of its row in the table.
        ours: whether users start it by `python -m l2l_runner.train`, which sets environment variables.
        bytes: measured memory per coordinate and step, which predicts whether a window fits.
        only: the only size at which it is measured; None for all.
        backward: whether it computes a meta-gradient.
    """

    label: str
    ours: bool = False
    bytes: int = 0
    only: int | None = None
    backward: bool = True


VARIANTS = {
    "replay-cpp": Kind("replay, C++ kernel", ours=True, bytes=8),
    "replay-torch": Kind("replay, PyTorch kernel", ours=True, bytes=8),
    "graph": Kind("graph engine", ours=True, bytes=2500),
    "eager": Kind("clean eager PyTorch, nn.LSTM", bytes=1700),
    "jax": Kind("JAX, jit(value_and_grad(scan))", bytes=2200),
    "jax-columns": Kind("JAX, a column a coordinate", bytes=2200),
    "seed": Kind("the seed repository's way", bytes=1700, only=1280),
    "forward-cpp": Kind("forward only, C++ kernel", ours=True, backward=False),
    "forward-torch": Kind("forward only, PyTorch kernel", ours=True, backward=False),
    "optimizee": Kind("the optimizee alone, with SGD", ours=True, backward=False),
}


def environment(name: str, threads: int, inherited: dict[str, str], briefly: bool = False) -> dict[str, str]:
    """Return the environment of a worker: that of its user, not that of the bench.

    Variables of OpenMP, MKL and XLA are removed. Our variants get those that l2l_runner sets.

    Args:
        name: of a variant.
        threads: number of threads that it may use.
        inherited: the bench's own environment.
        briefly: let peers' threads spin as briefly as ours do.
    """
    clean = {k: v for k, v in inherited.items() if not k.startswith(("OMP_", "GOMP_", "KMP_", "MKL_", "XLA_", "JAX_"))}
    if briefly or VARIANTS[name].ours:
        from l2l_runner.launch.hydra import ENVIRONMENT  # imported here, because peers' environments do not have it

        clean |= ENVIRONMENT
    if name.startswith("jax"):  # XLA has no call for it
        clean |= {"JAX_PLATFORMS": "cpu", "NPROC": str(threads)}
        if threads == 1:
            clean["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return clean


def build(name: str, network: problems.Arrays, problem: problems.Arrays, steps: int, threads: int) -> Variant:
    """Create a variant, ready to compute windows.

    Raises:
        Unavailable: it does not run on this machine.
    """
    if name.startswith("jax"):
        try:
            from benchmarks.peer_jax import Jax
        except ImportError as error:
            raise Unavailable("JAX is not installed: `make bench-peers` measures it too") from error
        return Jax(network, problem, steps, columns=name == "jax-columns")
    if name in ("eager", "seed"):
        from benchmarks.peer_eager import Eager, Seed

        return (Eager if name == "eager" else Seed)(network, problem, steps, threads)
    from benchmarks.ours import Forward, OptimizeeAlone, Ours

    if name == "optimizee":
        return OptimizeeAlone(network, problem, steps, threads)
    if name == "graph":
        return Ours(network, problem, steps, threads, "graph", "torch")
    engine, kernel = name.split("-")
    made: Callable[..., Variant] = Forward if engine == "forward" else Ours
    return made(network, problem, steps, threads, "replay", kernel)


class Memory:
    """Growth of this process's peak resident memory since this object was made; None where it cannot be read."""

    def __init__(self) -> None:
        if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # otherwise memory freed before hides the memory of a window
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
            self.before: int | None = self._status("VmRSS")
        except OSError:
            self.before = None

    @staticmethod
    def _status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1]) * 1024

    def growth(self) -> int | None:
        return None if self.before is None else max(0, self._status("VmHWM") - self.before)


def measure(variant: Variant, seconds: float) -> dict[str, Any]:
    """Measure the mean cost of as many windows as fit into `seconds`, at least one."""
    windows, begun, worked, busy = 0, time.perf_counter(), time.process_time(), busy_seconds()
    while True:
        value = variant.window()
        windows += 1
        taken = time.perf_counter() - begun
        if taken * (windows + 1) / windows > seconds:
            break
    cores = (time.process_time() - worked) / taken
    others = None if busy is None else max(0.0, (busy_seconds() - busy) / taken - cores)
    return {"seconds": taken / windows, "cores": cores, "others": others, "meta_loss": value}


def busy_seconds() -> float | None:
    """Return the processor time used by all processes; None where the system does not say."""
    try:
        user, nice, system, _, _, *rest = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
    except (OSError, ValueError):
        return None
    return sum(map(int, (user, nice, system, *rest))) / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("torch", "jax", "jaxlib", "numpy"):
        if package in sys.modules:
            found[package] = importlib.metadata.version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="One variant of the bench; started by benchmarks.bench.")
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries and compilers must not mix with the answers

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        network, problem = problems.load(given.file)
        if not given.variant.startswith("jax"):  # JAX compiles for one shape, ahead of time
            warm = build(given.variant, network, problems.sample(problem), 3, given.threads)
            warm.window()
            warm.close()
        variant = build(given.variant, network, problem, given.steps, given.threads)
    except Unavailable as why:
        answer(unavailable=str(why))
        return
    memory = Memory()
    answer(ready=True, versions=versions())
    for line in sys.stdin:
        answer(**measure(variant, json.loads(line)["seconds"]), memory=memory.growth())


if __name__ == "__main__":
    main()
