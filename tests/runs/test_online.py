"""Runs that learn an update rule while it trains."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch

from problems import optimizee
from running import (
    Ended,
    Fork,
    assert_one_sentence,
    best,
    evaluate,
    finish,
    read_json,
    records,
    snapshot,
    train,
    wait_until,
)

ONLINE = ["optimizee=digits", "optimizee.hidden=[4]", "optimizee.minibatch=8", "optimizer=hypergradient", "meta=online"]
ONLINE += [
    "meta.lr=0.05",
    "unroll.steps=12",
    "unroll.length=1",
    "meta.read_every=4",
    "meta.runs=2",
    "device=cpu",
    "device.threads=1",
]
pytestmark = pytest.mark.usefixtures("sketches")

# Online


def online(folder: Path | None, *arguments: str) -> Ended:
    return train(folder, *ONLINE, *arguments)


@pytest.fixture(scope="module")
def online_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished online run, with its picture drawn."""
    folder = tmp_path_factory.mktemp("online") / "run"
    ended = online(folder)
    assert ended.code == 0, ended.err
    assert "hypergradient learns online on digits: 2 runs of 12 steps, windows of 1" in ended.out
    assert "training loss" in ended.out
    assert "learning − fixed" in ended.out
    return folder


def test_an_online_run_leaves_its_record(online_run: Path) -> None:
    summary = read_json(online_run / "online.json")
    assert summary["arms"]["learning"]["steps"] == summary["arms"]["fixed"]["steps"] == [0, 4, 8, 12]
    assert summary["arms"]["learning"]["runs"] == [2, 2, 2, 2]
    assert set(summary["arms"]["learning"]["rates"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert summary["arms"]["fixed"]["rates"] == {}
    assert len(summary["arms"]["learning"]["metrics"]["accuracy"]) == 4
    readings = records(online_run, "reading")
    ends = {(r["run"], r["arm"]): r for r in readings if r["step"] == 12}
    differences = [ends[run, "learning"]["loss"] - ends[run, "fixed"]["loss"] for run in (0, 1)]
    assert summary["paired"]["runs"] == 2
    assert summary["paired"]["loss"]["mean"] == pytest.approx(sum(differences) / 2, abs=1e-6)
    assert set(summary["paired"]["metrics"]) == {"accuracy"}
    assert [(r["run"], r["arm"], r["step"]) for r in readings] == [
        (run, arm, step) for run in (0, 1) for arm in ("learning", "fixed") for step in (0, 4, 8, 12)
    ]
    result = read_json(online_run / "result.json")
    lasts = [r["loss"] for r in readings if r["arm"] == "learning" and r["step"] == 12]
    assert result["final"]["mean"] == pytest.approx(sum(lasts) / 2)
    assert (online_run / "online.png").stat().st_size > 10_000


def test_both_arms_meet_the_same_problem_and_only_one_learns(online_run: Path) -> None:
    readings = {(r["run"], r["arm"], r["step"]): r for r in records(online_run, "reading")}
    for run in (0, 1):
        assert readings[run, "learning", 0]["loss"] == readings[run, "fixed", 0]["loss"]
        assert readings[run, "learning", 12]["loss"] != readings[run, "fixed", 12]["loss"]
        begun, ended = (readings[run, "learning", step]["rates"]["0.weight"] for step in (0, 12))
        assert begun == pytest.approx([0.01] * 3)
        assert ended != begun
    assert readings[0, "fixed", 0]["loss"] != readings[1, "fixed", 0]["loss"]


def test_online_learning_is_a_plain_loop(online_run: Path) -> None:
    """The first run once more, with torch's own SGD arithmetic and Adam on the rates."""
    from l2l_runner import streams
    from l2l_runner.runtime import Runtime

    distribution = optimizee("digits", hidden=[4], minibatch=8)
    problem = distribution.sample(streams.seeds(0, "train", 0, 1), Runtime())
    params = problem.init()
    rates = {name: torch.tensor(0.1, requires_grad=True) for name in params}
    adam = torch.optim.Adam(rates.values(), lr=0.05)
    losses = []
    last: dict[str, torch.Tensor] = {}
    for step in range(12):
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        grads = torch.autograd.grad(problem.loss(leaves, step).sum(), list(leaves.values()))
        if step:
            for name, grad in zip(leaves, grads, strict=True):
                rates[name].grad = -0.1 * (grad * last[name]).sum()
            adam.step()
        last = dict(zip(leaves, grads, strict=True))
        params = {name: leaves[name].detach() - 0.1 * rates[name].detach() * last[name] for name in leaves}
        losses.append(problem.loss(params, step + 1).item())
    found = [r["loss"] for r in records(online_run, "reading") if (r["run"], r["arm"]) == (0, "learning")]
    expected = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert found[1:] == pytest.approx(expected, rel=1e-5)


def test_a_stopped_online_run_is_resumed_exactly(online_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ["unroll.steps=80", "meta.read_every=8"]
    whole = online(tmp_path / "whole", *steps)
    assert whole.code == 0, whole.err
    process = Fork(*ONLINE, *steps, f"hydra.run.dir={run}")
    wait_until(process, lambda: (run / "metrics.jsonl").exists() and len(records(run)) > 2)
    process.send_signal(2)
    stopped = finish(process)
    assert stopped.code == 130, stopped.err
    assert "everything is saved. To resume" in stopped.out
    resumed = train(None, f"resume={run}")
    assert resumed.code == 0, resumed.err
    mine, theirs = snapshot(run), snapshot(tmp_path / "whole")
    assert mine["metrics.jsonl"] == theirs["metrics.jsonl"]
    assert mine["online.json"] == theirs["online.json"]


def test_an_online_run_is_resumed_with_its_own_settings_alone(online_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(online_run, run)
    ended = train(None, f"resume={run}", "meta.lr=0.1")
    assert_one_sentence(ended, "meta.lr is 0.1 now and was 0.05")
    again = train(None, f"resume={run}")
    assert again.code == 0, again.err
    assert read_json(run / "online.json") == read_json(online_run / "online.json")


def test_an_online_run_that_diverges_says_so(tmp_path: Path) -> None:
    ended = online(tmp_path / "run", "optimizer.lr=1e30", "meta.runs=1", "optimizee.activation=relu")
    assert ended.code == 0, ended.err
    assert "diverged" in ended.out
    result = read_json(tmp_path / "run" / "result.json")
    assert result["status"] == "diverged"
    assert result["score"] is None or math.isinf(result["score"])


def test_a_run_that_diverged_is_never_the_best(tmp_path: Path) -> None:
    # At this rate the first run diverges, and the others don't.
    arguments = ["optimizee=rosenbrock", "optimizer=hypergradient", "optimizer.lr=0.04", "seed=1", "meta=online"]
    arguments += ["unroll=online", "unroll.steps=60", "meta.read_every=10", "meta.runs=3", "device=cpu"]
    ended = train(tmp_path / "run", *arguments)
    assert ended.code == 0, ended.err
    lasts = {r["run"]: r["loss"] for r in records(tmp_path / "run", "reading") if r["arm"] == "learning"}
    assert lasts[0] is None
    assert best(tmp_path / "run")["progress"]["best_loss"] == min(loss for loss in lasts.values() if loss is not None)
    assert "1 of 3" in ended.out
    assert read_json(tmp_path / "run" / "online.json")["arms"]["learning"]["diverged"] == 1


def test_online_needs_something_to_learn(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", "optimizee=digits", "optimizer=sgd", "meta=online")
    assert_one_sentence(ended, "meta=online learns gates and updates", "optimizer=sgd", "learns nothing")
    assert_one_sentence(online(tmp_path / "other", "meta.steps=3"), "steps")
    assert_one_sentence(online(tmp_path / "whole", "unroll.length=12"), "unroll.length=12 is the whole trajectory")
    assert_one_sentence(train(tmp_path / "init", "optimizer=sgd", "init=mnist"), "init=mnist has no parameters")


def test_what_was_learned_online_is_evaluated_and_a_start_for_others(online_run: Path, tmp_path: Path) -> None:
    ended = evaluate(tmp_path / "eval", f"checkpoint={online_run}", "problems=4", "tune.enabled=false")
    assert ended.code == 0, ended.err
    ended = online(tmp_path / "next", f"init={online_run}", "meta.runs=1")
    assert ended.code == 0, ended.err
    first = records(tmp_path / "next", "reading")[0]
    last = [r for r in records(online_run, "reading") if r["arm"] == "learning" and r["step"] == 12]
    assert first["rates"]["0.weight"] in [r["rates"]["0.weight"] for r in last]
