"""Classifying images of two classes when nearly all training images are of one: the imbalance problem of Ren et al.
2018 (arXiv 1803.09050, section 4.1), on MNIST's 9 and 4, with LeNet.

A problem is a random subset of the training images, a few clean images beside it (as many of either class), LeNet's
random start and a random sequence of minibatches. The accuracy is that on test images, as many of either class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.fields import at_least, between, choice
from l2l_runner.layout import Layout, Params
from l2l_runner.models.lenet import LeNet
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.data import Images, load_images
from l2l_runner.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Imbalance(Optimizee):
    """Binary cross-entropy of LeNet on minibatches of imbalanced images.

    Attributes:
        name: imbalance.
        data: the data set, mnist or digits.
        classes: the frequent one and the rare one.
        images: training images.
        proportion: of the frequent class among them.
        clean: clean images of each class, which are no training images.
        minibatch: training images per step, drawn with replacement.
        side: height and width to which the images are resized, in pixels.
    """

    has_clean_examples: ClassVar[bool] = True

    name: str = choice("imbalance")
    data: str = choice("mnist", "digits")
    classes: tuple[int, ...] = between(0, 10)
    images: int = at_least(2)
    proportion: float = between(0.5, 1)
    clean: int = at_least(1)
    minibatch: int = at_least(1)
    side: int = at_least(16)

    def __post_init__(self) -> None:
        """Refuse classes that are not two different digits.

        Raises:
            ConfigError: they are not.
        """
        if len(set(self.classes)) != 2 or len(self.classes) != 2:
            raise ConfigError(f"optimizee.classes is {list(self.classes)}; expected two different digits.")

    def check(self) -> None:
        """Refuse a proportion that leaves no image of the rare class.

        Raises:
            ConfigError: the rare class has no image.
        """
        if self.counts[1] == 0:
            raise ConfigError(
                f"optimizee.images={self.images} with a proportion of {self.proportion:g} leaves no image of the rare "
                "class: use more images, or a lower proportion."
            )

    def at_proportion(self, proportion: float) -> Imbalance:
        changed = replace(self, proportion=proportion)
        changed.check()
        return changed

    @property
    def counts(self) -> tuple[int, int]:
        """Numbers of training images of the frequent and of the rare class."""
        frequent = round(self.images * self.proportion)
        return frequent, self.images - frequent

    def layout(self) -> Layout:
        with torch.device("meta"):
            return Layout({name: tuple(p.shape) for name, p in LeNet(self.side).named_parameters()})

    def sample(self, seeds: Tensor, runtime: Runtime) -> ImbalanceProblem:
        """Return problems as `Optimizee.sample` does.

        Raises:
            ConfigError: the rare class has no image, or the data set has too few images of a class.
        """
        self.check()
        where = (runtime.data_root, runtime.download, runtime.device)
        train, test = (load_images(self.data, split, *where) for split in ("train", "test"))
        return ImbalanceProblem(self, seeds.to(runtime.device), runtime.dtype, train, test)


class ImbalanceProblem(Problem):
    """Losses of LeNet on the images of a batch of problems, and of single images.

    Problems are computed one after another: vmap turns convolutions whose weights differ between problems into grouped
    ones, which are slow on a CPU.

    Attributes:
        pool: all training images of both classes [images, 1, side, side], the frequent class first, standardised.
        rare: 1 for images of the rare class, else 0, [images].
        train: the training images of each problem, as indices into the pool [problems, images].
        clean: its clean images, likewise [problems, 2 × clean].
        test: the test images, as many of either class, and 1 for those of the rare class.
    """

    def __init__(self, optimizee: Imbalance, seeds: Tensor, dtype: torch.dtype, train: Images, test: Images):
        self.seeds, self.layout, self.dtype = seeds, optimizee.layout(), dtype
        self.side, self.minibatch = optimizee.side, optimizee.minibatch
        with torch.device("meta"):
            self.module = LeNet(self.side)
        to_train, to_test = (
            [(part.labels == label).nonzero().flatten() for label in optimizee.classes] for part in (train, test)
        )
        for label, own, count in zip(optimizee.classes, to_train, optimizee.counts, strict=True):
            if count + optimizee.clean > len(own):
                raise ConfigError(
                    f"optimizee.images={optimizee.images} and optimizee.clean={optimizee.clean} take "
                    f"{count + optimizee.clean} images of class {label}, of which {optimizee.data} has {len(own)}: use "
                    "fewer."
                )
        self.pool, self.rare = self._images(train, to_train)
        mean, deviation = self.pool.mean(), self.pool.std()
        self.pool = (self.pool - mean) / deviation
        fewest = min(len(own) for own in to_test)
        images, rare = self._images(test, [own[:fewest] for own in to_test])
        self.test = (images - mean) / deviation, rare
        # Each problem has its own random order of each class: the first images are clean, the next ones train.
        clean, training = [], []
        for number, (own, count) in enumerate(zip(to_train, optimizee.counts, strict=True)):
            order = streams.uniform(seeds, len(own), f"class {number}").argsort(dim=1) + number * len(to_train[0])
            clean.append(order[:, : optimizee.clean])
            training.append(order[:, optimizee.clean : optimizee.clean + count])
        self.clean, self.train = torch.cat(clean, dim=1), torch.cat(training, dim=1)

    def _images(self, source: Images, indices: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the images at these indices of the frequent and the rare class, resized, and 1 for the rare ones."""
        pixels = source.pixels(torch.cat(indices), self.dtype)
        images = F.interpolate(pixels.view(-1, *source.shape), size=(self.side, self.side), mode="bilinear")
        rare = torch.cat([torch.full_like(own, number) for number, own in enumerate(indices)])
        return images, rare.to(self.dtype)

    def init(self) -> Params:
        """Return PyTorch's own random start of each layer, drawn on the CPU in float64 for any device and precision."""
        starts = []
        with torch.random.fork_rng(devices=[]):
            for seed in self.seeds.tolist():
                torch.manual_seed(seed)
                starts.append(
                    {name: p.detach() for name, p in LeNet(self.side, dtype=torch.float64).named_parameters()}
                )
        return {
            name: torch.stack([start[name] for start in starts]).to(self.train.device, self.dtype) for name in starts[0]
        }

    def loss(self, params: Params, step: int) -> Tensor:
        return self.example_losses(params, step).mean(-1)

    def example_losses(self, params: Params, step: int) -> Tensor:
        """Return the losses [problems, minibatch] of the single images of the minibatch of `step`."""
        indices = streams.integers(self.seeds, self.minibatch, self.train.shape[1], "minibatch", step)
        return self._losses(params, self.train.gather(1, indices))

    def clean_loss(self, params: Params) -> Tensor:
        """Return the mean losses [problems] of the clean images."""
        return self._losses(params, self.clean).mean(-1)

    def _losses(self, params: Params, index: Tensor) -> Tensor:
        logits = torch.stack([self._logits(params, i, self.pool[own]) for i, own in enumerate(index)])
        return F.binary_cross_entropy_with_logits(logits, self.rare[index], reduction="none")

    def _logits(self, params: Params, problem: int, images: Tensor) -> Tensor:
        own = {name: value[problem] for name, value in params.items()}
        logits: Tensor = functional_call(self.module, own, (images,))
        return logits.squeeze(1)

    def metrics(self, params: Params) -> dict[str, Tensor]:
        images, rare = self.test
        logits = torch.stack([self._logits(params, i, images) for i in range(len(self.seeds))])
        return {"accuracy": ((logits > 0) == (rare > 0)).to(self.dtype).mean(-1)}
