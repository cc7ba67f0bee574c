"""Whole runs on Omniglot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drawings import DRAWINGS
from l2l_runner.optimizees import omniglot
from l2l_runner.pages.reporting.contents import read_runs
from l2l_runner.runs.results import Interval
from l2l_runner.runtime import Runtime
from running import assert_one_sentence, evaluate, read_csv, read_json, train

# Files


# Tasks and splits


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    """A runtime in float64 whose data set is noise."""
    monkeypatch.setattr(omniglot, "load_omniglot", lambda root, download: DRAWINGS)
    return Runtime(dtype=torch.float64, data_root=tmp_path)


# Runs

TINY = ["optimizee=omniglot", "optimizee.filters=2", "optimizee.minibatch=4", "optimizee.pretrain_alphabets=2"]
TINY += ["optimizee.test_alphabets=2", "optimizee.validation_problems=2", "optimizee.test_problems=5"]
TINY += ["unroll.steps=2", "meta.steps=1", "meta_batch=1", "device=cpu", "device.threads=1"]


@pytest.mark.usefixtures("sketches")
def test_results_of_no_meta_training_are_of_the_same_problems_as_others(noisy: Runtime, tmp_path: Path) -> None:
    """The losses of validation problems, and the metrics of held-out ones where they are compared."""
    arguments = [*TINY, "optimizer=none", f"data.root={noisy.data_root}", "evaluation.tune.enabled=false"]
    for name in ("true", "false"):
        ended = train(tmp_path / name, *arguments, f"evaluate={name}")
        assert ended.code == 0, ended.err
    compared, alone = (read_json(tmp_path / name / "result.json") for name in ("true", "false"))
    assert {key: compared[key] for key in ("score", "final", "sum")} == {
        key: alone[key] for key in ("score", "final", "sum")
    }
    assert compared["metrics"] == read_json(tmp_path / "true" / "comparison.json")["optimizers"]["none"]["metrics"]
    assert compared["metrics"] != alone["metrics"]
    ((reported,), _) = read_runs([tmp_path / "true"])
    told = read_json(tmp_path / "true" / "comparison.json")["optimizers"]["none"]["final"]
    assert reported.final == Interval.from_json(told)


@pytest.mark.usefixtures("sketches")
def test_results_of_an_evaluation_count_a_task_once_and_have_accuracies(noisy: Runtime, tmp_path: Path) -> None:
    data = f"data.root={noisy.data_root}"
    assert train(tmp_path / "run", *TINY, "optimizer=warp_leap", "evaluate=false", data).code == 0
    ended = evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'run'}", "tune.enabled=false", "device=cpu", data)
    assert ended.code == 0, ended.err
    result, summary = (read_json(tmp_path / "eval" / f"{name}.json") for name in ("result", "comparison"))
    entry = summary["optimizers"]["warp_leap"]
    assert (summary["problems"], summary["tasks"]) == (5, 2)
    assert {key: result[key] for key in ("final", "sum", "metrics")} == {
        key: entry[key] for key in ("final", "sum", "metrics")
    }
    other = [
        f"checkpoint={tmp_path / 'run'}",
        "optimizee.split_seed=1",
        "optimizee.test_alphabets=43",
        "device=cpu",
        data,
    ]
    assert_one_sentence(evaluate(tmp_path / "other", *other), "trained on", "optimizee.split_seed=0")
    row = read_csv(tmp_path / "eval" / "comparison.csv")[0]
    assert float(row["mean_accuracy_ci95"]) == entry["readings"]["accuracy"]["mean"]["ci95"]
    assert float(row["accuracy_mean"]) == result["metrics"]["accuracy"]["mean"]
