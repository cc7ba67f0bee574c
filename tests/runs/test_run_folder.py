"""A run's folder: claimed by a whole configuration, worked in by one process, resumed only where nothing is lost."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from running import QUICK, Fork, assert_one_sentence, lines, snapshot, train, wait_until

pytestmark = pytest.mark.usefixtures("sketches")


def test_a_refused_configuration_leaves_the_folder_free(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert_one_sentence(train(folder, *QUICK, "meta.lr=-1"), "meta.lr is -1")
    assert train(folder, *QUICK).code == 0
    assert_one_sentence(train(folder, *QUICK), "already belongs to a run")


def test_a_run_that_another_process_works_on_is_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = Fork(*QUICK, "meta.steps=100000", f"hydra.run.dir={folder}")
    wait_until(process, lambda: lines(folder) > 1)
    assert_one_sentence(train(None, f"resume={folder}"), "is in use by process", str(process.pid))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert train(None, f"resume={folder}", "meta.steps=1").code == 0  # a kill releases the folder


def copy(run: Path, tmp_path: Path) -> Path:
    """A finished run of its own."""
    return Path(shutil.copytree(run, tmp_path / "run"))


def test_a_lost_last_checkpoint_is_not_taken_for_a_run_that_never_began(quick: Path, tmp_path: Path) -> None:
    folder = copy(quick, tmp_path)
    (folder / "checkpoints" / "last.pt").unlink()
    before = snapshot(folder / "checkpoints")
    assert_one_sentence(train(None, f"resume={folder}"), "last.pt", "is missing", "copy best.pt")
    assert snapshot(folder / "checkpoints") == before


def test_a_run_that_was_killed_before_its_last_checkpoint_was_first_saved_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert train(folder, *QUICK, "meta.steps=0").code == 0
    (folder / "checkpoints" / "last.pt").unlink()  # what is there is the best state before the first step
    assert train(None, f"resume={folder}", "meta.steps=1").code == 0


def test_metrics_that_lost_lines_are_refused(quick: Path, tmp_path: Path) -> None:
    folder = copy(quick, tmp_path)
    metrics = folder / "metrics.jsonl"
    os.truncate(metrics, metrics.stat().st_size - 1)
    before = metrics.read_bytes()
    assert_one_sentence(train(None, f"resume={folder}"), "metrics.jsonl has", "lines of it are lost")
    assert metrics.read_bytes() == before
