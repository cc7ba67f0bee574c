"""Imbalanced classes: their images, their proportions, and LeNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.models.lenet import LeNet
from l2l_runner.optimizees import Imbalance, ImbalanceProblem
from l2l_runner.runtime import Runtime
from problems import OPTIMIZEE_FILES, RUNTIME, needs_mnist, optimizee, parse_optimizee, scattered
from running import (
    same_bits,
)

DIGITS: dict[str, Any] = {"data": "digits", "images": 60, "side": 16, "clean": 3, "minibatch": 6}


def problem(count: int = 1, **changes: Any) -> ImbalanceProblem:
    """Imbalanced digits, in float64."""
    found = optimizee("imbalance", **{**DIGITS, "proportion": 0.8, **changes})
    assert isinstance(found, Imbalance)
    return found.sample(streams.seeds(0, "train", 0, count), RUNTIME)


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
