"""Kernels in whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import QUICK, assert_one_sentence, records, train

# In whole runs

pytestmark = pytest.mark.usefixtures("cpp_kernel", "sketches")


def scores(folder: Path) -> list[float]:
    return [record["score"] for record in records(folder, "validation")]


def test_a_trained_optimizer_does_not_depend_on_the_kernel(tmp_path: Path) -> None:
    arguments = [*QUICK, "meta.steps=60", "meta.validate_every=20", "meta.lr=0.01", "unroll.steps=20"]
    arguments.append("optimizee.validation_problems=16")
    for kernel in ("torch", "cpp"):
        ended = train(tmp_path / kernel, *arguments, f"kernel={kernel}")
        assert ended.code == 0, ended.err
        assert f"kernel {kernel}," in ended.out
    ours, theirs = scores(tmp_path / "cpp"), scores(tmp_path / "torch")
    assert len(ours) == len(theirs) == 4
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours[-1] != pytest.approx(ours[0], rel=0.1)  # it has learned something


@pytest.mark.parametrize(("first", "second"), [("torch", "cpp"), ("cpp", "torch"), ("auto", "torch")])
def test_a_resumed_run_may_change_its_kernel(tmp_path: Path, first: str, second: str) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "meta.steps=4", f"kernel={first}").code == 0
    ended = train(None, f"resume={run}", "meta.steps=6", f"kernel={second}")
    assert ended.code == 0, ended.err
    assert f"kernel {second}," in ended.out
    assert len(scores(run)) == 4


def test_a_run_that_cpp_cannot_serve_says_so(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *QUICK, "optimizer.coordinatewise=false", "kernel=cpp")
    assert_one_sentence(ended, "kernel=cpp is not available", "it is for coordinatewise optimizers", "kernel=torch")


def test_a_run_with_auto_falls_back_with_one_line(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *QUICK, "optimizer.coordinatewise=false", "kernel=auto")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "is not available" in line]
    assert "it is for coordinatewise optimizers" in line
    assert "kernel torch," in ended.out
