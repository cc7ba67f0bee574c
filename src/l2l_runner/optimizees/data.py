"""Data sets, read once, kept as bytes on the device, and indexed there."""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from l2l_runner.errors import DataError, reason
from l2l_runner.tensors import TensorFileError, read_tensors


@dataclass(frozen=True)
class Images:
    """A data set's images and labels.

    Attributes:
        images: [count, channels · height · width] (uint8), channel by channel, row by row.
        labels: [count].
        white: the byte that means 1.
        shape: channels, height and width.
    """

    images: Tensor
    labels: Tensor
    white: float
    shape: tuple[int, int, int]

    def pixels(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the images of an index of any shape, [*index.shape, pixels], scaled to [0, 1]."""
        return self.images[index].to(dtype) / self.white


SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8)}
"""The data sets, all of ten classes, with the channels, height and width of their images."""

OMNIGLOT_DRAWINGS = 20  # of each character
OMNIGLOT_SIDE = 28  # pixels


def candidate_paths(given: str, root: Path) -> list[Path]:
    """Return where to look for a path that a user gives: as given, in `root`, and in its hub/checkpoints."""
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
    """Load the `train` or `test` part of `mnist`, `cifar10` or `digits`, averaged over squares of pool × pool pixels.

    If `keep` is not None, only images of its labels are kept, and each label becomes its index in `keep`.

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
            f"MNIST is not in {root} and could not be downloaded ({reason(error)}): put its four files "
            "(train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, "
            f"t10k-labels-idx1-ubyte.gz, or the same unpacked) into {root / 'MNIST' / 'raw'}, or name the folder "
            "that holds MNIST/raw with data.root=FOLDER or the environment variable L2L_DATA."
        ) from error
    return dataset.data, dataset.targets, 255.0


def _cifar10(split: str, root: Path, download: bool) -> tuple[Tensor, Tensor, float]:
    from torchvision.datasets import CIFAR10

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the files' pickles use deprecated NumPy
            dataset = CIFAR10(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"CIFAR-10 is not in {root} and could not be downloaded ({reason(error)}): put the unpacked files of "
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
    index = order[360:] if split == "train" else order[:360]  # 1437 for training, 360 for the test
    images = torch.from_numpy(digits.images[index].astype(np.uint8))
    return images, torch.from_numpy(digits.target[index].astype(np.int64)), 16.0


@lru_cache(maxsize=1)
def load_omniglot(root: Path, download: bool) -> dict[str, Tensor]:
    """Load the characters of Omniglot's alphabets, by name, each [characters, 20, 28, 28] (uint8): ink 255 on 0.

    Both parts of the data set are joined, in the order of the alphabets', characters' and files' names. The drawings of
    105×105 pixels are resized to 28×28, bilinearly with antialiasing. Because reading 32,460 files is slow, the result
    is kept as one file beside the data set, if that folder can be written.

    Raises:
        DataError: the drawings are not in `root` and could not be downloaded, or are damaged.
    """
    folder = root / "omniglot-py"
    kept = folder / f"drawings-{OMNIGLOT_SIDE}x{OMNIGLOT_SIDE}.pt"
    if kept.is_file():
        try:
            loaded: dict[str, Tensor] = read_tensors(kept)
            return loaded
        except TensorFileError as error:
            raise DataError(
                f"{kept} is damaged ({reason(error)}): delete it, and the next run writes it again."
            ) from error
    try:
        drawings = _omniglot(folder, download)
    except (RuntimeError, OSError, zipfile.BadZipFile) as error:
        raise DataError(
            f"Omniglot is not in {root} and could not be downloaded ({reason(error)}): put images_background.zip and "
            f"images_evaluation.zip, or the same unpacked, into {folder}, or name the folder that holds omniglot-py "
            "with data.root=FOLDER or the environment variable L2L_DATA."
        ) from error
    written = kept.with_name(f"{kept.name}.{os.getpid()}")
    try:
        torch.save(drawings, written)
        os.replace(written, kept)
    except (OSError, RuntimeError):  # a read-only folder: the next process reads the files again
        with suppress(OSError):
            written.unlink()
    return drawings


def _omniglot(folder: Path, download: bool) -> dict[str, Tensor]:
    """Read the drawings, in the form of `load_omniglot`, from the data set's own files."""
    from PIL import Image

    alphabets: dict[str, dict[str, list[Tensor]]] = {}
    for part in ("images_background", "images_evaluation"):
        for alphabet, character, content in _pngs(folder, part, download):
            with Image.open(io.BytesIO(content)) as image:
                drawing = 255 - torch.from_numpy(np.array(image.convert("L")))
            alphabets.setdefault(alphabet, {}).setdefault(character, []).append(drawing)
    for alphabet, characters in alphabets.items():
        for character, drawings in characters.items():
            if len(drawings) != OMNIGLOT_DRAWINGS:
                raise RuntimeError(f"{alphabet}/{character} has {len(drawings)} drawings, not {OMNIGLOT_DRAWINGS}")
    return {alphabet: _small(list(characters.values())) for alphabet, characters in sorted(alphabets.items())}


def _small(characters: list[list[Tensor]]) -> Tensor:
    drawings = torch.stack([torch.stack(drawings) for drawings in characters]).float()
    small = F.interpolate(drawings, (OMNIGLOT_SIDE, OMNIGLOT_SIDE), mode="bilinear", antialias=True)
    return small.round().to(torch.uint8)


def _pngs(folder: Path, part: str, download: bool) -> Iterator[tuple[str, str, bytes]]:
    """Yield alphabet, character and content of each PNG of a part, sorted, from its folder or else from its zip."""
    packed, unpacked = folder / f"{part}.zip", folder / part
    if download and not (packed.is_file() or unpacked.is_dir()):
        from torchvision.datasets import Omniglot

        Omniglot(str(folder.parent), background=part == "images_background", download=True)
    if unpacked.is_dir():
        for path in sorted(unpacked.glob("*/*/*.png")):
            yield path.parts[-3], path.parts[-2], path.read_bytes()
    else:
        with zipfile.ZipFile(packed) as archive:
            for name in sorted(PurePosixPath(name) for name in archive.namelist() if name.endswith(".png")):
                yield name.parts[-3], name.parts[-2], archive.read(str(name))
