"""Finished runs that several tests look at. They are shared: copy one before changing it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from l2l_runner.launch.hydra import ENVIRONMENT

os.environ.update({**ENVIRONMENT, **os.environ})  # before PyTorch is imported: several workers share the CPU
pytest.register_assert_rewrite("running")

from running import QUICK, TINY, Ended, sketch, train  # noqa: E402


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
