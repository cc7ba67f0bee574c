"""Compile a C++ file on first use, into a cache folder; later uses only load it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

COMPILERS = ("c++", "g++", "clang++")
BASE = ("-std=c++17", "-O3", "-fPIC", "-shared")
# From the fastest to what every compiler accepts; without OpenMP the kernel has one thread.
ATTEMPTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
TIME_LIMIT = 300  # seconds


class BuildError(Exception):
    """The library cannot be built; the message says why, as a phrase."""


def cache_folder() -> Path:
    """Return the folder of libraries, in $L2L_CACHE, else $XDG_CACHE_HOME/l2l_runner, else ~/.cache/l2l_runner."""
    if os.environ.get("L2L_CACHE"):
        return Path(os.environ["L2L_CACHE"]).expanduser().absolute() / "kernels"
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base.absolute() / "l2l_runner" / "kernels"


def find_compiler() -> str:
    """Return the path of the C++ compiler: $CXX, else the first of `COMPILERS` on the PATH.

    Raises:
        BuildError: no compiler is found.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else COMPILERS:
        found = shutil.which(name)
        if found:
            return found
    raise BuildError(f"the compiler CXX={wanted} is not there" if wanted else "no C++ compiler is on the PATH")


def cpu_description() -> str:
    """Describe the CPU's instructions, as far as the system tells them: equal texts mean equal instructions."""
    lines = [platform.machine(), platform.processor()]
    try:
        text = Path("/proc/cpuinfo").read_text()
        wanted = ("model name", "flags", "features", "cpu implementer", "cpu part")
        lines += sorted({line for line in text.splitlines() if line.lower().startswith(wanted)})
    except OSError:  # not Linux
        pass
    return "\n".join(lines)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} could not be run ({error})") from error


def _compile(compiler: str, source: Path, target: Path) -> None:
    """Compile to a file of this process, then rename it: other processes see a whole library or none."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="build-") as scratch:
        built = Path(scratch) / target.name
        for flags in ATTEMPTS:
            ended = _run([compiler, *BASE, *flags, str(source), "-o", str(built)])
            if ended.returncode == 0:
                os.replace(built, target)
                return
    complaint = next((line for line in ended.stderr.splitlines() if "error" in line), f"exit code {ended.returncode}")
    raise BuildError(f"{compiler} could not compile {source.name}: {complaint.strip()}")


def library_path(source: Path, compiler: str) -> Path:
    """Return the library's path in the cache, which is specific to source, compiler, CPU and flags."""
    version = _run([compiler, "--version"]).stdout
    key = "\0".join([source.read_text(), compiler, version, cpu_description(), repr((BASE, ATTEMPTS))])
    return cache_folder() / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"


@lru_cache(maxsize=8)
def load_library(source: Path) -> ctypes.CDLL:
    """Load the library of a C++ file; compile it first, unless the cache has it.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    compiler = find_compiler()
    path = library_path(source, compiler)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                pass  # a damaged file: compile it again
        _compile(compiler, source, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path.parent} cannot hold a compiled library ({error}); set L2L_CACHE=FOLDER") from error
