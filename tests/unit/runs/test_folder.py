"""A run's folder: claimed once, with metrics that are lines of JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from l2l_runner.errors import StorageError
from l2l_runner.runs.folder import RunFolder


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    assert not folder.claimed
    folder.claim()
    assert folder.claimed
    with pytest.raises(StorageError, match="already belongs to a run"):
        folder.claim()


def test_metrics_are_lines_of_json_that_can_be_cut(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.records() == []
    size = folder.log({"step": 1, "loss": 0.5})
    assert size == folder.metrics.stat().st_size
    folder.log({"step": 2, "loss": math.nan, "deep": [{"x": -math.inf}]})
    assert folder.records() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None, "deep": [{"x": None}]}]
    folder.truncate(size)
    assert folder.records() == [{"step": 1, "loss": 0.5}]


def test_a_line_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"metrics\.jsonl could not be written"):
        RunFolder(tmp_path).log({"step": 1})


def test_json_files_hold_null_for_what_is_not_finite(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_json("a.json", {"x": [1.0, math.nan], "y": (math.inf, 2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [1.0, None], "y": [None, 2]}
