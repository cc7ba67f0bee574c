"""Checkpoints are read without running anything, and refused where they are damaged."""

from __future__ import annotations

import math
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from composing import parsed
from l2l_runner.errors import CheckpointError
from l2l_runner.runs import checkpoint
from l2l_runner.runtime import Runtime
from l2l_runner.training.base import new_rule
from l2l_runner.training.meta_training import MetaProgress
from running import TINY, best, same_bits


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, as a run leaves it."""
    folder, config = tmp_path_factory.mktemp("run"), parsed(*TINY)
    rule = new_rule(config, Runtime())
    state = checkpoint.run_state(config, MetaProgress(), rule, torch.optim.Adam(rule.parameters()))
    checkpoint.save(folder / "checkpoints" / "best.pt", state)
    return folder


class TouchesAFile:
    """A pickle of it makes a file when it is read carelessly."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    content = {
        "config": {
            "seed": 3,
            "optimizee": {"name": "quadratic", "hidden": [1, 2], "none": None},
            "optimizer": {"name": "lstm"},
            "unroll": {"steps": 5},
        },
        "optimizer": {"weight": torch.randn(3, 4, dtype=torch.float64)},
        "meta_optimizer": {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 0.1}]},
        "progress": {"step": 5, "best_score": math.inf},
    }
    checkpoint.save(tmp_path / "a.pt", content)
    assert same_bits(checkpoint.load(tmp_path / "a.pt"), {"format": checkpoint.FORMAT, **content})


@pytest.mark.parametrize("below", ["", "checkpoints", "checkpoints/best.pt"])
def test_a_checkpoint_is_found_by_its_run_its_folder_or_its_path(run: Path, below: str) -> None:
    assert same_bits(checkpoint.load(run / below), best(run))


def test_a_checkpoint_is_plain_values_and_tensors(run: Path) -> None:
    content = best(run)
    assert set(content) == {"format", "config", "optimizer", "meta_optimizer", "progress"}
    assert content["config"]["optimizee"]["dim"] == 3
    assert content["config"]["optimizer"]["hidden"] == 4
    optimizer = checkpoint.restore_rule(content, run)
    assert same_bits(dict(optimizer.state_dict()), content["optimizer"])


def assert_refused(path: Path, *words: str) -> None:
    """A checkpoint is refused in one sentence that names it."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.restore_rule(checkpoint.load(path), path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    for word in (str(path), *words):
        assert word in sentence


def damaged(tmp_path: Path, content: bytes) -> None:
    """A file with this content is refused."""
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)
    assert_refused(path)


def test_an_empty_file_is_no_checkpoint(tmp_path: Path) -> None:
    damaged(tmp_path, b"")


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(run: Path, tmp_path: Path, part: float) -> None:
    whole = (run / "checkpoints" / "best.pt").read_bytes()
    damaged(tmp_path, whole[: int(len(whole) * part)])


def test_every_truncation_is_refused(run: Path, tmp_path: Path) -> None:
    whole, path = (run / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt"
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


def test_a_changed_byte_is_noticed_unless_it_means_nothing(run: Path, tmp_path: Path) -> None:
    whole, path, draw = (run / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt", random.Random(0)
    content, refused = best(run), 0
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


def test_a_tensor_that_is_marked_as_a_folder_is_not_read_as_garbage(run: Path, tmp_path: Path) -> None:
    whole, path = (run / "checkpoints" / "best.pt").read_bytes(), tmp_path / "a.pt"
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
    assert_refused(path)
    assert not made.exists()
    # The trap would have sprung: read carelessly, the same file does run its code.
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert made.exists()


@pytest.mark.parametrize("content", [{"state_dict": {"weight": torch.ones(2)}}, [1, 2], torch.ones(3)])
def test_a_file_of_another_program_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", "no checkpoint of l2l_runner")


def test_a_checkpoint_of_another_format_is_refused(run: Path, tmp_path: Path) -> None:
    torch.save(best(run) | {"format": 99}, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", "format 99", "expected 1")


@pytest.mark.parametrize("change", ["shape", "missing", "extra"])
def test_tensors_of_another_architecture_are_refused(run: Path, tmp_path: Path, change: str) -> None:
    content = best(run)
    name = "readout_bias"
    if change == "shape":
        content["optimizer"][name] = torch.zeros(7)
    elif change == "missing":
        del content["optimizer"][name]
    else:
        name = "extra"
        content["optimizer"][name] = torch.zeros(7)
    torch.save(content, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", "architecture", name)


def test_a_configuration_that_cannot_be_built_is_refused(run: Path, tmp_path: Path) -> None:
    content = best(run)
    content["config"]["optimizer"]["hidden"] = -1
    torch.save(content, tmp_path / "a.pt")
    assert_refused(tmp_path / "a.pt", "optimizer.hidden is -1")
