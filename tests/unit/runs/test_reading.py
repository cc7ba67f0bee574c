"""The reader of what runs left: typed values, also while the run still writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from l2l_runner.runs.reading import (
    keep_swept,
    read_comparison,
    read_config,
    read_ended,
    read_jobs,
    read_latest,
    read_log,
    read_overrides,
    read_records,
    read_result,
    sort_key,
)
from l2l_runner.runs.results import Interval


def job(folder: Path, overrides: list[str], result: dict[str, Any] | None) -> None:
    """Write what a job of a sweep leaves."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    assert [read(tmp_path) for read in (read_config, read_result, read_comparison)] == [None, None, None]
    assert read_latest(tmp_path, "meta_step") is None
    assert (read_overrides(tmp_path), read_records(tmp_path), read_log(tmp_path / "train.log")) == ({}, [], [])


def test_a_record_that_is_being_written_does_not_count(tmp_path: Path) -> None:
    lines = ['{"event": "meta_step", "step": 1}', '{"event": "validation", "step": 1}', '{"event": "meta_step", "st']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [record["event"] for record in read_records(tmp_path)] == ["meta_step", "validation"]
    assert read_latest(tmp_path, "meta_step") == {"event": "meta_step", "step": 1}
    assert read_latest(tmp_path, "reading") is None


def test_a_configuration_is_a_mapping(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("a: 3\nb: ${a}\n")
    assert read_config(tmp_path) == {"a": 3, "b": 3}
    (tmp_path / ".hydra" / "config.yaml").write_text("[1]\n")
    with pytest.raises(ValueError, match="no mapping"):
        read_config(tmp_path)


def test_a_log_has_the_first_lines_of_its_records(tmp_path: Path) -> None:
    text = "[2026-01-01 00:00:00,000][l2l_runner.train][INFO] - Resumed\nmore\n"
    (tmp_path / "train.log").write_text(text + text.replace("00,000", "01,500").replace("Resumed", "Stopped at 3"))
    first, second = read_log(tmp_path / "train.log")
    assert (first.message, second.message) == ("Resumed", "Stopped at 3")
    assert second.time - first.time == 1.5


def test_jobs_of_a_sweep(tmp_path: Path) -> None:
    final = {"mean": 2.0, "ci95": None}
    job(
        tmp_path / "10",
        ["seed=0", "lr=1"],
        {"status": "completed", "score": 2.0, "final": final, "metrics": {"a": final}},
    )
    job(tmp_path / "9", ["seed=0", "lr=2", "sweep=slurm"], {"status": "completed", "score": None})
    job(tmp_path / "11", ["seed=0"], {"status": "failed", "score": None, "error": "a bug"})
    job(tmp_path / "12", ["seed=0", "lr=4"], None)
    jobs = keep_swept(read_jobs(tmp_path, kept=["9"]))
    assert [(one.job, one.values, one.status, one.kept) for one in jobs] == [
        ("9", {"lr": "2"}, "diverged", True),
        ("10", {"lr": "1"}, "completed", False),
        ("11", {"lr": "default"}, "failed", False),
        ("12", {"lr": "4"}, "failed", False),
    ]
    assert [one.error for one in jobs] == [None, None, "a bug", "it left no result"]
    assert not math.isfinite(jobs[0].score)
    for key in ("final", "a"):
        found = jobs[1].figure(key)
        assert isinstance(found, Interval)
        assert found.mean == 2.0
    assert jobs[1].figure("sum") is jobs[3].figure("final") is None
    assert read_jobs(tmp_path, stopped=True)[3].status == "stopped"
    assert set(jobs[0].to_json()) == {"job", "values", "kept", "score", "final", "sum", "error", "metrics", "status"}


def test_folders_are_sorted_by_number_before_names() -> None:
    assert sorted(["b", "10", "9", "a"], key=sort_key) == ["9", "10", "a", "b"]


def test_a_configuration_is_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    (tmp_path / ".hydra").mkdir()
    text = "batch: 3\nmeta_batch: ${batch}\nroot: ${oc.env:TOKEN}\nmixed: a:${batch}:${oc.env:TOKEN}\n"
    (tmp_path / ".hydra" / "config.yaml").write_text(text)
    config = read_config(tmp_path)
    assert config is not None
    assert (config["meta_batch"], config["root"]) == (3, "${oc.env:TOKEN}")
    assert "secret" not in str(config)


@pytest.mark.parametrize(
    "text", ['{"status": "completed", "score": "good"}', "[]", "{", '{"status": "completed"}', "7"]
)
def test_a_damaged_result_is_that_of_a_failed_job_and_hides_no_other(tmp_path: Path, text: str) -> None:
    job(tmp_path / "0", ["lr=1"], None)
    (tmp_path / "0" / "result.json").write_text(text)
    job(tmp_path / "1", ["lr=2"], {"status": "completed", "score": 2.0})
    first, second = read_jobs(tmp_path)
    assert (first.status, second.status) == ("failed", "completed")
    assert first.error is not None
    assert first.error.startswith("its result.json cannot be read (")
    assert read_ended(tmp_path / "0") is None
    ended = read_ended(tmp_path / "1")
    assert ended is not None
    assert ended.score == 2.0
