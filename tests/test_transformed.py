"""Learned transforms as optimizers of the runner, and online training."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout
from l2l_runner.meta import TBPTT
from l2l_runner.optimizers import SGD, Transformed
from l2l_runner.unroll import start, unroll
from problems import OPTIMIZER_FILES, optimizee, parse_optimizer, problems
from running import (
    QUICK,
    Ended,
    assert_one_sentence,
    best,
    evaluate,
    finish,
    read_json,
    records,
    snapshot,
    spawn,
    train,
    wait_until,
)

KINDS = ("metasgd", "metacurvature", "kronecker", "module_transform", "hypergradient")
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


def transformed(kind: str, layout: Layout, seed: int = 0, **changes: Any) -> Transformed:
    """An optimizer of that kind, away from its start, in float64."""
    settings = parse_optimizer({**OPTIMIZER_FILES[kind], "lr": 0.05, **changes})
    generator = torch.Generator().manual_seed(seed)
    optimizer = settings.build(layout, generator).double()
    with torch.no_grad():
        for parameter in optimizer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_sgd(kind: str) -> None:
    problem = problems("digits", 3, pool=2)
    settings = parse_optimizer({**OPTIMIZER_FILES[kind], "lr": 0.05})
    optimizer = settings.build(problem.layout, torch.Generator().manual_seed(0)).double()
    lr = 0.05 * OPTIMIZER_FILES[kind].get("init", 1.0)
    sgd = SGD(lr=lr, weight_decay=0.0)
    ours, theirs = (
        [point.loss for _, point in unroll(problem, each, start(problem, each), 5)] for each in (optimizer, sgd)
    )
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_problems_do_not_see_each_other(kind: str) -> None:
    problem = problems("digits", 3, pool=2)
    optimizer = transformed(kind, problem.layout)
    grads = torch.randn(3, problem.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together, _ = optimizer.update(grads, (), grads)
    alone = torch.cat([optimizer.update(row, (), row)[0] for row in grads.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 4])
def test_the_replay_is_the_graph(kind: str, length: int) -> None:
    problem = problems("digits", 2, pool=2)
    optimizer = transformed(kind, problem.layout)
    replayed, differentiated = (
        list(TBPTT(length=length, steps=8, engine=engine).estimates(optimizer, problem))
        for engine in ("replay", "graph")
    )
    for one, other in zip(replayed, differentiated, strict=True):
        torch.testing.assert_close(one.meta_loss, other.meta_loss, rtol=1e-12, atol=0)
        for mine, theirs in zip(one.grads, other.grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_those_of_finite_differences(kind: str) -> None:
    problem = problems("rosenbrock", 2)
    optimizer = transformed(kind, problem.layout, lr=1e-3)
    whole = {"length": 4, "steps": 4, "engine": "graph"}
    (exact,) = TBPTT(**whole, second_order=True).estimates(optimizer, problem)
    (first,) = TBPTT(**whole).estimates(optimizer, problem)
    parameters, size = list(optimizer.parameters()), 1e-6
    apart = False
    for parameter, mine, short in zip(parameters, exact.grads, first.grads, strict=True):
        flat = parameter.detach().view(-1)
        for index in range(flat.numel()):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * size
                (moved,) = TBPTT(**whole).estimates(optimizer, problem)
                ends.append(moved.meta_loss.item())
                flat[index] -= sign * size
            expected = (ends[0] - ends[1]) / (2 * size)
            assert mine.view(-1)[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
            apart |= short.view(-1)[index].item() != pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert apart


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_one_step_are_one_step_hypergradients(kind: str) -> None:
    problem = problems("digits", 2, pool=2)
    optimizer = transformed(kind, problem.layout)
    (estimate,) = TBPTT(length=1, steps=1).estimates(optimizer, problem)
    begun = start(problem, optimizer)
    ((_, reached),) = unroll(problem, optimizer, begun, 1)
    # The mean over problems of ⟨g', ∂u⟩ with u = −lr T(g), which is −lr g' · ∂T(g).
    with torch.enable_grad():
        update, _ = optimizer.update(begun.grads, (), begun.params)
        expected = torch.autograd.grad(update, list(optimizer.parameters()), reached.grads / len(reached.grads))
    for mine, theirs in zip(estimate.grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_rates_are_for_all_for_a_tensor_or_for_an_element() -> None:
    layout = optimizee("digits", pool=2).layout()
    counts = {}
    for rates in ("global", "tensor", "element"):
        settings = parse_optimizer({**OPTIMIZER_FILES["hypergradient"], "lr": 0.5, "init": 0.1, "rates": rates})
        optimizer = settings.build(layout, torch.Generator())
        counts[rates] = sum(parameter.numel() for parameter in optimizer.parameters())
        assert set(optimizer.rates()) == set(layout.shapes)
        for name, rate in optimizer.rates().items():
            torch.testing.assert_close(rate, torch.full_like(rate, 0.05))
            assert rate.shape == (layout.shapes[name] if rates == "element" else ())
    assert counts == {"global": 1, "tensor": len(layout.shapes), "element": layout.size}


def test_patterns_choose_other_transforms() -> None:
    layout = optimizee("digits", pool=2).layout()
    optimizer = transformed("kronecker", layout, patterns={"2.*": "none", "*.bias": "metasgd"})
    kinds = {name[1:].replace("/", "."): type(one).__name__ for name, one in optimizer.transforms.items()}
    assert kinds == {"0.weight": "ReshapedTransform", "0.bias": "MetaSGD"}
    grads = torch.randn(2, layout.size, dtype=torch.float64)
    update, _ = optimizer.update(grads, (), grads)
    torch.testing.assert_close(layout.views(update)["2.weight"], -0.05 * layout.views(grads)["2.weight"])


def test_a_pattern_for_all_is_for_all_and_names_are_free() -> None:
    layout = Layout({"keys": (2,), "a": (3, 2), "b": (2,)})
    optimizer = transformed("metasgd", layout, patterns={"b": "none", "*": "metacurvature"})
    assert {name: type(one).__name__ for name, one in optimizer.transforms.items()} == {
        "/keys": "MetaCurvatureTransform",
        "/a": "MetaCurvatureTransform",
    }


def test_the_start_follows_from_the_seed_alone() -> None:
    layout = Layout({"theta": (3,)})
    build = parse_optimizer({**OPTIMIZER_FILES["module_transform"], "identity": False}).build
    before = torch.random.get_rng_state()
    one, other, third = (build(layout, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(iter(each.parameters())) for each in (one, other, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_does_not_fit_is_refused() -> None:
    layout, other = Layout({"a.b": (2, 3)}), Layout({"a.b": (6,)})
    optimizer = transformed("metacurvature", layout)
    optimizer.fitted(layout)
    with pytest.raises(ConfigError, match=r"for each of the tensors a\.b \[2, 3\], but the optimizee has a\.b \[6\]"):
        optimizer.fitted(other)
    with pytest.raises(ConfigError, match=r"kernel=cpp computes LSTM optimizers only.*use kernel=auto"):
        optimizer.use_kernel("cpp")
    optimizer.use_kernel("auto")
    with pytest.raises(ConfigError, match=r"4,097 inputs and outputs for theta; expected at most 4,096"):
        parse_optimizer(OPTIMIZER_FILES["module_transform"]).build(Layout({"theta": (4097,)}), torch.Generator())
    for module, words in {
        "torch.nn.Nothing": r"optimizer\.module is 'torch\.nn\.Nothing', which isn't there",
        "os.getcwd": r"expected the import path of an nn\.Module",  # what makes no modules is never called
        "torch.nn.ReLU": r"optimizer\.module=torch\.nn\.ReLU could not be called with \(6, 6\)",
    }.items():
        with pytest.raises(ConfigError, match=words):
            parse_optimizer({**OPTIMIZER_FILES["module_transform"], "module": module}).build(layout, torch.Generator())
    for pattern, words in {
        "no.*": r"no\.\*, which fits none of the parameters a\.b",
        "*": "nothing to learn",
    }.items():
        with pytest.raises(ConfigError, match=words):
            transformed("metasgd", layout, patterns={pattern: "none"})


def test_they_are_trained_and_evaluated_like_any_other(tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = [item for item in QUICK if not item.startswith("optimizer.")]
    ended = train(run, *quick, "optimizer=metacurvature", "optimizer.patterns={theta:kronecker}")
    assert ended.code == 0, ended.err
    assert "engine replay, kernel torch" in ended.out
    ended = evaluate(tmp_path / "eval", f"checkpoint={run}", "tune.enabled=false")
    assert ended.code == 0, ended.err
    wrong = evaluate(tmp_path / "wrong", f"checkpoint={run}", "optimizee.dim=5")
    assert_one_sentence(wrong, "theta [3]", "theta [5]", "evaluate it on the optimizee that it was trained on")
    for extra in ("meta.coordinates=2", "kernel=cpp", "optimizer.patterns={theta:adam}"):
        assert train(tmp_path / extra, *quick, "optimizer=metacurvature", extra).code == 1


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
    for step in range(12):
        leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
        grads = torch.autograd.grad(problem.loss(leaves, step).sum(), list(leaves.values()))
        if step:
            for name, grad in zip(leaves, grads, strict=True):
                rates[name].grad = -0.1 * (grad * last[name]).sum()  # noqa: F821
            adam.step()
        last = dict(zip(leaves, grads, strict=True))
        params = {name: leaves[name].detach() - 0.1 * rates[name].detach() * last[name] for name in leaves}
        losses.append(problem.loss(params, step + 1).item())
    found = [r["loss"] for r in records(online_run, "reading") if (r["run"], r["arm"]) == (0, "learning")]
    expected = [sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)]
    assert found[1:] == pytest.approx(expected, rel=1e-5)


def test_a_stopped_online_run_is_resumed_exactly(online_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    steps = ["unroll.steps=200", "meta.read_every=20"]
    whole = online(tmp_path / "whole", *steps)
    assert whole.code == 0, whole.err
    process = spawn(*ONLINE, *steps, f"hydra.run.dir={run}")
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
