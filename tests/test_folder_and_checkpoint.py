"""Files: written wholly or not at all, read without running anything, and refused where they are damaged."""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from l2l_runner.errors import CheckpointError, StorageError
from l2l_runner.runs import checkpoint
from l2l_runner.runs.checkpoint import write_atomically
from l2l_runner.runs.folder import RunFolder, jsonable
from running import Ended, assert_one_sentence, best, evaluate, same_bits

pytestmark = pytest.mark.usefixtures("sketches")


class TouchesAFile:
    """A pickle of it makes a file when it is read carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


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


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    content = {
        "config": {"seed": 3, "optimizee": {"name": "quadratic", "hidden": [1, 2], "none": None}},
        "optimizer": {"weight": torch.randn(3, 4, dtype=torch.float64)},
        "meta_optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]},
        "progress": {"step": 5, "best_score": math.inf},
    }
    checkpoint.save(tmp_path / "a.pt", content)
    assert same_bits(checkpoint.load(tmp_path / "a.pt"), {"format": checkpoint.FORMAT, **content})


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/best.pt"])
def test_a_checkpoint_is_found_by_its_run_its_folder_or_its_path(reference: Path, below: str) -> None:
    assert same_bits(checkpoint.load(reference / below), best(reference))


def test_a_checkpoint_is_plain_values_and_tensors(reference: Path) -> None:
    content = best(reference)
    assert set(content) == {"format", "config", "optimizer", "meta_optimizer", "progress"}
    assert content["config"]["optimizee"]["dim"] == 3
    assert content["config"]["optimizer"]["hidden"] == 4
    optimizer = checkpoint.restore_rule(content, reference)
    assert same_bits(dict(optimizer.state_dict()), content["optimizer"])


def damaged(tmp_path: Path, content: bytes) -> Ended:
    """What `eval` says to a checkpoint with this content; it names the file each time."""
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    ended = evaluate(tmp_path / "eval", f"checkpoint={path}")
    assert_one_sentence(ended, str(path))
    return ended


def test_an_empty_file_is_no_checkpoint(tmp_path: Path) -> None:
    damaged(tmp_path, b"")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(reference: Path, tmp_path: Path, part: float) -> None:
    whole = (reference / "checkpoints" / "best.pt").read_bytes()
    damaged(tmp_path, whole[: int(len(whole) * part)])


def test_every_truncation_is_refused(reference: Path, tmp_path: Path) -> None:
    whole, path = (reference / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt"
    for length in [*range(0, len(whole), 211), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_bytes_are_refused(tmp_path: Path, seed: int) -> None:
    damaged(tmp_path, random.Random(seed).randbytes(10 ** (seed + 1)))


def test_bytes_like_those_of_a_pickle_are_refused(tmp_path: Path) -> None:
    draw, path = random.Random(0), tmp_path / "a.pt"
    for _ in range(200):
        path.write_bytes(b"\x80\x02" + draw.randbytes(draw.randrange(300)))
        with pytest.raises(CheckpointError):
            checkpoint.load(path)


def test_a_changed_byte_is_noticed_unless_it_means_nothing(reference: Path, tmp_path: Path) -> None:
    whole, path, draw = (reference / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt", random.Random(0)
    content, refused = best(reference), 0
    for _ in range(300):
        position = draw.randrange(len(whole))
        other = (whole[position] + draw.randrange(1, 256)) % 256
        path.write_bytes(whole[:position] + bytes([other]) + whole[position + 1 :])
        try:
            found = checkpoint.load(path)
        except CheckpointError:
            refused += 1
        else:
            assert same_bits(found, content)  # the byte was padding
    assert refused > 150


def test_a_tensor_that_is_marked_as_a_folder_is_not_read_as_garbage(quick: Path, tmp_path: Path) -> None:
    whole, path = (quick / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt"
    entry = whole.index(b"PK\x01\x02")  # of the archive's directory; its attributes are at byte 38
    path.write_bytes(whole[: entry + 38] + b"\x10" + whole[entry + 39 :])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, made = tmp_path / "a.pt", tmp_path / "made"
    content = {"format": 1, "config": {}, "optimizer": TouchesAFile(made), "meta_optimizer": {}, "progress": {}}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={path}"), str(path))
    assert not made.exists()
    # The trap would have sprung: read carelessly, the same file does run its code.
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert made.exists()


@pytest.mark.parametrize("content", [{"state_dict": {"weight": torch.ones(2)}}, [1, 2], torch.ones(3)])
def test_a_file_of_another_program_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert_one_sentence(
        evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'a.pt'}"), "a.pt", "no checkpoint of l2l_runner"
    )


def test_a_checkpoint_of_another_format_is_refused(reference: Path, tmp_path: Path) -> None:
    torch.save(best(reference) | {"format": 99}, tmp_path / "a.pt")
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'a.pt'}"), "format 99", "expected 1")


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_tensors_of_another_architecture_are_refused(reference: Path, tmp_path: Path, change: str) -> None:
    content = best(reference)
    name = "readout_bias"
    if change == "shape":
        content["optimizer"][name] = torch.zeros(7)
    elif change == "missing":
        del content["optimizer"][name]
    else:
        name = "extra"
        content["optimizer"][name] = torch.zeros(7)
    torch.save(content, tmp_path / "a.pt")
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'a.pt'}"), "a.pt", "architecture", name)


def test_a_configuration_that_cannot_be_built_is_refused(reference: Path, tmp_path: Path) -> None:
    content = best(reference)
    content["config"]["optimizer"]["hidden"] = -1
    torch.save(content, tmp_path / "a.pt")
    assert_one_sentence(
        evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'a.pt'}"), "a.pt", "optimizer.hidden is -1"
    )


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
    assert jsonable({"b": True, "n": None, "s": "nan"}) == {"b": True, "n": None, "s": "nan"}
