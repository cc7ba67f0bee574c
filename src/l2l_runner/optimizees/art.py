"""Neural art: the optimizee of Andrychowicz et al. 2016 (arXiv 1606.04474, section 3.4, figures 8 and 9).

A problem is an image θ with the content of a photograph in the style of a painting (Gatys et al. 2015, arXiv
1508.06576). With F_l(θ) the [channels, positions] activations of layer l of a pretrained network, and
G_l = F_l F_lᵀ / positions their Gram matrix,

    f(θ) = content_weight · mean over content layers of ‖F_l(θ) − F_l(photograph)‖² / ‖F_l(photograph)‖²
         + style_weight · mean over style layers of ‖G_l(θ) − G_l(painting)‖² / ‖G_l(painting)‖²
         + tv_weight · the mean of the squared differences of neighbouring pixels, summed over both directions.

The errors of features and Gram matrices are relative, where Gatys et al. have factors 1/2 and 1/(4 N² M²). So they are
of order 1 at the start for any network and layers, and do not depend on the sizes of the images. There are no
minibatches: the loss is the same at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError, DataError, reason
from l2l_runner.fields import at_least, choice, path
from l2l_runner.layout import Layout, Params
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.optimizees.data import candidate_paths
from l2l_runner.runtime import Runtime
from l2l_runner.tensors import TensorFileError, read_tensors

SUFFIXES = (".png", ".jpg", ".jpeg")
GREY = 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, which the networks were trained on


class Layers(NamedTuple):
    """Indices in a network's `features`, of the layers whose activations and whose Gram matrices are compared."""

    content: tuple[int, ...]
    style: tuple[int, ...]


NETWORKS = {
    "squeezenet1_1": Layers((3,), (1, 4, 6, 7)),  # relu1; fire2, fire3, fire4, fire5
    "vgg16": Layers((20,), (1, 6, 11, 18, 25)),  # relu4_2; relu1_1, relu2_1, relu3_1, relu4_1, relu5_1
    "vgg19": Layers((22,), (1, 6, 11, 20, 29)),  # the same, as in Gatys et al.
}


@dataclass(frozen=True, kw_only=True)
class Art(Optimizee):
    """Content, style and total-variation loss of an image.

    A problem's photograph is a random square crop of one in the folder, of half to all of its shorter side, mirrored
    or not. Pixels of the image are meant to lie in [0, 1]; nothing enforces it, and pictures clamp them.

    Attributes:
        content: the folder of the photographs (PNG or JPEG), also looked for in data.root.
        style: the file of the painting, likewise. Its shorter side is reduced to `size`.
        part: of the photographs in the order of their names: train, test (the last quarter, at least one), all.
        size: height and width of the image, in pixels.
        network: computes the features.
        weights: a file of the network's weights, also looked for in data.root and its hub/checkpoints; null for
            torchvision's, which are downloaded if data.download allows it.
        content_layers: indices in the network's `features`; null for those of NETWORKS.
        style_layers: likewise.
        content_weight: of the relative error of the features.
        style_weight: of the relative error of the Gram matrices.
        tv_weight: of the mean squared difference of neighbouring pixels.
        init: the start of θ: noise (around grey; the paper gives no start, Gatys et al. use white noise) or content
            (the photograph, with noise).
        noise: standard deviation of that noise.
    """

    content: str = path()
    style: str = path()
    part: str = choice("train", "test", "all")
    size: int = at_least(2)  # a single pixel has no neighbours
    network: str = choice(*NETWORKS)
    weights: str | None = path()
    content_layers: tuple[int, ...] | None = at_least(0)
    style_layers: tuple[int, ...] | None = at_least(0)
    content_weight: float = at_least(0)
    style_weight: float = at_least(0)
    tv_weight: float = at_least(0)
    init: str = choice("noise", "content")
    noise: float = at_least(0)

    def layout(self) -> Layout:
        """Return the layout of an image.

        Raises:
            ConfigError: the network does not have these layers, or images of this size are too small for them.
        """
        _ = self.architecture
        return Layout({"image": (3, self.size, self.size)})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        """Return problems as `Optimizee.sample` does.

        Raises:
            DataError: the photographs, the painting or the weights are missing, or cannot be read.
        """
        return _Artworks(self, seeds, runtime)

    @property
    def layers(self) -> Layers:
        """The layers that are compared."""
        own = NETWORKS[self.network]
        content = own.content if self.content_layers is None else self.content_layers
        return Layers(content, own.style if self.style_layers is None else self.style_layers)

    @cached_property
    def architecture(self) -> nn.Sequential:
        """The network up to the last layer that is compared, without storage."""
        from torchvision.models import get_model  # heavy, and only needed here

        with torch.device("meta"):
            features = get_model(self.network, weights=None).features
            image = torch.empty(1, 3, self.size, self.size)
        for key, indices in zip(("content_layers", "style_layers"), self.layers, strict=True):
            if not indices or max(indices) >= len(features):
                raise ConfigError(
                    f"optimizee.{key} is {list(indices)}; expected one or more of the layers of {self.network}, "
                    f"0 to {len(features) - 1}."
                )
        last = max(*self.layers.content, *self.layers.style)
        network: nn.Sequential = features[: last + 1]
        for part in network.modules():
            if isinstance(part, nn.ReLU):
                part.inplace = False  # it would overwrite the activations of the layer before
        try:
            network(image)
        except RuntimeError as error:
            raise ConfigError(
                f"optimizee.size is {self.size}, which is too small for layer {last} of {self.network} "
                f"({reason(error)}): use larger images or earlier layers."
            ) from error
        return network

    def crops(self, seeds: Tensor, root: Path) -> Tensor:
        """Return the photographs for these seeds [problems]: [problems, 3, size, size] (float64) in [0, 1]."""
        files = _part(_photographs(self.content, root), self.part, self.content)
        which, zoom, down, right, mirror = streams.uniform(seeds.cpu(), 5, "crop").T.tolist()
        crops = []
        for i in range(len(seeds)):
            pixels = _pixels(files[int(which[i] * len(files))])
            height, width = pixels.shape[1:]
            short = min(height, width)
            low = min(short, max(self.size, short // 2))
            side = low + int(zoom[i] * (short - low + 1))
            top, left = int(down[i] * (height - side + 1)), int(right[i] * (width - side + 1))
            crop = pixels[:, top : top + side, left : left + side]
            crops.append(_resized(crop.flip(2) if mirror[i] < 0.5 else crop, (self.size, self.size)))
        return torch.stack(crops)


class _Artworks(Problem):
    def __init__(self, optimizee: Art, seeds: Tensor, runtime: Runtime):
        self.optimizee, self.layout, self.seeds = optimizee, optimizee.layout(), seeds.to(runtime.device)
        self.network = _pretrained(optimizee, runtime)
        photographs = optimizee.crops(seeds, runtime.data_root)
        around = photographs if optimizee.init == "content" else GREY
        noise = streams.normal(seeds.cpu(), self.layout.size, "start").view_as(photographs)
        self.start = (around + optimizee.noise * noise).to(runtime.device, runtime.dtype)
        self.photographs = photographs.to(runtime.device, runtime.dtype)
        self.painting, self.grams = _painting(optimizee, runtime)
        with torch.no_grad():
            self.features = activations(self.network, self.photographs, optimizee.layers.content)

    def init(self) -> Params:
        return {"image": self.start}

    def loss(self, params: Params, step: int) -> Tensor:
        content, style, tv = self._losses(params["image"])
        o = self.optimizee
        return o.content_weight * content + o.style_weight * style + o.tv_weight * tv

    def metrics(self, params: Params) -> dict[str, Tensor]:
        """Return the three losses, before they are weighted."""
        return dict(zip(("content", "style", "tv"), self._losses(params["image"]), strict=True))

    def pictures(self, params: Params) -> Tensor:
        return params["image"].clamp(0, 1)

    def sources(self) -> dict[str, Tensor]:
        return {"content": self.photographs, "style": self.painting.expand(len(self.seeds), -1, -1, -1)}

    def _losses(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layers = self.optimizee.layers
        found = activations(self.network, images, {*layers.content, *layers.style})
        content = [_relative_error(found[index], self.features[index]) for index in layers.content]
        style = [_relative_error(gram(found[index]), self.grams[index]) for index in layers.style]
        return torch.stack(content).mean(0), torch.stack(style).mean(0), total_variation(images)


def activations(network: nn.Sequential, pixels: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
    """Return the activations of layers of a network, by index, for images [problems, 3, height, width] in [0, 1]."""
    wanted = set(layers)
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)  # up to twice as fast on a CPU
    found = {}
    for index, layer in enumerate(network[: max(wanted) + 1]):
        x = layer(x)
        if index in wanted:
            found[index] = x
    return found


def gram(features: Tensor) -> Tensor:
    """Return Gram matrices [problems, channels, channels] of features [problems, channels, height, width]."""
    positions = features.permute(0, 2, 3, 1).flatten(1, 2)  # in their order in memory, which is faster
    return positions.mT @ positions / positions.shape[1]


def total_variation(images: Tensor) -> Tensor:
    """Return the mean squared differences of neighbouring pixels, summed over both directions, [problems]."""
    down, right = images.diff(dim=2), images.diff(dim=3)
    return down.square().mean((1, 2, 3)) + right.square().mean((1, 2, 3))


def _relative_error(found: Tensor, target: Tensor) -> Tensor:
    """Return ‖found − target‖² / ‖target‖², [problems], for one target for all problems or one for each."""
    return (found - target).square().flatten(1).sum(1) / target.square().flatten(1).sum(1)


@lru_cache(maxsize=4)
def _painting(optimizee: Art, runtime: Runtime) -> tuple[Tensor, dict[int, Tensor]]:
    """Return the painting [1, 3, height, width], and its Gram matrices by layer."""
    file = _found(optimizee.style, runtime.data_root, "style", "an image (PNG or JPEG)")
    pixels = _pixels(file)
    scale = min(1.0, optimizee.size / min(pixels.shape[1:]))
    painting = _resized(pixels, (round(pixels.shape[1] * scale), round(pixels.shape[2] * scale)))
    painting = painting[None].to(runtime.device, runtime.dtype)
    with torch.no_grad():
        found = activations(_pretrained(optimizee, runtime), painting, optimizee.layers.style)
    return painting, {index: gram(features) for index, features in found.items()}


@lru_cache(maxsize=4)
def _pretrained(optimizee: Art, runtime: Runtime) -> nn.Sequential:
    """Return the network with its weights, as constants."""
    file = _weights_file(optimizee, runtime)
    try:
        content = read_tensors(file)
    except TensorFileError as error:
        raise DataError(f"optimizee.weights: {file} cannot be read ({reason(error)}).") from error
    network = deepcopy(optimizee.architecture)
    weights = {}
    for name, own in network.state_dict().items():
        found = content.get(f"features.{name}") if isinstance(content, dict) else None
        if not isinstance(found, Tensor) or found.shape != own.shape:
            raise DataError(
                f"optimizee.weights: {file} has no features.{name} of the shape {list(own.shape)}; expected weights of "
                f"torchvision's {optimizee.network}, with its names."
            )
        weights[name] = found.to(runtime.device, runtime.dtype)
    network.load_state_dict(weights, assign=True)
    network.requires_grad_(False).to(memory_format=torch.channels_last)
    return network


def _weights_file(optimizee: Art, runtime: Runtime) -> Path:
    from torchvision.models import get_model_weights

    url = get_model_weights(optimizee.network).DEFAULT.url
    name = optimizee.weights or url.rsplit("/", 1)[1]
    options = candidate_paths(name, runtime.data_root)
    file = next((place for place in options if place.is_file()), None)
    if file is not None:
        return file
    looked = f"there is no {name} at {', '.join(map(str, options))}"
    if optimizee.weights is not None:
        raise DataError(f"optimizee.weights: {looked}: put it there, or use optimizee.weights=null for torchvision's.")
    mend = f"download {url} into {options[-1].parent}, or name a file of weights with optimizee.weights=FILE"
    if not runtime.download:
        raise DataError(f"optimizee.weights: {looked}, and data.download=false: use data.download=true, {mend}.")
    file, checksum = options[-1], url.rsplit("-", 1)[1].split(".")[0]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), checksum, progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"optimizee.weights: {looked}, and it could not be downloaded ({reason(error)}): {mend}."
        ) from error
    return file


def _found(given: str, root: Path, key: str, expected: str) -> Path:
    for place in candidate_paths(given, root):
        if place.exists():
            return place
    raise DataError(
        f"optimizee.{key} is {given!r}, and neither {given} nor {root / given} is there: give {expected} as "
        f"optimizee.{key}=PATH."
    )


@lru_cache(maxsize=4)
def _photographs(content: str, root: Path) -> tuple[Path, ...]:
    """Return the images of a folder, in the order of their names."""
    folder = _found(content, root, "content", "a folder of images (PNG or JPEG)")
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise DataError(f"optimizee.content: {folder} holds no images; expected a folder of PNG or JPEG files.")
    return tuple(found)


def _part(files: tuple[Path, ...], part: str, content: str) -> tuple[Path, ...]:
    test = math.ceil(len(files) / 4)
    chosen = {"train": files[: len(files) - test], "test": files[len(files) - test :], "all": files}[part]
    if not chosen:
        raise DataError(
            f"optimizee.part=train is empty, because the only image of {content} is for the test: put more images "
            "there, or use optimizee.part=all."
        )
    return chosen


@lru_cache(maxsize=256)  # decoding is slow; these are a few hundred MB for photographs of the usual size
def _pixels(file: Path) -> Tensor:
    """Load an image file as uint8 [3, height, width], with its EXIF orientation, on white where it is transparent."""
    try:
        with Image.open(file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits per pixel
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file} cannot be read as an image ({reason(error)}).") from error


def _resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bytes [3, height, width] to pixels in [0, 1] (float64), with antialiasing."""
    return F.interpolate(pixels[None].double() / 255, size, mode="bilinear", antialias=True)[0]
