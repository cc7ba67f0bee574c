"""Training any nn.Module to classify images: torchvision's networks, pretrained or not, or anybody's own.

The module itself is not rewritten: torch.func.functional_call computes it with given parameters, and torch.func.vmap
computes all problems at once. Where vmap fails (dropout, an LSTM) or is slow (a single problem; on the CPU larger ones,
whose convolutions it groups), problems are computed one after another. The generator is then seeded from (problem seed,
step), so that a problem's dropout does not depend on the other problems of its batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from l2l_runner import streams
from l2l_runner.errors import ConfigError, reason
from l2l_runner.fields import above, at_least, between, choice, path
from l2l_runner.imports import module_maker
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.data import SHAPES, Images, candidate_paths, load_images
from l2l_runner.runtime import Runtime
from l2l_runner.tensors import TensorFileError, read_tensors

CLASSES = 10  # of each data set
TEST_BATCH = 500  # test images computed at once, which bounds memory
VMAP_ON_CPU = 10_000  # coordinates; above, one problem after another is as fast as vmap, or up to 3.5 times faster
TARGET = "_target_"


@dataclass(frozen=True, kw_only=True)
class Module(Optimizee):
    """Cross-entropy of a module on minibatches of images.

    The parameters that require gradients are optimised, tied ones once. The other parameters and the buffers are
    constants of a problem; the module must not change its buffers in `forward`.

    Attributes:
        model: `_target_`, the import path of a subclass of nn.Module or of a function annotated to return one, and
            keyword arguments for it.
        data: mnist, cifar10 or digits; the module reads images [N, channels, height, width].
        labels: the data set's labels to keep, of 0 … 9, renumbered from 0 in this order; null for all.
        resize: height and width to which images are resized; null for their own.
        mean: of each channel, subtracted from pixels in [0, 1]; null for none.
        std: of each channel, by which pixels are then divided; null for none.
        minibatch: images per step, drawn with replacement.
        weights: a file of a state dict at which all problems start, also looked for in data.root and its
            hub/checkpoints; null: the module's own random initialisation, from the problem's seed.
        prefix: to be removed from the names in that file.
        batch_norm: batch (statistics of each batch, in evaluation too) or frozen (the stored statistics).
        test_images: number of the data set's test images for the accuracy; null for all.
    """

    model: dict[str, Any]
    data: str = choice(*SHAPES)
    labels: tuple[int, ...] | None = between(0, CLASSES)
    resize: int | None = at_least(1)
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None = above(0)
    minibatch: int = at_least(1)
    weights: str | None = path()
    prefix: str
    batch_norm: str = choice("batch", "frozen")
    test_images: int | None = at_least(1)

    def __post_init__(self) -> None:
        """Refuse fewer than two labels, and equal ones.

        Raises:
            ConfigError: there are fewer than two labels, or two are equal.
        """
        if self.labels is not None and not len(self.labels) == len(set(self.labels)) >= 2:
            raise ConfigError(f"optimizee.labels is {list(self.labels)}; expected two or more, all different, or null.")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return CLASSES if self.labels is None else len(self.labels)

    def layout(self) -> Layout:
        """Return the layout of the module's trainable parameters, in the module's order.

        Raises:
            ConfigError: `model` does not make a module that classifies these images.
        """
        return Layout({name: tuple(p.shape) for name, p in self.network.trainable.items()})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        where = (runtime.data_root, runtime.download, runtime.device)
        train, test = (load_images(self.data, split, *where, keep=self.labels) for split in ("train", "test"))
        return _ModuleProblems(self, seeds.to(runtime.device), runtime, train, test)

    def build(self, seed: int) -> nn.Module:
        """Build the module, with its own initialisation on the CPU, seeded with `seed`.

        Raises:
            ConfigError: `model` does not make a module.
        """
        target = self.model.get(TARGET)
        make = module_maker(target, f"optimizee.model.{TARGET}")
        with _seeded(seed, torch.device("cpu")):
            try:
                return make(**{key: value for key, value in self.model.items() if key != TARGET})
            except Exception as error:  # the user's code may raise anything
                raise ConfigError(f"optimizee.model could not be built: {target} says: {reason(error)}.") from error

    @cached_property
    def network(self) -> FunctionalModule:
        """The module as a function, checked on images of noise."""
        channels, height, width = SHAPES[self.data]
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                expected = f"{channels}, one for each channel of {self.data}"
                raise ConfigError(f"optimizee.{key} has {len(values)} numbers; expected {expected}.")
        network = FunctionalModule(self.build(0), self.batch_norm)
        size = (height, width) if self.resize is None else (self.resize, self.resize)
        shape = (min(2, self.minibatch), channels, *size)
        network.try_on(torch.rand(shape, generator=torch.Generator().manual_seed(0)), self.classes)
        return network

    def start(self, seeds: Sequence[int], root: Path) -> Params:
        """Return the parameters and constants of the problems of these seeds, [problems, *shape].

        Raises:
            ConfigError: the file of weights is missing, or does not fit.
        """
        if self.weights is None:
            modules = [self.build(seed) for seed in seeds]
        else:
            modules = [self.build(0)]
            _load(modules[0], _find(self.weights, root), self.prefix)
        values = [FunctionalModule(module, self.batch_norm).values for module in modules]
        stacked = {name: torch.stack([one[name].detach() for one in values]) for name in values[0]}
        return {name: value.expand(len(seeds), *value.shape[1:]) for name, value in stacked.items()}

    def prepared(self, images: Images, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the images of an index, [*index.shape, channels, height, width], scaled, resized and normalised."""
        pixels = images.pixels(index.flatten(), dtype).view(-1, *images.shape)
        if self.resize is not None:
            pixels = F.interpolate(pixels, (self.resize, self.resize), mode="bilinear", antialias=True)
        if self.mean is not None:
            pixels = pixels - pixels.new_tensor(self.mean).view(-1, 1, 1)
        if self.std is not None:
            pixels = pixels / pixels.new_tensor(self.std).view(-1, 1, 1)
        if pixels.device.type == "cpu":  # layers are faster there with the channels of a pixel side by side
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        return pixels.view(*index.shape, *pixels.shape[1:])


class FunctionalModule:
    """A module as a function of the values of its parameters and buffers; its own values are never used.

    Attributes:
        module: the module.
        trainable: its parameters that require gradients, by name; a tied one has the first of its names.
        constants: its other parameters and its buffers.
        vectorised: whether vmap can compute several problems at once, as `try_on` finds out.
    """

    def __init__(self, module: nn.Module, batch_norm: str):
        if batch_norm == "batch":
            replace_all_batch_norm_modules_(module)
        self.module, self.frozen = module, batch_norm == "frozen"
        self.vectorised = False
        named = dict(module.named_parameters())
        self.trainable = {name: p for name, p in named.items() if p.requires_grad}
        self.constants = {name: p for name, p in named.items() if not p.requires_grad} | dict(module.named_buffers())
        self._places = _places(module)

    @property
    def values(self) -> Params:
        """The values that a call needs, by name."""
        return {**self.trainable, **self.constants}

    def train(self, mode: bool) -> None:
        """Set training or evaluation mode; frozen batch norm is always in evaluation mode."""
        self.module.train(mode)
        if self.frozen:
            for part in self.module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()

    def __call__(self, values: Params, images: Tensor) -> Tensor:
        """Return the scores [N, classes] of images [N, channels, height, width], with these values."""
        at = {place: values[name] for place, name in self._places.items()}
        # functional_call's own tying of weights would swap in a shared submodule's parameters twice, and then restore
        # the first swap in place of the module's own parameters.
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivatives
            scores: Tensor = functional_call(self.module, at, (images,), tie_weights=False)
        return scores

    def try_on(self, images: Tensor, classes: int) -> None:
        """Compute some images, as one problem and as two, and set `vectorised`.

        Raises:
            ConfigError: the module fails, does not return scores, or is not a function of its parameters.
        """
        for name, parameter in self.trainable.items():
            if nn.parameter.is_lazy(parameter):
                raise ConfigError(f"optimizee.model leaves the shape of {name} open: use a module that is not lazy.")
        if not self.trainable:
            raise ConfigError("optimizee.model has no parameter that requires a gradient: use a module that has one.")
        shape = list(images.shape)
        values = {name: value.detach().clone() for name, value in self.values.items()}
        self.train(True)
        with _seeded(0, images.device), torch.no_grad():
            try:
                scores = self(values, images)
            except Exception as error:  # the user's code may raise anything
                raise ConfigError(f"optimizee.model cannot compute images {shape}: {reason(error)}.") from error
            expected = [len(images), classes]
            if not isinstance(scores, Tensor) or list(scores.shape) != expected:
                found = list(scores.shape) if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
                raise ConfigError(
                    f"optimizee.model returns {found} for images {shape}; expected scores {expected} "
                    f"(torchvision's networks take num_classes={classes})."
                )
            for name, value in self.constants.items():
                if not torch.equal(values[name], value):
                    raise ConfigError(
                        f"optimizee.model changes its buffer {name} in forward, so that a loss would depend on earlier "
                        "ones: use a layer without running statistics."
                    )
            twice = {name: torch.stack([value, value]) for name, value in values.items()}
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # vmap warns where it only loops, which is slower than a loop here
                    for mode in (True, False):  # a layer may have a separate fast path for evaluation
                        self.train(mode)
                        vmap(lambda own: self(own, images))(twice)
                self.vectorised = True
            except Exception:  # it can be computed alone, but not by vmap: randomness, or an unsupported operation
                self.vectorised = False


class _ModuleProblems(Problem):
    def __init__(self, optimizee: Module, seeds: Tensor, runtime: Runtime, train: Images, test: Images):
        self.optimizee, self.network, self.layout = optimizee, optimizee.network, optimizee.layout()
        self.seeds, self.dtype, self.train, self.test = seeds, runtime.dtype, train, test
        self.host_seeds = seeds.cpu()  # seeds for the generators are drawn without waiting for the device
        self.start = {
            name: value.to(runtime.device, runtime.dtype if value.is_floating_point() else value.dtype)
            for name, value in optimizee.start(self.host_seeds.tolist(), runtime.data_root).items()
        }
        self.constants = {name: self.start[name] for name in self.network.constants}

    def init(self) -> Params:
        return {name: self.start[name] for name in self.layout.shapes}

    def loss(self, params: Params, step: int) -> Tensor:
        index = streams.integers(self.seeds, self.optimizee.minibatch, len(self.train.labels), "minibatch", step)
        images, labels = self.optimizee.prepared(self.train, index, self.dtype), self.train.labels[index]

        def cross_entropy(values: Params, images: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.network(values, images), labels)

        self.network.train(True)
        return self._each(cross_entropy, params, step, images, labels)

    @torch.no_grad()
    def metrics(self, params: Params) -> dict[str, Tensor]:
        count = min(self.optimizee.test_images or len(self.test.labels), len(self.test.labels))
        right = torch.zeros(len(self.seeds), dtype=self.dtype, device=self.seeds.device)
        self.network.train(False)
        for index in torch.split(torch.arange(count, device=self.seeds.device), TEST_BATCH):
            images = self.optimizee.prepared(self.test, index, self.dtype)
            scores = self._each(lambda values, images=images: self.network(values, images), params, 0)
            right += (scores.argmax(-1) == self.test.labels[index]).sum(-1)
        return {"accuracy": right / count}

    def _each(self, function: Callable[..., Tensor], params: Params, step: int, *rest: Tensor) -> Tensor:
        """Return `function` of each problem's values and of its row of each of `rest`, [problems, …]."""
        values = {**params, **self.constants}
        slow = len(self.seeds) == 1 or (self.seeds.device.type == "cpu" and self.layout.size > VMAP_ON_CPU)
        if self.network.vectorised and not slow:
            return vmap(function)(values, *rest)
        noise = streams.integers(self.host_seeds, 1, 1 << 32, "noise", step)[:, 0].tolist()
        columns = [tensor.unbind() for tensor in (*values.values(), *rest)]
        results = []
        for seed, row in zip(noise, zip(*columns, strict=True), strict=True):
            with _seeded(seed, self.seeds.device):
                results.append(function(dict(zip(values, row, strict=False)), *row[len(values) :]))
        return torch.stack(results)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of the CPU and of `device`, and restore them at the end."""
    # Not torch.manual_seed: it seeds every GPU, but only those named here are restored.
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng([device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _places(module: nn.Module) -> dict[str, str]:
    """Return the path of each attribute that holds a parameter or buffer, with its name in `named_parameters`.

    Tied weights are several attributes of one name; those of a shared submodule are found once.
    """
    names: dict[int, str] = {}
    return {
        place: names.setdefault(id(tensor), place)
        for prefix, part in module.named_modules()
        for own in (part.named_parameters, part.named_buffers)
        for place, tensor in own(prefix, recurse=False, remove_duplicate=False)
    }


def _find(file: str, root: Path) -> Path:
    """Return the path at which the file of weights exists."""
    options = candidate_paths(file, root)
    for place in options:
        if place.is_file():
            return place
    raise ConfigError(f"optimizee.weights is {file!r}; there is no such file at {', '.join(map(str, options))}.")


def _load(module: nn.Module, file: Path, prefix: str) -> None:
    """Load the weights in a file into the module; names and shapes must all fit."""
    try:
        content = read_tensors(file)
    except TensorFileError as error:
        raise ConfigError(f"optimizee.weights: {file} cannot be read ({reason(error)}).") from error
    found = {name.removeprefix(prefix): value for name, value in _state_dict(content, file).items()}
    own = module.state_dict()
    # Files from before PyTorch 0.4.1 lack the count of batches, which nothing here reads.
    counts = {name for name in own if name.endswith("num_batches_tracked")}
    for name in [*own, *found]:
        if name not in found and name not in counts:
            hint = "" if not prefix else f" (without the prefix {prefix!r})"
            raise ConfigError(
                f"optimizee.weights: {file} has no {name}, which the module has; its first name is "
                f"{next(iter(found))}{hint}: set optimizee.prefix or optimizee.model to fit."
            )
        if name not in own:
            raise ConfigError(f"optimizee.weights: {file} has {name}, which the module does not have.")
        if name in found and found[name].shape != own[name].shape:
            raise ConfigError(
                f"optimizee.weights: in {file} {name} has the shape {list(found[name].shape)}; expected "
                f"{list(own[name].shape)}, that of the module."
            )
    module.load_state_dict(found, strict=False)


def _state_dict(content: object, file: Path) -> Mapping[str, Tensor]:
    """Return the state dict in a file's content: all of it, or the value of a key such as state_dict or model."""
    for candidate in (content, *(content.values() if isinstance(content, Mapping) else ())):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return candidate
    raise ConfigError(f"optimizee.weights: {file} holds no state dict; expected names with tensors.")
