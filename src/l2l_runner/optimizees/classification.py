"""Training a small MLP on images: the MNIST optimizee of Andrychowicz et al. 2016 (section 3.2), and digits.

A problem is a random start and a random sequence of minibatches of the training images. As in the paper, pixels stay in
[0, 1] and the steps minimise the training loss. The accuracy is that on the data set's test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.fields import at_least, between, choice
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.data import Images, load_images
from l2l_runner.runtime import Runtime

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}
SIDES = {"mnist": 28, "digits": 8}  # pixels
CLASSES = 10
METRIC_IMAGES = 2000  # test images for the accuracy, whose standard error is then below one percent


@dataclass(frozen=True, kw_only=True)
class Classification(Optimizee):
    """Cross-entropy of an MLP on minibatches of images.

    Attributes:
        name: the data set, mnist (28×28) or digits (scikit-learn's 8×8).
        hidden: units of each hidden layer; [] is logistic regression.
        activation: sigmoid, relu or tanh.
        pool: average squares of pool × pool pixels first; 1 leaves the images as they are.
        minibatch: images per step, drawn with replacement.
        init_scale: standard deviation of all parameters at the start.
    """

    name: str = choice(*SIDES)
    hidden: tuple[int, ...] = at_least(1)
    activation: str = choice(*ACTIVATIONS)
    pool: int = between(1, 5)
    minibatch: int = at_least(1)
    init_scale: float = at_least(0)

    def module(self) -> nn.Module:
        """Build the MLP, without storage: each call passes its parameters."""
        widths = [(SIDES[self.name] // self.pool) ** 2, *self.hidden, CLASSES]
        with torch.device("meta"):
            layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
            for fan_in, fan_out in pairwise(widths[1:]):
                layers += [ACTIVATIONS[self.activation](), nn.Linear(fan_in, fan_out)]
            return nn.Sequential(*layers)

    def layout(self) -> Layout:
        return Layout({name: tuple(p.shape) for name, p in self.module().named_parameters()})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        where = (runtime.data_root, runtime.download, runtime.device, self.pool)
        train, test = (load_images(self.name, split, *where) for split in ("train", "test"))
        return _Classifications(self, seeds.to(runtime.device), runtime.dtype, train, test)


class _Classifications(Problem):
    def __init__(self, optimizee: Classification, seeds: Tensor, dtype: torch.dtype, train: Images, test: Images):
        self.layout = optimizee.layout()
        self.module = optimizee.module()
        self.seeds, self.dtype, self.train, self.test = seeds, dtype, train, test
        self.minibatch, self.init_scale = optimizee.minibatch, optimizee.init_scale

    def init(self) -> Params:
        return {
            name: (streams.normal(self.seeds, prod(shape), name) * self.init_scale).to(self.dtype).view(-1, *shape)
            for name, shape in self.layout.shapes.items()
        }

    def loss(self, params: Params, step: int) -> Tensor:
        index = streams.integers(self.seeds, self.minibatch, len(self.train.labels), "minibatch", step)
        pixels, labels = self.train.pixels(index, self.dtype), self.train.labels[index]
        return vmap(self._cross_entropy)(params, pixels, labels)

    def _cross_entropy(self, params: Params, pixels: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(self.module, params, (pixels,)), labels)

    def metrics(self, params: Params) -> dict[str, Tensor]:
        index = torch.arange(min(METRIC_IMAGES, len(self.test.labels)), device=self.seeds.device)
        pixels, labels = self.test.pixels(index, self.dtype), self.test.labels[index]
        logits = vmap(lambda p: functional_call(self.module, p, (pixels,)))(params)
        return {"accuracy": (logits.argmax(-1) == labels).to(self.dtype).mean(-1)}
