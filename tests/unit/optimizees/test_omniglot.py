"""Omniglot: its files, its tasks and their splits, its distortions, and its network with and without warp layers."""

from __future__ import annotations

import itertools
import math
import random
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision import datasets

from drawings import DRAWINGS
from l2l_runner import streams
from l2l_runner.errors import ConfigError, DataError
from l2l_runner.layout import Site
from l2l_runner.optimizees import omniglot
from l2l_runner.optimizees.data import load_omniglot
from l2l_runner.optimizees.omniglot import ALPHABETS, distorted, load_tasks
from l2l_runner.runtime import Runtime
from problems import RUNTIME, needs_omniglot, optimizee, scattered

CPU = torch.device("cpu")
PARTS = ("images_background", "images_evaluation")

# Files


def strokes(seed: int) -> Image.Image:
    """A drawing as the data set's are: 105×105, white, with black lines."""
    paper = np.full((105, 105), 255, dtype=np.uint8)
    random_numbers = np.random.default_rng(seed)
    for place in random_numbers.integers(10, 90, 4):
        paper[place : place + 3, random_numbers.integers(0, 50) :] = 0
    return Image.fromarray(paper).convert("1")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set, unpacked, whose files came to be in no order."""
    root = tmp_path_factory.mktemp("omniglot")
    names = [
        (part, f"Alphabet {part[7]}{i}", f"character{j:02}", f"{j:04}_{k:02}.png")
        for part in PARTS
        for i in range(2)
        for j in range(i + 1)
        for k in range(20)
    ]
    random.Random(0).shuffle(names)
    for *folders, name in names:
        folder = root.joinpath("omniglot-py", *folders)
        folder.mkdir(parents=True, exist_ok=True)
        strokes(hash_of(*folders[1:], name)).save(folder / name)
    return root


def hash_of(*words: str) -> int:
    return int.from_bytes("/".join(words).encode()) % 1_000_003


@pytest.fixture
def root(files: Path, tmp_path: Path) -> Path:
    """A copy of it, read by nobody yet."""
    load_omniglot.cache_clear()
    shutil.copytree(files, tmp_path / "data")
    return tmp_path / "data"


def pack(root: Path) -> None:
    """Zips in the place of the folders."""
    for part in PARTS:
        folder = root / "omniglot-py" / part
        with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
            for path in folder.rglob("*"):
                archive.write(path, Path(part, path.relative_to(folder)))
        shutil.rmtree(folder)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("packed", [False, True], ids=["folders", "zips"])
def test_drawings_are_the_files_in_the_order_of_their_names(root: Path, packed: bool) -> None:
    if packed:
        pack(root)
    drawings = load_omniglot(root, False)
    assert {name: tuple(own.shape) for name, own in drawings.items()} == {
        f"Alphabet {part}{i}": (i + 1, 20, 28, 28) for part in "be" for i in range(2)
    }
    assert list(drawings) == sorted(drawings)
    for name, own in drawings.items():
        for j, k in ((0, 0), (0, 19), (len(own) - 1, 7)):
            drawing = strokes(hash_of(name, f"character{j:02}", f"{j:04}_{k:02}.png")).convert("L")
            expected = 255 - np.array(drawing.resize((28, 28), Image.Resampling.BILINEAR)).astype(int)
            assert own[j, k].dtype == torch.uint8
            assert np.abs(own[j, k].numpy() - expected).max() <= 1
            assert own[j, k].max() > 150  # ink on nothing
            assert (own[j, k] == 0).float().mean() > 0.3


def test_drawings_are_kept_in_one_file(root: Path) -> None:
    first = load_omniglot(root, False)
    folder = root / "omniglot-py"
    (kept,) = [path for path in folder.iterdir() if path.is_file()]
    for part in PARTS:
        shutil.rmtree(folder / part)
    load_omniglot.cache_clear()
    assert same(load_omniglot(root, False), first)
    kept.write_bytes(b"nonsense")
    load_omniglot.cache_clear()
    with pytest.raises(DataError, match=r"is damaged \(.*\): delete it"):
        load_omniglot(root, False)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = load_omniglot(root, False)
    (root / "omniglot-py" / "drawings-28x28.pt").unlink()
    load_omniglot.cache_clear()

    def full(drawings: object, path: Path) -> None:
        path.write_bytes(b"half of i")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", full)
    assert same(load_omniglot(root, False), kept)
    assert sorted(path.name for path in (root / "omniglot-py").iterdir()) == sorted(PARTS)


def test_missing_drawings_are_said_with_their_place(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Omniglot is not in") as caught:
        load_omniglot(tmp_path / "nowhere", False)
    assert str(tmp_path / "nowhere" / "omniglot-py") in str(caught.value)
    assert "L2L_DATA" in str(caught.value)
    next((root / "omniglot-py").rglob("*.png")).unlink()
    with pytest.raises(DataError, match="has 19 drawings, not 20"):
        load_omniglot(root, False)


def test_a_damaged_zip_is_said(root: Path) -> None:
    pack(root)
    (root / "omniglot-py" / "images_evaluation.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a zip"):
        load_omniglot(root, False)


def test_missing_drawings_are_downloaded_if_one_wants(files: Path, tmp_path: Path, monkeypatch) -> None:
    fetched = []

    class Stub:
        def __init__(self, root: str, background: bool, download: bool):
            assert download
            fetched.append(part := PARTS[not background])
            if "fails" in root:
                raise OSError("the network is down")
            shutil.copytree(files / "omniglot-py" / part, Path(root, "omniglot-py", part))

    monkeypatch.setattr(datasets, "Omniglot", Stub)
    load_omniglot.cache_clear()
    assert len(load_omniglot(tmp_path / "works", True)) == 4
    assert fetched == list(PARTS)
    with pytest.raises(DataError, match="the network is down"):
        load_omniglot(tmp_path / "fails", True)


@needs_omniglot
def test_the_data_set_has_46_alphabets_of_20_characters() -> None:
    drawings = load_omniglot(RUNTIME.data_root, False)
    assert len(drawings) == 50
    assert sum(len(own) for own in drawings.values()) == 1623
    assert sum(len(own) >= 20 for own in drawings.values()) == ALPHABETS
    ink = torch.cat(list(drawings.values())).float() / 255
    assert 0.03 < ink.mean() < 0.15


# Tasks and splits


@pytest.fixture
def noisy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    """A runtime in float64 whose data set is noise."""
    monkeypatch.setattr(omniglot, "load_omniglot", lambda root, download: DRAWINGS)
    return Runtime(dtype=torch.float64, data_root=tmp_path)


def make(runtime: Runtime, count: int = 3, split: str = "train", **changes):
    kind = optimizee("omniglot", **changes)
    return kind.sample(kind.seeds(0, split, 0, count), runtime)


def test_a_task_is_twenty_characters_of_15_and_5_drawings(noisy: Runtime) -> None:
    tasks = load_tasks(0, noisy.data_root, False, CPU)
    assert sorted(tasks.alphabets) == sorted(name for name, own in DRAWINGS.items() if len(own) >= 20)
    assert tasks.train.shape == (ALPHABETS, 300, 28, 28)
    assert tasks.test.shape == (ALPHABETS, 100, 28, 28)
    for name, training, test in zip(tasks.alphabets, tasks.train, tasks.test, strict=True):
        characters = training[::15, 0, 0]
        assert len(characters.unique()) == 20
        assert torch.equal(training[:, 0, 0], characters.repeat_interleave(15))
        assert torch.equal(test[:, 0, 0], characters.repeat_interleave(5))
        own = {drawing.numpy().tobytes() for drawing in DRAWINGS[name][characters.long()].flatten(0, 1)}
        parts = [{drawing.numpy().tobytes() for drawing in part} for part in (training, test)]
        assert [len(part) for part in parts] == [300, 100]
        assert parts[0] | parts[1] == own


def test_tasks_follow_from_the_split_seed_and_no_order_of_files(noisy: Runtime, monkeypatch, tmp_path: Path) -> None:
    tasks = load_tasks(0, noisy.data_root, False, CPU)
    backwards = dict(reversed(list(DRAWINGS.items())))
    monkeypatch.setattr(omniglot, "load_omniglot", lambda root, download: backwards)
    again = load_tasks(0, tmp_path / "again", False, CPU)
    assert again.alphabets == tasks.alphabets
    assert torch.equal(again.train, tasks.train)
    assert torch.equal(again.test, tasks.test)
    other = load_tasks(1, noisy.data_root, False, CPU)
    assert other.alphabets != tasks.alphabets
    place = other.alphabets.index(tasks.alphabets[0])
    assert not torch.equal(other.train[place], tasks.train[0])


def test_other_data_sets_are_refused(noisy: Runtime, monkeypatch) -> None:
    fewer = {name: own for name, own in DRAWINGS.items() if name != "Alphabet 1"}
    monkeypatch.setattr(omniglot, "load_omniglot", lambda root, download: fewer)
    with pytest.raises(
        DataError, match=f"has {ALPHABETS - 1} alphabets of 20 characters or more; expected {ALPHABETS}"
    ):
        make(noisy)


@pytest.mark.parametrize("pretrain", [1, 5, 25, 35])
def test_splits_are_disjoint_and_the_test_is_always_the_same(noisy: Runtime, pretrain: int) -> None:
    kind = optimizee("omniglot", pretrain_alphabets=pretrain)
    tasks = {
        split: set(kind.sample(kind.seeds(3, split, 0, 100), noisy).tasks.tolist())
        for split in ("train", "validation", "test")
    }
    assert tasks == {
        "train": set(range(pretrain)),
        "validation": set(range(pretrain, ALPHABETS - 10)),
        "test": set(range(ALPHABETS - 10, ALPHABETS)),
    }
    assert kind.layout().tasks == pretrain
    fewest = optimizee("omniglot", pretrain_alphabets=1)
    assert torch.equal(kind.seeds(3, "test", 7, 30), fewest.seeds(3, "test", 7, 30))


@given(
    st.sampled_from(["train", "validation", "test"]),
    st.integers(1, 35),
    st.integers(0, 200),
    st.integers(1, 60),
    st.integers(0, 60),
)
@settings(deadline=None, max_examples=50)
def test_problems_go_round_all_alphabets_however_many_are_asked_for(split, pretrain, first, count, cut) -> None:
    kind = optimizee("omniglot", pretrain_alphabets=pretrain)
    seeds = kind.seeds(0, split, first, count)
    parts = [kind.seeds(0, split, first, min(cut, count)), kind.seeds(0, split, first + cut, max(0, count - cut))]
    assert torch.equal(torch.cat(parts), seeds)
    assert len(seeds.unique()) == count
    size = {"train": pretrain, "validation": ALPHABETS - 10 - pretrain, "test": 10}[split]
    for start in range((-first) % size, count - size + 1, size):
        assert len((seeds[start : start + size] & 0xFF).unique()) == size


def test_rounds_and_runs_have_orders_of_their_own() -> None:
    kind = optimizee("omniglot")
    orders = [tuple((kind.seeds(run, "train", 25 * i, 25) & 0xFF).tolist()) for run in (0, 1) for i in range(4)]
    assert len(set(orders)) == 8


def test_a_split_without_validation_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pretrain_alphabets=36 and .*leave none of the 46 alphabets for validation"):
        optimizee("omniglot", pretrain_alphabets=36)


def test_alphabets_that_were_trained_on_are_no_test() -> None:
    """By the definition of splits, over all pairs of a few."""
    kinds = [
        optimizee("omniglot", split_seed=seed, pretrain_alphabets=pretrain, test_alphabets=test)
        for seed, pretrain, test in itertools.product((0, 1), (1, 25, 35), (1, 10))
    ]
    refused = 0
    for trained, kind in itertools.product(kinds, kinds):
        orders = [omniglot.order_of_alphabets(one.split_seed) for one in (trained, kind)]
        common = {*orders[0][: trained.pretrain_alphabets]} & {*orders[1][46 - kind.test_alphabets :]}
        if common:
            refused += 1
            with pytest.raises(ConfigError, match=rf"hold out {len(common)} of the alphabets .*split_seed="):
                kind.refuse_training_tasks(trained)
        else:
            kind.refuse_training_tasks(trained)
    assert 0 < refused < len(kinds) ** 2
    optimizee("quadratic").refuse_training_tasks(kinds[0])
    kinds[0].refuse_training_tasks(optimizee("quadratic"))


# Distortions


def plainly_distorted(image: np.ndarray, angle: float, scale: float, right: float, down: float) -> np.ndarray:
    """Pixel by pixel: where it comes from, and the mean of the four pixels there, by their distances."""
    side = len(image)
    centre = (side - 1) / 2
    result = np.zeros_like(image)
    for row in range(side):
        for column in range(side):
            x, y = column - centre - right * side, row - centre - down * side
            from_x = (x * math.cos(angle) + y * math.sin(angle)) / scale + centre
            from_y = (-x * math.sin(angle) + y * math.cos(angle)) / scale + centre
            for i in (math.floor(from_y), math.floor(from_y) + 1):
                for j in (math.floor(from_x), math.floor(from_x) + 1):
                    if 0 <= i < side and 0 <= j < side:
                        result[row, column] += image[i, j] * (1 - abs(from_y - i)) * (1 - abs(from_x - j))
    return result


def test_distorted_images_are_turned_scaled_and_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 28, 28, dtype=torch.float64, generator=generator)
    numbers = torch.rand(5, 4, dtype=torch.float64, generator=generator)
    found = distorted(images, numbers)
    for image, (a, s, x, y), result in zip(images, numbers.tolist(), found, strict=True):
        plain = plainly_distorted(image[0].numpy(), 2 * math.pi * a, 0.8 + 0.4 * s, 0.4 * x - 0.2, 0.4 * y - 0.2)
        np.testing.assert_allclose(result[0].numpy(), plain, rtol=1e-9, atol=1e-9)


def test_distortions_of_known_result() -> None:
    image = torch.rand(1, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def one(angle: float = 0.0, scale: float = 0.5, right: float = 0.5, down: float = 0.5) -> torch.Tensor:
        return distorted(image, torch.tensor([[angle, scale, right, down]], dtype=torch.float64))

    torch.testing.assert_close(one(), image)
    torch.testing.assert_close(one(angle=0.25), torch.rot90(image, -1, (2, 3)))  # clockwise, as rows go down
    pixel = 1 / 28 / 0.4
    torch.testing.assert_close(one(right=0.5 + 3 * pixel)[..., 3:], image[..., :-3])
    torch.testing.assert_close(one(down=0.5 + 2 * pixel)[..., 2:, :], image[..., :-2, :])
    assert (one(right=0.5 + 3 * pixel)[..., :3].abs() < 1e-12).all()  # nothing comes from outside


def test_distortions_follow_from_seed_and_step(noisy: Runtime) -> None:
    problem = make(noisy, 2)
    index = torch.zeros(2, 6, dtype=torch.long)
    images = problem._images(problem.drawings.train, index, "distortion", 4)
    assert torch.equal(problem._images(problem.drawings.train, index, "distortion", 4), images)
    assert images.shape == (2, 6, 1, 28, 28)
    assert len(images.flatten(2).flatten(0, 1).unique(dim=0)) == 12  # each of its own
    assert not torch.equal(problem._images(problem.drawings.train, index, "distortion", 5), images)
    plain = make(noisy, 2, augment=False)
    drawing = plain._images(plain.drawings.train, index, "distortion", 4)[1, 3, 0]
    assert torch.equal(drawing, plain.drawings.train[plain.tasks[1], 0].double() / 255)
    alone = problem.take(torch.tensor([1]))
    torch.testing.assert_close(alone._images(alone.drawings.train, index[:1], "distortion", 4)[0], images[1])


# The network


class Plain(nn.Module):
    """The network once more, of stock layers with storage of their own."""

    def __init__(self, filters: int, warps: dict[str, nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList()
        for i in range(4):
            block = nn.Module()
            block.conv = nn.Conv2d(filters if i else 1, filters, 3, padding=1)
            block.norm = nn.BatchNorm2d(filters, momentum=1.0)  # whose running statistics are those of the last batch
            self.blocks.append(block)
        self.head = nn.Linear(filters, 20)
        self.warps = warps  # no submodules of this one

    def forward(self, x):
        for i, block in enumerate(self.blocks, start=1):
            x = block.norm(nn.functional.max_pool2d(block.conv(x), 2)).relu()
            x = self.warps[f"warp{i}"](x) if f"warp{i}" in self.warps else x
        return self.head(x.flatten(1))


def plain(problem, flat, i, warps=None) -> Plain:
    module = Plain(problem.optimizee.filters, warps or {}).double()
    values = {name: view[i].detach() for name, view in problem.layout.views(flat).items()}
    missing, unexpected = module.load_state_dict(values, strict=False)
    assert not unexpected
    assert all("running" in name or "num_batches" in name for name in missing)
    return module


def linear_warps(filters: int = 4) -> dict[str, nn.Module]:
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        return {f"warp{i}": nn.Conv2d(filters, filters, 3, padding=1).double() for i in range(1, 5)}


def normalised_warps(filters: int = 4) -> dict[str, nn.Module]:
    """Layers that must not mix the images of several problems."""
    warps = linear_warps(filters)
    return {
        name: nn.Sequential(warps[name], nn.BatchNorm2d(filters, track_running_stats=False).double())
        for name in ("warp1", "warp3")
    }


def test_numbers_of_parameters_and_sites() -> None:
    layout = optimizee("omniglot", filters=64).layout()
    assert layout.size == 113_236
    assert layout.sites == {f"warp{i}": Site(64, 2) for i in range(1, 5)}
    assert sum(p.numel() for warp in linear_warps(64).values() for p in warp.parameters()) == 147_712


def test_problems_start_as_stock_layers_do(noisy: Runtime) -> None:
    start = make(noisy, 40, filters=16).init()
    for name, value in start.items():
        layer, kind = name.rsplit(".", 1)
        if layer.endswith("norm"):
            assert (value == (kind == "weight")).all()
        else:
            bound = math.prod(start[f"{layer}.weight"].shape[2:]) ** -0.5
            assert 0.97 * bound < value.max() <= bound
            assert -0.97 * bound > value.min() >= -bound
            assert value.var().item() == pytest.approx(bound**2 / 3, rel=0.1)


@pytest.mark.parametrize("make_warps", [dict, linear_warps, normalised_warps])
@pytest.mark.parametrize("vectorised", [False, True], ids=["one by one", "vmap"])
def test_losses_and_gradients_are_those_of_stock_layers(noisy: Runtime, make_warps, vectorised: bool) -> None:
    problem, warps = make(noisy), make_warps()
    problem.vectorised = vectorised
    problem = problem.warped(warps)
    flat = scattered(problem).requires_grad_()
    losses = problem.loss(problem.layout.views(flat), 4)
    (grads,) = torch.autograd.grad(losses.sum(), flat)
    kind = optimizee("omniglot")
    for i in range(3):
        seed = kind.seeds(0, "train", i, 1)
        index = streams.integers(seed, 6, 300, "minibatch", 4)[0]
        drawings = problem.drawings.train[seed & 0xFF, index].unsqueeze(1).double() / 255
        images = distorted(drawings, streams.uniform(seed, 24, "distortion", 4).view(6, 4))
        module = plain(problem, flat, i, warps)
        expected = F.cross_entropy(module(images), index // 15)
        expected.backward()
        torch.testing.assert_close(losses[i], expected, rtol=1e-10, atol=1e-12)
        own = dict(module.named_parameters())
        gradient = torch.cat([own[name].grad.flatten() for name in problem.layout.shapes])
        torch.testing.assert_close(grads[i], gradient, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("batch_norm", ["batch", "train"])
def test_accuracy_is_read_on_held_out_drawings_that_are_distorted_once_for_all(noisy: Runtime, batch_norm: str) -> None:
    warps = linear_warps()
    problem = make(noisy, split="test", batch_norm=batch_norm).warped(warps)
    flat = scattered(problem, scale=0.5)
    metrics = problem.metrics(problem.layout.views(flat))
    assert set(metrics) == {"accuracy", "test_loss"}
    labels = torch.arange(20).repeat_interleave(5)
    for i in range(3):
        task, seed = problem.tasks[i], problem.seeds[i : i + 1]
        images = {}
        for part, purpose in (("train", "reference distortion"), ("test", "held-out distortion")):
            drawings = getattr(problem.drawings, part)[task].unsqueeze(1).double() / 255
            images[part] = distorted(drawings, streams.uniform(seed, 4 * len(drawings), purpose).view(-1, 4))
        module = plain(problem, flat, i, warps)
        if batch_norm == "train":
            count = len(images["train"])
            module(images["train"])
            for k, side in enumerate((14, 7, 3, 1)):  # stock layers keep the unbiased variance
                module.blocks[k].norm.running_var *= 1 - 1 / (count * side**2)
            module.eval()
        scores = module(images["test"])
        assert metrics["accuracy"][i].item() == pytest.approx((scores.argmax(1) == labels).double().mean().item())
        torch.testing.assert_close(metrics["test_loss"][i], F.cross_entropy(scores, labels), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_network_learns_its_drawings_and_not_noise(noisy: Runtime) -> None:
    # Held-out drawings that are training drawings are told apart; those that are noise are not.
    problem = make(replace(noisy, dtype=torch.float32), 1, augment=False, filters=16, minibatch=40)
    seen = replace(problem.drawings, test=problem.drawings.train.unflatten(1, (20, 15))[:, :, :5].flatten(1, 2))
    flat = problem.layout.flatten(problem.init())
    for step in range(80):
        leaf = flat.detach().requires_grad_()
        (grads,) = torch.autograd.grad(problem.loss(problem.layout.views(leaf), step).sum(), leaf)
        flat = flat - 0.1 * grads
    unseen = problem.metrics(problem.layout.views(flat))["accuracy"]
    problem.drawings = seen
    assert problem.metrics(problem.layout.views(flat))["accuracy"] > 0.5
    assert unseen < 0.25


# Warp layers


@pytest.mark.parametrize("vectorised", [False, True], ids=["one by one", "vmap"])
def test_layers_at_identity_change_nothing(noisy: Runtime, vectorised: bool) -> None:
    problem = make(noisy)
    problem.vectorised = vectorised
    warps: dict[str, Any] = linear_warps()
    for warp in warps.values():
        nn.init.dirac_(warp.weight)
        nn.init.zeros_(warp.bias)
    views = problem.layout.views(scattered(problem))
    for other in (problem.warped(warps), problem.warped({}), problem.warped({"warp2": nn.Identity()})):
        torch.testing.assert_close(other.loss(views, 1), problem.loss(views, 1), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.metrics(views), problem.metrics(views), rtol=1e-12, atol=1e-12)
    assert not problem.warps


def test_warped_problems_are_those_one_by_one(noisy: Runtime) -> None:
    problem = make(noisy, 4).warped(normalised_warps())
    flat = scattered(problem)
    losses, metrics = problem.loss(problem.layout.views(flat), 2), problem.metrics(problem.layout.views(flat))
    start = problem.layout.flatten(problem.init())
    rows = torch.tensor([2, 0, 2])
    taken = problem.take(rows)
    assert torch.equal(taken.seeds, problem.seeds[rows])
    assert torch.equal(taken.tasks, problem.tasks[rows])
    assert torch.equal(taken.layout.flatten(taken.init()), start[rows])
    views = problem.layout.views(flat[rows])
    torch.testing.assert_close(taken.loss(views, 2), losses[rows], rtol=1e-12, atol=1e-12)
    for name, value in taken.metrics(views).items():
        torch.testing.assert_close(value, metrics[name][rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("vectorised", [False, True], ids=["one by one", "vmap"])
def test_a_step_can_be_differentiated_in_the_layers(noisy: Runtime, vectorised: bool) -> None:
    # The objective of warped gradient descent: a loss after a step, whose gradient the layers have shaped.
    problem = make(noisy, 2)
    problem.vectorised = vectorised
    flat, warps = scattered(problem), linear_warps()
    problem = problem.warped(warps)
    layer: Any = warps["warp2"].weight

    def objective() -> torch.Tensor:
        leaf = flat.clone().requires_grad_()
        before = problem.loss(problem.layout.views(leaf), 0).sum()
        (grads,) = torch.autograd.grad(before, leaf, create_graph=True)
        return problem.loss(problem.layout.views(leaf - 0.1 * grads), 1).sum()

    (found,) = torch.autograd.grad(objective(), layer)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        direction = torch.randn(layer.shape, dtype=layer.dtype, generator=generator)
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                layer += sign * 1e-6 * direction
            ends.append(objective().item())
            with torch.no_grad():
                layer -= sign * 1e-6 * direction
        assert (found * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-7)
