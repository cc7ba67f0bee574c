"""Learning to reweight examples: the weights against their definition, the imbalanced problems, and whole runs."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Params
from l2l_runner.models.lenet import LeNet
from l2l_runner.optimizees import Imbalance, ImbalanceProblem
from l2l_runner.optimizees.reweighted import Reweighted, example_weights
from l2l_runner.optimizers import HAND_DESIGNED
from l2l_runner.runtime import Runtime
from l2l_runner.training.reweighting import ARMS, PUBLISHED
from problems import OPTIMIZEE_FILES, RUNTIME, needs_mnist, optimizee, parse_optimizee, scattered
from running import (
    Death,
    assert_one_sentence,
    die_when_replacing,
    finish,
    last,
    lines,
    read_json,
    records,
    same_bits,
    snapshot,
    spawn,
    train,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("sketches")

DIGITS: dict[str, Any] = {"data": "digits", "images": 60, "side": 16, "clean": 3, "minibatch": 6}


def problem(count: int = 1, **changes: Any) -> ImbalanceProblem:
    """Imbalanced digits, in float64."""
    found = optimizee("imbalance", **{**DIGITS, "proportion": 0.8, **changes})
    assert isinstance(found, Imbalance)
    return found.sample(streams.seeds(0, "train", 0, count), RUNTIME)


# The weights


def normalised(useful: Tensor) -> Tensor:
    useful = useful.clamp(min=0)
    return useful / useful.sum() if useful.sum() > 0 else useful


def after_virtual_step(
    losses: Callable[[Params], Tensor], clean: Callable[[Params], Tensor], params: Params, epsilon: Tensor, lr: float
) -> Tensor:
    """The clean loss after the virtual SGD step on Σ ε ℓ, as algorithm 1 of Ren et al. 2018 has it; with its graph."""
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    grads = torch.autograd.grad((epsilon * losses(leaves)).sum(), list(leaves.values()), create_graph=True)
    return clean({name: leaves[name] - lr * g for name, g in zip(leaves, grads, strict=True)}).sum()


def toy(seed: int, examples: int = 7) -> tuple[Callable[[Params], Tensor], Callable[[Params], Tensor], Params]:
    """A small smooth network's losses on random examples, and on random clean ones."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    x, y, clean_x, clean_y = draw(examples, 3), draw(examples), draw(4, 3), draw(4)

    def errors(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return ((x @ params["w"]).tanh() @ params["v"] - y).square()

    params = {"w": draw(3, 5), "v": draw(5)}
    return lambda p: errors(p, x, y), lambda p: errors(p, clean_x, clean_y).mean(), params


@given(st.integers(0, 10_000), st.floats(1e-4, 10))
@settings(deadline=None, max_examples=30)
def test_weights_are_their_definition_by_a_virtual_step_and_double_backward(seed: int, lr: float) -> None:
    losses, clean, params = toy(seed)
    epsilon = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    (grads,) = torch.autograd.grad(after_virtual_step(losses, clean, params, epsilon, lr), epsilon)
    weights = example_weights(losses, clean, params)
    torch.testing.assert_close(weights, normalised(-grads), rtol=1e-10, atol=1e-14)


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_weights_agree_with_finite_differences(seed: int) -> None:
    losses, clean, params = toy(seed)
    h, unit = 1e-5, torch.eye(7, dtype=torch.float64)
    drops = torch.stack(
        [
            after_virtual_step(losses, clean, params, -h * e, 0.1)
            - after_virtual_step(losses, clean, params, h * e, 0.1)
            for e in unit
        ]
    )
    weights = example_weights(losses, clean, params)
    torch.testing.assert_close(weights, normalised(drops.detach()), rtol=1e-5, atol=1e-8)


@given(st.integers(0, 10_000), st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_weights_are_no_less_than_zero_and_sum_to_one_or_are_all_zero(seed: int, examples: int) -> None:
    weights = example_weights(*toy(seed, examples))
    assert weights.shape == (examples,)
    assert (weights >= 0).all()
    assert weights.sum().item() == pytest.approx(1) or not weights.any()


@pytest.mark.parametrize("harm", [0.0, -1.0, -1e-300])
def test_weights_are_all_zero_where_no_example_helps(harm: float) -> None:
    _, clean, params = toy(0)
    weights = example_weights(lambda p: harm * torch.stack([clean(p)] * 3), clean, params)
    assert weights.tolist() == [0, 0, 0]


def test_an_example_that_helps_alone_has_all_the_weight() -> None:
    _, clean, params = toy(0)
    factors = torch.tensor([-1.0, 0.0, 1e-200, -5.0], dtype=torch.float64)
    assert example_weights(lambda p: factors * clean(p), clean, params).tolist() == [0, 0, 1, 0]


def test_examples_weigh_in_proportion_to_what_they_help() -> None:
    _, clean, params = toy(0)
    factors = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    weights = example_weights(lambda p: factors * clean(p), clean, params)
    torch.testing.assert_close(weights, torch.tensor([0.25, 0, 0.75], dtype=torch.float64))


def test_weights_have_no_graph_and_leave_none() -> None:
    losses, clean, params = toy(0)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    weights = example_weights(losses, clean, leaves)
    assert not weights.requires_grad
    assert all(leaf.grad is None for leaf in leaves.values())
    assert torch.equal(weights, example_weights(losses, clean, params))
    with torch.no_grad():
        assert torch.equal(weights, example_weights(losses, clean, params))


def test_weights_of_lenet_are_their_definition_problem_by_problem() -> None:
    several = problem(2)
    views = several.layout.views(scattered(several))
    weights = example_weights(lambda p: several.example_losses(p, 3), several.clean_loss, views)
    epsilon = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    loss = after_virtual_step(lambda p: several.example_losses(p, 3), several.clean_loss, views, epsilon, 1e-3)
    (grads,) = torch.autograd.grad(loss, epsilon)
    expected = torch.stack([normalised(-own) for own in grads])
    assert 0 < (expected > 0).sum() < 12  # some help, some do not
    torch.testing.assert_close(weights, expected, rtol=1e-9, atol=1e-13)


def test_the_real_step_is_on_the_weighted_losses_with_weights_held_constant() -> None:
    one = problem()
    flat = scattered(one, scale=0.1).requires_grad_()
    views = one.layout.views(flat)
    loss = Reweighted(one).loss(views, 2)
    weights = example_weights(lambda p: one.example_losses(p, 2), one.clean_loss, views)
    expected = (weights * one.example_losses(views, 2)).sum(1)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    mine, theirs = (torch.autograd.grad(value.sum(), flat, retain_graph=True)[0] for value in (loss, expected))
    assert mine.abs().max() > 0
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


# The imbalanced problems


@pytest.mark.parametrize(("images", "proportion", "rare"), [(60, 0.8, 12), (100, 0.99, 1), (50, 0.5, 25), (33, 0.9, 3)])
def test_proportions_are_exact_and_clean_images_are_no_training_images(
    images: int, proportion: float, rare: int
) -> None:
    several = problem(3, images=images, proportion=proportion)
    for training, clean in zip(several.train.tolist(), several.clean.tolist(), strict=True):
        assert len(set(training)) == images
        assert several.rare[training].sum() == rare
        assert several.rare[clean].tolist() == [0, 0, 0, 1, 1, 1]
        assert not set(training) & set(clean)
    assert several.pool.shape[0] == len(several.rare)


def test_the_test_images_are_as_many_of_either_class_and_scaled_as_the_training_images() -> None:
    one = problem()
    images, rare = one.test
    assert rare.mean() == 0.5
    assert images.shape == (len(rare), 1, 16, 16)
    assert one.pool.mean().item() == pytest.approx(0, abs=1e-12)
    assert one.pool.std().item() == pytest.approx(1)
    assert images.std().item() == pytest.approx(1, rel=0.1)


def test_accuracy_is_the_share_of_test_images_on_the_right_side() -> None:
    one = problem()
    start = one.init()
    for bias, accuracy in ((1e6, 0.5), (-1e6, 0.5)):
        start["fc3.bias"] = torch.full((1, 1), bias, dtype=torch.float64)
        assert one.metrics(start)["accuracy"].tolist() == [accuracy]
    views = one.layout.views(scattered(one))
    module = LeNet(16, dtype=torch.float64)
    module.load_state_dict({name: value[0] for name, value in views.items()})
    images, rare = one.test
    right = sum(bool(logit > 0) == bool(label) for logit, label in zip(module(images), rare, strict=True))
    assert one.metrics(views)["accuracy"].item() == pytest.approx(right / len(rare))


def test_classes_are_told_in_their_order() -> None:
    one, other = problem(classes=[9, 4]), problem(classes=[4, 9])
    assert one.pool.shape == other.pool.shape
    assert one.rare.sum() == (other.rare == 0).sum()


def test_proportions_of_a_seed_share_their_start_and_their_first_images() -> None:
    few, many = problem(proportion=0.8), problem(proportion=0.95)
    assert same_bits(few.init(), many.init())
    assert torch.equal(few.clean, many.clean)
    assert set(few.train[0, :48].tolist()) < set(many.train[0, :57].tolist())


def test_the_start_is_that_of_pytorch_and_leaves_its_generator_alone() -> None:
    one = problem()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    start = one.init()
    assert torch.equal(torch.rand(2), expected)
    for name, layer in LeNet(16).named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            bound = layer.weight[0].numel() ** -0.5  # PyTorch draws both from U(−bound, bound)
            drawn = torch.cat([start[f"{name}.weight"].flatten(), start[f"{name}.bias"].flatten()])
            assert bound * 0.9 < drawn.abs().max() <= bound


@pytest.mark.parametrize("side", [16, 28, 32])
def test_lenet_is_its_usual_layers_in_their_usual_order(side: int) -> None:
    module = LeNet(side, outputs=2, dtype=torch.float64)
    maps = {16: 1, 28: 4, 32: 5}[side]
    convolutions = nn.Sequential(*[nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)])
    convolutions += nn.Sequential(*[nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()])
    dense = nn.Sequential(*[nn.Linear(16 * maps**2, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 2)])
    plain = nn.Sequential(*convolutions, *dense).double()
    plain.load_state_dict(dict(zip(plain.state_dict(), module.state_dict().values(), strict=True)))
    images = torch.randn(3, 1, side, side, dtype=torch.float64)
    torch.testing.assert_close(module(images), plain(images), rtol=1e-12, atol=1e-14)
    for network in (module, plain):
        F.cross_entropy(network(images), torch.tensor([0, 1, 1])).backward()
    for mine, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-14)


@needs_mnist
@pytest.mark.parametrize(("proportion", "rare"), [(0.9, 500), (0.95, 250), (0.98, 100), (0.99, 50), (0.995, 25)])
def test_mnist_has_the_images_of_the_experiment(proportion: float, rare: int) -> None:
    found = parse_optimizee({**OPTIMIZEE_FILES["imbalance"], "proportion": proportion})
    assert isinstance(found, Imbalance)
    one = found.sample(streams.seeds(0, "train", 0, 1), Runtime(data_root=RUNTIME.data_root))
    assert one.pool.shape[1:] == (1, 32, 32)
    assert one.train.shape == (1, 5000)
    assert one.rare[one.train].sum() == rare
    assert one.clean.shape == (1, 10)
    assert len(one.test[1]) == 2 * 982  # MNIST has 982 fours to test, and more nines
    assert one.example_losses(one.init(), 0).shape == (1, 100)


def test_more_images_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="images of class 9, of which digits has"):
        problem(images=2000)


# Whole runs

TINY = ["meta=reweight", "optimizee=imbalance", "optimizer=sgd", "optimizer.lr=0.05", "device=cpu", "device.threads=1"]
TINY += [f"optimizee.{key}={value}" for key, value in DIGITS.items()]
TINY += ["meta.proportions=[0.8,0.9]", "meta.runs=2", "meta.read_every=3", "unroll.steps=7"]
TRAJECTORIES = 2 * 2 * 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupted, with its pictures drawn."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ended = train(folder, *TINY)
    assert ended.code == 0, ended.err
    assert "proportion  runs  plain" in ended.out
    return folder


@pytest.mark.draws
def test_a_run_leaves_its_accuracies_and_a_picture(whole: Path) -> None:
    readings = records(whole, "reading")
    assert len(readings) == TRAJECTORIES * 4
    assert [reading["step"] for reading in readings[:4]] == [0, 3, 6, 7]
    summary = read_json(whole / "reweighting.json")
    assert [entry["proportion"] for entry in summary["proportions"]] == [0.8, 0.9]
    assert summary["settings"]["optimizee"]["images"] == 60
    for entry in summary["proportions"]:
        for arm in ARMS:
            figures = entry["arms"][arm]
            ends = [
                reading["accuracy"]
                for reading in readings
                if (reading["proportion"], reading["arm"], reading["step"]) == (entry["proportion"], arm, 7)
            ]
            assert figures["accuracies"] == ends
            assert figures["mean"] == pytest.approx(sum(ends) / 2)
            assert figures["steps"] == [0, 3, 6, 7]
            assert figures["curve"][-1]["mean"] == figures["mean"]
            assert figures["published"] is None  # of other images
    ends = [reading["accuracy"] for reading in readings if reading["step"] == 7 and reading["arm"] == "reweighted"]
    assert read_json(whole / "result.json")["score"] == pytest.approx(1 - sum(ends) / len(ends))
    assert (whole / "reweighting.png").read_bytes().startswith(b"\x89PNG")


def test_both_arms_start_at_the_same_point_of_the_same_problem(whole: Path) -> None:
    readings = records(whole, "reading")
    starts = {(r["run"], r["proportion"], r["arm"]): (r["loss"], r["accuracy"]) for r in readings if r["step"] == 0}
    assert len(starts) == TRAJECTORIES
    for (run, proportion, arm), (_, accuracy) in starts.items():
        assert accuracy == starts[run, proportion, "plain"][1], arm


def assert_same_run(mine: Path, theirs: Path) -> None:
    for part in ("progress", "point", "pending"):
        assert same_bits(last(mine)[part], last(theirs)[part])
    files, expected = snapshot(mine), snapshot(theirs)
    for name in ("metrics.jsonl", "result.json"):
        assert files[name] == expected[name], name
    (mine_summary, their_summary) = (read_json(folder / "reweighting.json") for folder in (mine, theirs))
    assert mine_summary == their_summary


@pytest.mark.parametrize(
    ("name", "time"),
    [("last.pt", 1), ("last.pt", 2), ("last.pt", 4), ("last.pt", 5), ("reweighting.json", 3), ("result.json", 1)],
)
def test_a_run_that_died_is_resumed_exactly(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        die_when_replacing(patched, name, time)
        with pytest.raises(Death):
            train(run, *TINY)
    ended = train(None, f"resume={run}")
    assert ended.code == 0, ended.err
    assert_same_run(run, whole)


def test_ctrl_c_keeps_everything_and_says_how_to_go_on(tmp_path: Path) -> None:
    longer = [*TINY, "unroll.steps=60", "meta.read_every=50", "meta.runs=1", "meta.proportions=[0.8]"]
    reference, run = tmp_path / "reference", tmp_path / "run"
    assert train(reference, *longer).code == 0
    process = spawn(*longer, f"hydra.run.dir={run}")
    wait_until(process, lambda: lines(run) > 3)  # in the second trajectory
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130, ended.err
    assert "everything is saved" in ended.out
    (command,) = [line for line in ended.out.splitlines() if "resume=" in line]
    ended = train(None, *shlex.split(command)[3:])
    assert ended.code == 0, ended.err
    assert_same_run(run, reference)


@pytest.mark.parametrize("optimizer", HAND_DESIGNED)
def test_every_hand_designed_optimizer_takes_the_real_step(tmp_path: Path, optimizer: str) -> None:
    one = ["meta.runs=1", "meta.proportions=[0.8]", "optimizer.lr=0.001"]
    ended = train(tmp_path / "run", *TINY, f"optimizer={optimizer}", *one)
    assert ended.code == 0, ended.err
    assert len({reading["loss"] for reading in records(tmp_path / "run", "reading")}) == 8
    assert read_json(tmp_path / "run" / "result.json")["status"] == "completed"


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *TINY, "optimizer.lr=1e30", "meta.runs=1", "meta.proportions=[0.8]")
    assert ended.code == 0, ended.err
    assert "diverged" in ended.out
    assert read_json(tmp_path / "run" / "result.json")["status"] == "diverged"


def test_weights_find_the_rare_class(tmp_path: Path) -> None:
    # Plain training says that all images are of the frequent class; weighted by a few clean ones, it tells them apart.
    learning = ["optimizer=adam", "optimizer.lr=0.001", "optimizee.minibatch=40", "optimizee.images=100"]
    more = ["optimizee.clean=5", "unroll.steps=60", "meta.proportions=[0.97]", "meta.runs=1", "meta.read_every=60"]
    assert train(tmp_path / "run", *TINY, *learning, *more).code == 0
    (entry,) = read_json(tmp_path / "run" / "reweighting.json")["proportions"]
    plain, reweighted = (entry["arms"][arm]["mean"] for arm in ARMS)
    assert plain < 0.7
    assert reweighted > 0.85


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["meta.proportions=[]"], ["meta.proportions", "one or more"]),
        (["meta.proportions=[0.9,0.9]"], ["meta.proportions", "all different"]),
        (["meta.proportions=0.9"], ["meta.proportions", "0.9", "list"]),
        (["meta.proportions=[0.9,1.0]"], ["meta.proportions[1]", "1.0", "< 1"]),
        (["meta.proportions=[0.8,0.995]"], ["optimizee.images=60", "0.995", "rare class"]),
        (["meta.runs=0"], ["meta.runs", "0", "≥ 1"]),
        (["meta.read_every=0"], ["meta.read_every", "0", "≥ 1"]),
        (["optimizee.classes=[9]"], ["optimizee.classes", "[9]", "two different digits"]),
        (["optimizee.classes=[4,4]"], ["optimizee.classes", "[4, 4]", "two different digits"]),
        (["optimizee.classes=[4,10]"], ["optimizee.classes[1]", "10", "< 10"]),
        (["optimizee.proportion=0.3"], ["optimizee.proportion", "0.3", "≥ 0.5"]),
        (["optimizee.data=cifar"], ["optimizee.data", "'cifar'", "mnist, digits"]),
        (["optimizee.side=15"], ["optimizee.side", "15", "≥ 16"]),
        (["optimizee.clean=0"], ["optimizee.clean", "0", "≥ 1"]),
        (["optimizee.images=3000"], ["optimizee.images=3000", "class 9", "digits"]),
    ],
)
def test_a_bad_setting_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(train(tmp_path / "run", *TINY, *arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["optimizer=lstm", "optimizee=imbalance"],
            ["meta=reweight", "hand-designed", "optimizer=lstm", "sgd or adam"],
        ),
        (["optimizer=sgd"], ["meta=reweight", "optimizee=quadratic", "optimizee=imbalance"]),
    ],
)
def test_what_cannot_be_reweighted_is_one_sentence(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    assert_one_sentence(train(tmp_path / "run", "meta=reweight", *arguments, "device=cpu"), *words)


def test_other_settings_are_refused_when_resumed(whole: Path) -> None:
    before = snapshot(whole)
    assert_one_sentence(train(None, f"resume={whole}", "optimizer.lr=0.1"), "cannot be resumed", "optimizer.lr")
    assert snapshot(whole) == before


@needs_mnist
def test_the_experiment_is_that_of_the_paper(tmp_path: Path) -> None:
    run = tmp_path / "run"
    short = ["unroll.steps=2", "meta.runs=1", "meta.proportions=[0.99]", "device=cpu", "device.threads=1"]
    ended = train(run, "experiment=reweight_mnist", *short)
    assert ended.code == 0, ended.err
    (entry,) = read_json(run / "reweighting.json")["proportions"]
    assert {arm: entry["arms"][arm]["published"] for arm in ARMS} == {arm: PUBLISHED[arm].get(0.99) for arm in ARMS}
    config = last(run)["config"]
    assert (config["optimizer"]["name"], config["optimizer"]["lr"]) == ("sgd", 1e-3)
    assert (config["optimizee"]["images"], config["optimizee"]["clean"], config["optimizee"]["side"]) == (5000, 5, 32)
