"""Whole runs on the maze."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from l2l_runner import streams
from l2l_runner.pages.reporting import figures
from l2l_runner.pages.reporting.contents import read_runs
from l2l_runner.plots.style import new_axes
from l2l_runner.plots.sweeps import SweepPoint, draw_sweep
from l2l_runner.runs import checkpoint
from l2l_runner.runtime import Runtime
from problems import (
    OPTIMIZEE_FILES,
    WARP_RNN,
    given,
    parse_optimizee,
    parse_optimizer,
)
from running import (
    Death,
    best,
    die_when_replacing,
    last,
    read_json,
    records,
    same_bits,
    snapshot,
    train,
)

# Runs

ONLINE = ["experiment=maze", *given("maze"), "optimizer.hidden=3", "optimizer.lr=0.01", "unroll.length=3"]
ONLINE += ["unroll.steps=12", "meta.runs=2", "meta.read_every=6", "device=cpu", "device.threads=1"]


@pytest.fixture(scope="module")
def online_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("maze") / "run"
    ended = train(folder, *ONLINE)
    assert ended.code == 0, ended.err
    assert "training return" in ended.out
    return folder


def test_the_maze_alone_is_the_warp_rnn_learning_online(online_run: Path) -> None:
    config = last(online_run)["config"]
    assert [config[group]["name"] for group in ("optimizee", "optimizer", "meta")] == ["maze", "warp_rnn", "online"]
    assert [(r["run"], r["arm"], r["step"]) for r in records(online_run, "reading")] == [
        (run, arm, step) for run in (0, 1) for arm in ("learning", "fixed") for step in (0, 6, 12)
    ]
    summary = read_json(online_run / "online.json")
    assert summary["gain"] == "return"
    for arm in summary["arms"].values():
        assert all(loss["mean"] <= 0 for loss in arm["loss"])
        assert all(metric["mean"] >= 0 for metric in arm["metrics"]["return"])
    assert best(online_run)["optimizer"]["gates.cell.project.weight"].any()
    assert (
        read_json(online_run / "result.json")["metrics"]["return"]
        == summary["arms"]["learning"]["metrics"]["return"][-1]
    )
    for picture in ("online.png", "pictures.png"):
        assert (online_run / picture).stat().st_size > 10_000


@pytest.mark.parametrize("arm", ["fixed", "learning"])
def test_an_arm_is_a_plain_loop(online_run: Path, arm: str) -> None:
    """The first run once more with torch.optim.Adam: the plain RNN, and the one whose gates learn every three steps."""
    settings = {item.split("=")[0].split(".")[1]: int(item.split("=")[1]) for item in given("maze")}
    node = {**OPTIMIZEE_FILES["maze"], **settings}
    problem = parse_optimizee(node).sample(streams.seeds(0, "train", 0, 1), Runtime())
    warp = checkpoint.build_rule(parse_optimizer({**WARP_RNN, "hidden": 3}), parse_optimizee(node), 0)
    gates = list(warp.parameters()) if arm == "learning" else []
    problem = problem.warped(dict(warp.gates.items())) if gates else problem
    params = {name: value.clone().requires_grad_() for name, value in problem.init().items()}
    adam, meta_adam = torch.optim.Adam(params.values(), lr=0.01), torch.optim.Adam(warp.parameters(), lr=1e-3)
    losses = []
    for step in range(13):
        for param in params.values():
            param.grad = None
        loss = problem.loss(params, step)
        loss.sum().backward()
        losses.append(loss.item())
        if step == 0:
            meta_adam.zero_grad()  # windows begin after the start
        elif gates and step % 3 == 0:
            meta_adam.step()
            meta_adam.zero_grad()
        torch.nn.utils.clip_grad_norm_(params.values(), WARP_RNN["clip"])
        adam.step()
    found = [r["loss"] for r in records(online_run, "reading") if (r["run"], r["arm"]) == (0, arm)]
    assert found == pytest.approx([losses[0], sum(losses[1:7]) / 6, sum(losses[7:]) / 6], rel=1e-5)


def test_a_run_that_died_is_resumed_exactly(online_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        die_when_replacing(patched, "last.pt", 4)  # in the middle of the first run's fixed arm
        with pytest.raises(Death):
            train(folder, *ONLINE)
    assert 0 < len(records(folder, "reading")) < len(records(online_run, "reading"))
    resumed = train(None, f"resume={folder}")
    assert resumed.code == 0, resumed.err
    mine, theirs = snapshot(folder), snapshot(online_run)
    for name in ("metrics.jsonl", "online.json", "online.png", "pictures.png"):
        assert mine[name] == theirs[name], name
    assert same_bits(best(folder)["optimizer"], best(online_run)["optimizer"])


# What is shown


def test_reports_and_sweeps_show_negative_losses(
    online_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = new_axes(Figure(), 111, "", "", "")
    points = [SweepPoint({"optimizer.lr": lr}, mean=mean, ci95=2.0) for lr, mean in (("0.1", -5.0), ("0.2", -9.0))]
    draw_sweep(axes, points)
    assert axes.get_yscale() == "linear"
    (container,) = axes.containers
    assert [segment[:, 1].tolist() for segment in container[2][0].get_segments()] == [[-7.0, -3.0], [-11.0, -7.0]]
    (run,), _ = read_runs([online_run])
    drawn = []
    with monkeypatch.context() as patched:
        patched.setattr(figures, "_write", lambda *given: drawn.append(given[3]))
        figures.curve_pictures(tmp_path, [run])
    (axes,) = drawn
    assert axes.get_yscale() == "linear"
    assert len([line for line in axes.get_lines() if (line.get_ydata() <= 0).all() and len(line.get_ydata()) == 3]) == 2
