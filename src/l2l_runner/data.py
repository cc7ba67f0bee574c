"""Data sets, read once, kept whole on the device as bytes, and handed out by index."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2l_runner.errors import DataError, reason


@dataclass(frozen=True)
class Images:
    """A data set's images and labels.

    Attributes:
        images: [count, channels · height · width] (uint8), channel by channel, row by row.
        labels: [count].
        white: the byte that stands for 1.
        shape: channels, height and width.
    """

    images: Tensor
    labels: Tensor
    white: float
    shape: tuple[int, int, int]

    def pixels(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The images of an index of any shape, [*index.shape, pixels], scaled to [0, 1]."""
        return self.images[index].to(dtype) / self.white


SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8)}
"""The data sets, all of ten classes, with the channels, height and width of their images."""


def places(given: str, root: Path) -> list[Path]:
    """Where a path that a user gives may lie: as it stands, in `root`, or in its hub/checkpoints."""
    return [Path(given).expanduser(), root / given, root / "hub" / "checkpoints" / given]


@lru_cache(maxsize=8)
def load_images(
    name: str,
    split: str,
    root: Path,
    download: bool,
    device: torch.device,
    pool: int = 1,
    keep: tuple[int, ...] | None = None,
) -> Images:
    """The `train` or `test` part of `mnist`, `cifar10` or `digits`, averaged over squares of pool × pool pixels.

    Of the labels in `keep`, if it isn't None: their images alone, with the labels' places in it as labels.

    Raises:
        DataError: the files are not in `root` and could not be downloaded.
    """
    images, labels, white = {"mnist": _mnist, "cifar10": _cifar10, "digits": _digits}[name](split, root, download)
    if keep is not None:
        matches = labels.unsqueeze(1) == torch.tensor(keep)
        images, labels = images[matches.any(1)], matches[matches.any(1)].int().argmax(1)
    if pool > 1:
        images = F.avg_pool2d(images.float(), pool).round().to(torch.uint8)
    shape = (SHAPES[name][0], images.shape[-2], images.shape[-1])
    return Images(images.flatten(1).to(device), labels.to(device), white, shape)


def _mnist(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from torchvision.datasets import MNIST  # heavy, and only needed here

    try:
        dataset = MNIST(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"MNIST is not in {root} and could not be had ({reason(error)}): put its four files "
            "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
            f"t10k-labels-idx1-ubyte.gz, or the same unpacked) into {root / 'MNIST' / 'raw'}, or name the folder "
            "that holds MNIST/raw with data.root=FOLDER or the environment variable L2L_DATA."
        ) from error
    return dataset.data, dataset.targets, 255.0


def _cifar10(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from torchvision.datasets import CIFAR10

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files' pickles are older than NumPy's present ways
            dataset = CIFAR10(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"CIFAR-10 is not in {root} and could not be had ({reason(error)}): put the unpacked files of "
            f"cifar-10-python.tar.gz (data_batch_1 … data_batch_5, test_batch, batches.meta) into "
            f"{root / 'cifar-10-batches-py'}, or name the folder that holds cifar-10-batches-py with data.root=FOLDER "
            "or the environment variable L2L_DATA."
        ) from error
    channels_first = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return channels_first, torch.tensor(dataset.targets), 255.0


def _digits(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    index = order[360:] if split == "train" else order[:360]  # 1437 to train on, 360 to test
    images = torch.from_numpy(digits.images[index].astype(np.uint8))
    return images, torch.from_numpy(digits.target[index].astype(np.int64)), 16.0
