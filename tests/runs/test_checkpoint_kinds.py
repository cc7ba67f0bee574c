"""Checkpoints that are valid files of wrong kinds: every one is refused in a sentence, or changes nothing."""

from __future__ import annotations

import copy
import io
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from l2l_runner.errors import UserError
from l2l_runner.runs import checkpoint
from running import assert_one_sentence, evaluate, last, train

pytestmark = pytest.mark.usefixtures("sketches")

ODD: list[Callable[[Any], Any]] = [
    lambda value: "words",
    lambda value: 7,
    lambda value: None,
    lambda value: [],
    lambda value: {},
    lambda value: torch.zeros(3, dtype=torch.int8),
    lambda value: torch.zeros(2, 2).to_sparse(),
    lambda value: torch.empty(2, device="meta"),
    lambda value: torch.zeros(1, dtype=torch.complex64),
    lambda value: value[..., :1].clone() if isinstance(value, torch.Tensor) and value.dim() else [value],
]
"""What a part of a checkpoint is replaced by."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all parts of a nested value."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))


def changed(content: dict[str, Any], path: tuple[Any, ...], make: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy with one part replaced."""
    whole = copy.deepcopy(content)
    *parents, key = path
    at: Any = whole
    for parent in parents:
        at = at[parent]
    at[key] = make(at[key])
    return whole


def write(path: Path, content: dict[str, Any]) -> None:
    """Write it as PyTorch does, without what `checkpoint.save` adds."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(buffer.getvalue())


def refusal(path: Path) -> UserError | None:
    """The error that a checkpoint is refused with; None where an optimizer could be restored from it."""
    try:
        content = checkpoint.load(path)
        rule = checkpoint.restore_rule(content, path)
    except UserError as error:
        return error
    assert all(parameter.dtype == torch.float32 for parameter in rule.parameters())
    return None


def test_parts_of_wrong_kinds_are_refused_by_who_restores_an_optimizer(quick: Path, tmp_path: Path) -> None:
    whole = last(quick)
    draw, parts = random.Random(0), [path for path in places(whole) if path]
    refusals = []
    for path in draw.sample(parts, 60):
        for make in draw.sample(ODD, 3):
            write(tmp_path / "odd.pt", changed(whole, path, make))
            refusals.append(refusal(tmp_path / "odd.pt"))
    said = [str(error) for error in refusals if error is not None]
    assert len(said) > 30
    assert not any("\n" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("path", "make", "words"),
    [
        (("meta_optimizer", "state", 0, "exp_avg"), ODD[9], "meta-optimizer"),
        (("meta_optimizer", "state", 0, "exp_avg"), ODD[5], "meta-optimizer"),
        (("meta_optimizer", "state", 0), ODD[0], "meta-optimizer"),
        (("meta_optimizer", "param_groups"), ODD[3], "meta-optimizer"),
        (("meta_optimizer",), ODD[4], "meta-optimizer"),
        (("progress",), ODD[3], "groups of keys"),
        (("progress", "step"), ODD[0], "number of steps"),
        (("progress", "best_score"), ODD[0], "best_score"),
        (("progress", "stage"), ODD[2], "stage"),
        (("config",), ODD[0], "groups of keys"),
        (("optimizer", "readout_bias"), ODD[5], "floating-point"),
        (("optimizer", "readout_bias"), ODD[6], "damaged"),
        (("optimizer", "readout_bias"), ODD[7], "floating-point"),
        (("optimizer", "readout_bias"), ODD[8], "floating-point"),
    ],
)
def test_a_run_is_not_resumed_from_wrong_kinds(
    quick: Path, tmp_path: Path, path: tuple[Any, ...], make: Callable[[Any], Any], words: str
) -> None:
    folder = Path(shutil.copytree(quick, tmp_path / "run"))
    write(folder / "checkpoints" / "last.pt", changed(last(quick), path, make))
    assert_one_sentence(train(None, f"resume={folder}", "meta.steps=8"), words)


def test_a_comparison_does_not_take_wrong_kinds(quick: Path, tmp_path: Path) -> None:
    write(tmp_path / "odd.pt", changed(last(quick), ("config", "seed"), ODD[0]))
    assert_one_sentence(evaluate(tmp_path / "run", f"checkpoint={tmp_path / 'odd.pt'}"), "a seed and unroll.steps")
