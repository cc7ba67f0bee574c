"""Finished runs that several tests look at. They are shared: copy one before changing it."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from l2l_runner.launch.hydra import ENVIRONMENT

os.environ.update({**ENVIRONMENT, **os.environ})  # before PyTorch is imported: several workers share the CPU
pytest.register_assert_rewrite("running")

from l2l_runner.kernels import build, cpp  # noqa: E402
from l2l_runner.meta import METAS  # noqa: E402
from l2l_runner.optimizees import OPTIMIZEES  # noqa: E402
from l2l_runner.optimizers import HAND_DESIGNED, LEARNED  # noqa: E402
from running import QUICK, TINY, Ended, sketch, train  # noqa: E402


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Use one worker more than there are cores: whole runs in processes of their own leave their worker waiting."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture
def sketches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are sketched, but for tests that are marked `draws`."""
    if request.node.get_closest_marker("draws") is None:
        sketch(monkeypatch)


@pytest.fixture(scope="session")
def reference_ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """An uninterrupted run of the tiny settings, evaluated, with its pictures; and how it ended."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    return folder, train(folder, *TINY)


@pytest.fixture(scope="session")
def reference(reference_ended: tuple[Path, Ended]) -> Path:
    """Its folder."""
    folder, ended = reference_ended
    assert ended.code == 0, ended.err
    return folder


@pytest.fixture(scope="session")
def sketched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with sketches for pictures."""
    folder = tmp_path_factory.mktemp("sketched") / "run"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert train(folder, *TINY).code == 0
    return folder


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without baselines and comparison either."""
    folder = tmp_path_factory.mktemp("quick") / "run"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert train(folder, *QUICK).code == 0
    return folder


@pytest.fixture(scope="session")
def cpp_kernel() -> None:
    """The fused kernel, compiled; tests that need it are skipped where there is no compiler."""
    try:
        build.load_library(cpp.SOURCE)
    except build.BuildError as error:
        pytest.skip(f"there is no fused kernel here: {error}")


@pytest.fixture
def kernel_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of compiled kernels, and the compiler that is found without $CXX."""
    monkeypatch.setenv("L2L_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes $CXX a shell script of that text, in which $REAL is the compiler; it notes its calls in calls.txt."""

    def make(text: str, name: str = "cxx") -> Path:
        script, calls = tmp_path / name, tmp_path / "calls.txt"
        real = next(filter(None, map(shutil.which, build.COMPILERS)), "false")
        note = f'echo "$@" >> {shlex.quote(str(calls))}'
        script.write_text(f"#!/bin/sh\nREAL={shlex.quote(real)}\n{note}\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return calls

    return make


@pytest.fixture
def registries() -> Iterator[None]:
    """Unregister after the test the optimizees, rules and estimators that it registered."""
    known: list[dict[str, Any]] = [OPTIMIZEES, HAND_DESIGNED, LEARNED, METAS]
    before = [dict(registry) for registry in known]
    yield
    for registry, was in zip(known, before, strict=True):
        registry.clear()
        registry.update(was)
