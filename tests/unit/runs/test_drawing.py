"""A run's folder and its pictures."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from l2l_runner.errors import StorageError
from l2l_runner.runs.folder import RunFolder


def test_a_picture_that_cannot_be_drawn_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken(path: Path) -> None:
        raise ValueError("no finite value.\nMore words")

    with caplog.at_level(logging.INFO):
        RunFolder(tmp_path).draw(broken, "curve.png")
    assert [record.message for record in caplog.records] == ["curve.png could not be drawn (no finite value)."]


def test_a_picture_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise StorageError("The disk is full.")

    with pytest.raises(StorageError, match="full"):
        RunFolder(tmp_path).draw(full, "curve.png")
