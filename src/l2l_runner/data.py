"""Data sets, read once, kept whole on the device as bytes, and handed out by index."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2l_runner.errors import DataError


@dataclass(frozen=True)
class Images:
    """Images [count, pixels] (uint8) with their labels [count]; `white` is the byte that stands for 1."""

    images: Tensor
    labels: Tensor
    white: float

    def pixels(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The images of an index of any shape, [*index.shape, pixels], scaled to [0, 1]."""
        return self.images[index].to(dtype) / self.white


@lru_cache(maxsize=8)
def load_images(name: str, split: str, root: Path, download: bool, device: torch.device, pool: int = 1) -> Images:
    """The `train` or `test` part of `mnist` or `digits`, averaged over squares of pool × pool pixels.

    Raises:
        DataError: the files are not in `root` and could not be downloaded.
    """
    images, labels, white = (_mnist if name == "mnist" else _digits)(split, root, download)
    if pool > 1:
        images = F.avg_pool2d(images.float(), pool).round().to(torch.uint8)
    return Images(images.flatten(1).to(device), labels.to(device), white)


def _mnist(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from torchvision.datasets import MNIST  # heavy, and only needed here

    try:
        dataset = MNIST(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".:") if str(error) else type(error).__name__
        raise DataError(
            f"MNIST is not in {root} and could not be had ({reason}): put its four files "
            "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
            f"t10k-labels-idx1-ubyte.gz, or the same unpacked) into {root / 'MNIST' / 'raw'}, or name the folder "
            "that holds MNIST/raw with data.root=FOLDER or the environment variable L2L_DATA."
        ) from error
    return dataset.data, dataset.targets, 255.0


def _digits(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    index = order[360:] if split == "train" else order[:360]  # 1437 to train on, 360 to test
    images = torch.from_numpy(digits.images[index].astype(np.uint8))
    return images, torch.from_numpy(digits.target[index].astype(np.int64)), 16.0
