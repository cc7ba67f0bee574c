"""Learning the characters of an alphabet: Omniglot as in Flennerhag et al. 2019 (arXiv 1812.01054, 1909.00025).

A task is an alphabet, of which twenty characters are the classes; 15 drawings of each are for training and 5 are held
out. A problem is a task, a random start of the network, a random sequence of minibatches, and a random distortion of
every image in them. The accuracy is that on the held-out drawings, each with a fixed distortion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError, DataError
from l2l_runner.fields import at_least, choice
from l2l_runner.layout import Layout, Params, Site
from l2l_runner.models.omniglot import BLOCKS, OmniglotConvNet
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.data import OMNIGLOT_DRAWINGS, load_omniglot
from l2l_runner.runtime import Runtime

ALPHABETS = 46  # of the 50, those with at least CLASSES characters
CLASSES = 20
TRAINING = 15  # drawings of each character
TASK_BITS = 0xFF  # of a seed: its task, modulo ALPHABETS so that every seed has one


@dataclass(frozen=True, kw_only=True)
class Omniglot(Optimizee):
    """Cross-entropy of a convolutional network on minibatches of an alphabet's characters.

    `split_seed` fixes the order of the alphabets. The first are for training, the last for the test, and those between
    for validation. A task is an index in that order.

    Attributes:
        name: omniglot.
        pretrain_alphabets: number of alphabets for training.
        test_alphabets: number of alphabets for the test.
        split_seed: of the order of the alphabets, of their characters, and of the held-out drawings.
        filters: of each of the network's four convolutions.
        minibatch: training drawings per step, drawn with replacement.
        augment: distort every image, including held-out ones: turn it by any angle, shift it by up to .2 of its side,
            and scale it by .8 to 1.2.
        batch_norm: statistics that normalise held-out drawings: batch, their own, or train, those of fixed distortions
            of the task's 300 training drawings. Minibatches are always normalised by their own statistics.
        read_every: steps between readings of the accuracy in an evaluation.
    """

    name: str = choice("omniglot")
    pretrain_alphabets: int = at_least(1)
    test_alphabets: int = at_least(1)
    split_seed: int = at_least(0)
    filters: int = at_least(1)
    minibatch: int = at_least(2)
    augment: bool
    batch_norm: str = choice("batch", "train")
    read_every: int = at_least(1)

    def __post_init__(self) -> None:
        """Refuse a split that leaves no alphabet for validation.

        Raises:
            ConfigError: no alphabet is left.
        """
        if self.pretrain_alphabets + self.test_alphabets >= ALPHABETS:
            raise ConfigError(
                f"optimizee.pretrain_alphabets={self.pretrain_alphabets} and optimizee.test_alphabets="
                f"{self.test_alphabets} leave none of the {ALPHABETS} alphabets for validation: use fewer."
            )

    @property
    def metrics_every(self) -> int:
        return self.read_every

    def layout(self) -> Layout:
        shapes = {name: tuple(p.shape) for name, p in self.network().named_parameters()}
        sites = {f"warp{i}": Site(self.filters) for i in range(1, BLOCKS + 1)}
        return Layout(shapes, sites, self.pretrain_alphabets)

    def network(self) -> nn.Module:
        """Build the network, without storage: each call passes its parameters."""
        with torch.device("meta"):
            return OmniglotConvNet(self.filters, CLASSES)

    def seeds(self, run_seed: int, split: str, first: int, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Return seeds as `Optimizee.seeds` does; each also holds its task.

        The problems of a split go through all of its alphabets in turn, in an order that is drawn anew for each round.
        """
        between = ALPHABETS - self.pretrain_alphabets - self.test_alphabets
        start, tasks = {
            "train": (0, self.pretrain_alphabets),
            "validation": (self.pretrain_alphabets, between),
            "test": (ALPHABETS - self.test_alphabets, self.test_alphabets),
        }[split]
        past, skipped = divmod(first, tasks)
        rounds = streams.seeds(run_seed, f"{split} rounds", past, 1 + (skipped + count) // tasks, device)
        turns = start + streams.uniform(rounds, tasks, "order").argsort(dim=1).flatten()[skipped : skipped + count]
        return streams.seeds(run_seed, split, first, count, device) & ~TASK_BITS | turns

    def refuse_training_tasks(self, trained: Optimizee) -> None:
        if not isinstance(trained, Omniglot):
            return
        seen = set(order_of_alphabets(trained.split_seed)[: trained.pretrain_alphabets])
        common = seen.intersection(order_of_alphabets(self.split_seed)[ALPHABETS - self.test_alphabets :])
        if common:
            raise ConfigError(
                f"optimizee.split_seed={self.split_seed} and optimizee.test_alphabets={self.test_alphabets} hold out "
                f"{len(common)} of the alphabets that this optimizer was trained on: use optimizee.split_seed="
                f"{trained.split_seed}, and optimizee.test_alphabets up to {ALPHABETS - trained.pretrain_alphabets}."
            )

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        """Return problems as `Optimizee.sample` does.

        Raises:
            DataError: the data set is missing or incomplete.
        """
        tasks = load_tasks(self.split_seed, runtime.data_root, runtime.download, runtime.device)
        return _OmniglotProblems(self, seeds.to(runtime.device), runtime.dtype, tasks)


@dataclass(frozen=True)
class Tasks:
    """The drawings of all alphabets, in the order of their tasks.

    Attributes:
        alphabets: their names.
        train: [alphabets, 300, 28, 28] (uint8), ink 255 on 0, character by character.
        test: the held-out drawings [alphabets, 100, 28, 28], likewise.
    """

    alphabets: tuple[str, ...]
    train: Tensor
    test: Tensor


@lru_cache(maxsize=8)
def load_tasks(split_seed: int, root: Path, download: bool, device: torch.device) -> Tasks:
    """Load the alphabets in the order of a split seed, with twenty characters of each.

    Raises:
        DataError: the data set is missing or incomplete.
    """
    drawings = {name: own for name, own in sorted(load_omniglot(root, download).items()) if len(own) >= CLASSES}
    if len(drawings) != ALPHABETS:
        raise DataError(
            f"Omniglot in {root} has {len(drawings)} alphabets of {CLASSES} characters or more; expected {ALPHABETS}: "
            "put both of its parts, images_background and images_evaluation, into omniglot-py there."
        )

    names = [list(drawings)[place] for place in order_of_alphabets(split_seed)]
    chosen = []
    for name in names:
        characters = _shuffled(split_seed, f"characters of {name}", 1, len(drawings[name]))[0, :CLASSES]
        order = _shuffled(split_seed, f"drawings of {name}", CLASSES, OMNIGLOT_DRAWINGS)
        chosen.append(drawings[name][characters[:, None], order])
    stacked = torch.stack(chosen).to(device)
    return Tasks(tuple(names), stacked[:, :, :TRAINING].flatten(1, 2), stacked[:, :, TRAINING:].flatten(1, 2))


def order_of_alphabets(split_seed: int) -> list[int]:
    """Return the order of the alphabets, as indices among the sorted names of those with twenty characters."""
    order: list[int] = _shuffled(split_seed, "alphabets", 1, ALPHABETS)[0].tolist()
    return order


def _shuffled(split_seed: int, what: str, rows: int, count: int) -> Tensor:
    """Return random orders of `count` items, [rows, count]."""
    return streams.uniform(streams.seeds(split_seed, what, 0, rows), count, "order").argsort(dim=1)


def distorted(images: Tensor, numbers: Tensor) -> Tensor:
    """Turn, scale and shift images [N, 1, side, side], bilinearly and on a background of 0.

    The numbers [N, 4] in [0, 1) give the angle (0 to 360°), the scale (.8 to 1.2), and the shifts to the right and down
    (−.2 to .2 of the side).
    """
    angle, scale = 2 * math.pi * numbers[:, 0], 0.8 + 0.4 * numbers[:, 1]
    shift = (0.8 * numbers[:, 2:] - 0.4).unsqueeze(2)  # an image spans −1 to 1
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    # affine_grid maps points of the result to the input: it undoes the shift, then the turn and the scale.
    back = torch.stack([cosine, sine, -sine, cosine], dim=1).view(-1, 2, 2)
    theta = torch.cat([back, -back @ shift], dim=2).to(images.dtype)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class _OmniglotProblems(Problem):
    """Problems computed one after another on the CPU, where vmap's grouped convolutions are slower, and else by vmap.

    Either way a warp layer sees the images of one problem at a time, so that batch norm in it does not mix problems.
    """

    tasks: Tensor

    def __init__(self, optimizee: Omniglot, seeds: Tensor, dtype: torch.dtype, drawings: Tasks):
        self.optimizee, self.layout, self.network = optimizee, optimizee.layout(), optimizee.network()
        self.seeds, self.tasks = seeds, (seeds & TASK_BITS) % ALPHABETS
        self.dtype, self.drawings = dtype, drawings
        self.warps: Mapping[str, nn.Module] = {}
        self.vectorised = seeds.device.type != "cpu"

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        other = copy(self)
        other.warps = layers
        return other

    def take(self, rows: Tensor) -> Problem:
        other = copy(self)
        other.seeds, other.tasks = self.seeds[rows], self.tasks[rows]
        return other

    def init(self) -> Params:
        """Draw the start from PyTorch's distributions: uniform within 1/√fan-in; scales of batch norm 1, offsets 0."""
        start: Params = {}
        for name, shape in self.layout.shapes.items():
            layer, kind = name.rsplit(".", 1)
            if layer.endswith("norm"):
                start[name] = torch.full((len(self.seeds), *shape), float(kind == "weight"), dtype=self.dtype)
            else:
                fan_in = prod(self.layout.shapes[f"{layer}.weight"][1:])
                numbers = (2 * streams.uniform(self.seeds, prod(shape), name) - 1) / math.sqrt(fan_in)
                start[name] = numbers.to(self.dtype).view(-1, *shape)
        return {name: value.to(self.seeds.device) for name, value in start.items()}

    def loss(self, params: Params, step: int) -> Tensor:
        count = self.drawings.train.shape[1]
        index = streams.integers(self.seeds, self.optimizee.minibatch, count, "minibatch", step)
        images = self._images(self.drawings.train, index, "distortion", step)
        return self._each(self._cross_entropy, params, images, index // TRAINING)

    def _cross_entropy(self, params: Params, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.network, params, (images, self.warps)), labels)

    @torch.no_grad()
    def metrics(self, params: Params) -> dict[str, Tensor]:
        """Return `accuracy` and `test_loss` on the held-out drawings, whose distortions follow only from the seed."""
        images, labels = self._all(self.drawings.test, "held-out distortion")
        reference = None
        if self.optimizee.batch_norm == "train":
            training, _ = self._all(self.drawings.train, "reference distortion")
            images, reference = torch.cat([training, images], dim=1), training.shape[1]

        def read(params: Params, images: Tensor, labels: Tensor) -> Tensor:
            scores = functional_call(self.network, params, (images, self.warps, reference))[-len(labels) :]
            right = (scores.argmax(1) == labels).to(scores.dtype).mean()
            return torch.stack([right, F.cross_entropy(scores, labels)])

        accuracy, loss = self._each(read, params, images, labels).unbind(1)
        return {"accuracy": accuracy, "test_loss": loss}

    def _all(self, drawings: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        """Return all drawings of each problem's alphabet, [problems, drawings, 1, side, side], and their labels."""
        count = drawings.shape[1]
        index = torch.arange(count, device=self.seeds.device).expand(len(self.seeds), count)
        return self._images(drawings, index, purpose, 0), index // (count // CLASSES)

    def _images(self, drawings: Tensor, index: Tensor, purpose: str, step: int) -> Tensor:
        """Return each problem's drawings, [problems, N, 1, side, side], at an index [problems, N] of its alphabet's."""
        images = drawings[self.tasks[:, None], index].flatten(0, 1).unsqueeze(1).to(self.dtype) / 255
        if self.optimizee.augment:
            numbers = streams.uniform(self.seeds, 4 * index.shape[1], purpose, step)
            images = distorted(images, numbers.view(-1, 4))
        # Strides of channels-last, not the default for a single channel, make pooling on the CPU 20 times faster.
        return images.view(*index.shape, *images.shape[2:], 1).movedim(-1, 2)

    def _each(self, function: Callable[..., Tensor], params: Params, images: Tensor, labels: Tensor) -> Tensor:
        """Return `function` of each problem's parameters, images and labels, [problems, …]."""
        if self.vectorised:
            stacked: Tensor = vmap(function)(params, images, labels)
            return stacked
        own = {name: value.unbind() for name, value in params.items()}
        results = [
            function({name: values[i] for name, values in own.items()}, images[i], labels[i])
            for i in range(len(self.seeds))
        ]
        return torch.stack(results)
