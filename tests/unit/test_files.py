"""Files are written wholly or not at all, and JSON has no NaN."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path
from typing import Any

import pytest

from l2l_runner.errors import StorageError
from l2l_runner.files import jsonable, read_json, with_nan, write_atomically, write_json


def full(*args: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: Any, step: str) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(StorageError, match=r"No space left on device.*untouched"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_first_write_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="could not be written") as caught:
        write_atomically(tmp_path / "file", b"new")
    assert "untouched" not in str(caught.value)  # there was nothing before
    assert os.listdir(tmp_path) == []


def test_a_write_makes_the_folders_it_needs(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"


def test_a_write_through_a_regular_file_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="could not be written"):
        write_atomically(tmp_path / "file" / "below", b"content")


def test_a_write_never_shows_half_of_the_new_content(tmp_path: Path, monkeypatch: Any) -> None:
    # At every moment before the replacement, a reader finds the old file, whole.
    path, seen, fsync, replace = tmp_path / "file", [], os.fsync, os.replace
    write_atomically(path, b"old")

    def note(function: Any) -> Any:
        def noting(*args: Any) -> None:
            seen.append(path.read_bytes())
            function(*args)

        return noting

    monkeypatch.setattr(os, "fsync", note(fsync))
    monkeypatch.setattr(os, "replace", note(replace))
    write_atomically(path, b"new")
    assert seen == [b"old", b"old"]  # synchronised to the disk first, replaced then
    assert path.read_bytes() == b"new"


def test_json_has_null_for_what_is_not_finite(tmp_path: Path) -> None:
    assert jsonable({"b": True, "n": None, "s": "nan", "x": (1.0, -math.inf)}) == {
        "b": True,
        "n": None,
        "s": "nan",
        "x": [1.0, None],
    }
    found = with_nan({"b": True, "n": [None, 2]})
    assert found["b"] is True
    assert math.isnan(found["n"][0])
    assert found["n"][1] == 2
    write_json(tmp_path / "a.json", {"x": [1.0, math.nan], "y": (math.inf, 2)})
    assert read_json(tmp_path / "a.json") == {"x": [1.0, None], "y": [None, 2]}
    assert read_json(tmp_path / "b.json") is None
