"""Compile a C++ file on first use, into a cache folder; later uses only load it.

Loading a library runs it, so the cache is not trusted: a library's name holds the digest of its content, and both the
file and its folder must belong to this user or to root and be closed to the writes of others.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

COMPILERS = ("c++", "g++", "clang++")
BASE = ("-std=c++17", "-O3", "-fPIC", "-shared")
# From the fastest to what every compiler accepts; without OpenMP the kernel has one thread.
ATTEMPTS = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-march=native",), ())
TIME_LIMIT = 60  # seconds of one call of the compiler, which takes a few


class BuildError(Exception):
    """The library cannot be built; the message says why, as a phrase."""


def cache_folder() -> Path:
    """Return the folder of libraries, in $L2L_CACHE, else $XDG_CACHE_HOME/l2l_runner, else ~/.cache/l2l_runner."""
    if os.environ.get("L2L_CACHE"):
        return Path(os.environ["L2L_CACHE"]).expanduser().absolute() / "kernels"
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return base.absolute() / "l2l_runner" / "kernels"


def find_compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: $CXX, with its arguments, else the first of `COMPILERS` on the PATH.

    Raises:
        BuildError: no compiler is found.
    """
    wanted = os.environ.get("CXX", "").strip()
    for name, *arguments in [shlex.split(wanted)] if wanted else [[name] for name in COMPILERS]:
        found = shutil.which(name)
        if found:
            return (found, *arguments)
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
    plain = {**os.environ, "LC_ALL": "C"}  # so that messages are the same in every locale
    how: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "check": False}
    try:
        return subprocess.run(command, timeout=TIME_LIMIT, env=plain, stdin=subprocess.DEVNULL, **how)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} did not end within {TIME_LIMIT} seconds") from error
    except OSError as error:
        raise BuildError(f"{command[0]} could not be run ({error})") from error


def _compile(compiler: Sequence[str], source: Path, prefix: Path) -> Path:
    """Compile to a file of this process, then rename it: other processes see a whole library or none.

    Returns:
        The library's path, `prefix` followed by the digest of its content.
    """
    with tempfile.TemporaryDirectory(dir=prefix.parent, prefix="build-") as scratch:
        built = Path(scratch) / "library.so"
        for flags in ATTEMPTS:
            ended = _run([*compiler, *BASE, *flags, str(source), "-o", str(built)])
            if ended.returncode == 0:
                built.chmod(0o755 & ~stat.S_IWGRP & ~stat.S_IWOTH)
                with open(built, "rb") as file:
                    os.fsync(file.fileno())  # a machine that stops must not leave an empty file with a good name
                library = _with_digest(prefix, built)
                os.replace(built, library)
                return library
    complaint = next((line for line in ended.stderr.splitlines() if "error" in line), f"exit code {ended.returncode}")
    raise BuildError(f"{compiler[0]} could not compile {source.name}: {complaint.strip()}")


def _with_digest(prefix: Path, library: Path) -> Path:
    return prefix.with_name(f"{prefix.name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:32]}.so")


def library_prefix(source: Path, compiler: Sequence[str]) -> Path:
    """Return the beginning of the library's path, which is specific to source, compiler, CPU, flags and user."""
    version = _run([*compiler, "--version"]).stdout
    key = "\0".join([source.read_text(), *compiler, version, cpu_description(), repr((BASE, ATTEMPTS)), str(_user())])
    return cache_folder() / f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _trusted(path: Path) -> bool:
    """Return whether a file or folder belongs to this user or to root, and nobody else can change it."""
    found = path.stat()
    closed = not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or bool(found.st_mode & stat.S_ISVTX)
    return found.st_uid in (0, _user()) and closed


def _cached(prefix: Path) -> Path | None:
    """Return a library of this prefix that is whole and trusted; remove damaged ones. None where there is none."""
    for path in sorted(prefix.parent.glob(f"{prefix.name}-*.so")):
        if path.is_file() and not path.is_symlink() and _trusted(path):
            if path == _with_digest(prefix, path):
                return path
            path.unlink(missing_ok=True)
    return None


def _remove_leftovers(folder: Path) -> None:
    """Remove the folders of builds that were killed."""
    for path in folder.glob("build-*"):
        if time.time() - path.stat().st_mtime > TIME_LIMIT * len(ATTEMPTS):
            shutil.rmtree(path, ignore_errors=True)


@lru_cache(maxsize=8)
def load_library(source: Path) -> ctypes.CDLL:
    """Load the library of a C++ file; compile it first, unless the cache has it, whole and trusted.

    Raises:
        BuildError: there is no compiler, or it fails, or others can write into the cache.
    """
    compiler = find_compiler()
    prefix = library_prefix(source, compiler)
    folder = prefix.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _trusted(folder):
            raise BuildError(f"others can write into {folder}; close it to them, or set L2L_CACHE=FOLDER")
        library = _cached(prefix)
        if library is None:
            _remove_leftovers(folder)
            library = _compile(compiler, source, prefix)
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise BuildError(f"{folder} cannot hold a compiled library ({error}); set L2L_CACHE=FOLDER") from error
