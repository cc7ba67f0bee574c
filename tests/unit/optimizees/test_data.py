"""Data sets: digits and MNIST."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from l2l_runner.errors import DataError
from l2l_runner.optimizees.data import load_images
from problems import (
    DATA,
    needs_mnist,
    problems,
)

# Images

DATASETS = [pytest.param("digits"), pytest.param("mnist", marks=needs_mnist)]


def raw_mnist(name: str) -> np.ndarray:
    """A file of MNIST without torchvision: the header says how many dimensions and their sizes, then come bytes."""
    path = Path(DATA, "MNIST", "raw", name)
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def test_digits_are_split_into_1437_and_360_that_are_disjoint():
    parts = [load_images("digits", split, DATA, False, torch.device("cpu")) for split in ("train", "test")]
    assert [len(part.labels) for part in parts] == [1437, 360]
    pairs = [
        {(image.numpy().tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)}
        for part in parts
    ]
    whole = load_digits()
    everything = {
        (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(whole.images, whole.target, strict=True)
    }
    assert len(everything) == 1797  # no two digits are the same, so that sets will do
    assert not pairs[0] & pairs[1]
    assert pairs[0] | pairs[1] == everything
    assert all(part.labels.unique().tolist() == list(range(10)) for part in parts)


def test_digits_pixels_run_from_0_to_1():
    images = load_images("digits", "train", DATA, False, torch.device("cpu"))
    pixels = images.pixels(torch.arange(1437), torch.float64)
    assert pixels.shape == (1437, 64)
    assert (pixels.min().item(), pixels.max().item()) == (0, 1)
    assert images.pixels(torch.zeros(2, 3, dtype=torch.long), torch.float32).shape == (2, 3, 64)


@needs_mnist
@pytest.mark.parametrize(("split", "prefix", "count"), [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_mnist_is_what_its_files_hold(split, prefix, count):
    images = load_images("mnist", split, DATA, False, torch.device("cpu"))
    assert images.images.shape == (count, 784)
    assert np.array_equal(images.images.numpy(), raw_mnist(f"{prefix}-images-idx3-ubyte").reshape(count, 784))
    assert np.array_equal(images.labels.numpy(), raw_mnist(f"{prefix}-labels-idx1-ubyte"))
    some = images.pixels(torch.arange(100), torch.float64)
    assert torch.equal(some, images.images[:100].double() / 255)


@pytest.mark.parametrize("pool", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DATASETS)
def test_pooled_images_are_means_of_squares(name, pool):
    cpu = torch.device("cpu")
    whole, pooled = (load_images(name, "test", DATA, False, cpu, size) for size in (1, pool))
    side = math.isqrt(whole.images.shape[1])
    small = side // pool  # what is left over at the edge belongs to no square
    squares = whole.images.view(-1, side, side)[:50, : small * pool, : small * pool].numpy().astype(float)
    means = squares.reshape(50, small, pool, small, pool).mean(axis=(2, 4)).reshape(50, -1)
    assert pooled.images.shape == (len(whole.labels), small**2)
    assert np.abs(pooled.images[:50].numpy() - means).max() <= 0.5  # bytes, as the whole ones
    assert torch.equal(pooled.labels, whole.labels)
    assert pooled.white == whole.white
    problem = problems(name, 2, pool=pool)
    assert problem.layout.shapes["0.weight"] == (5, small**2)
    assert problem.loss(problem.init(), 0).isfinite().all()


def test_missing_mnist_is_said_with_its_place(tmp_path):
    with pytest.raises(DataError, match="MNIST is not in") as caught:
        load_images("mnist", "train", tmp_path, False, torch.device("cpu"))
    assert str(tmp_path) in str(caught.value)
    assert "L2L_DATA" in str(caught.value)
