"""Neural art: its losses against plain loops, its photographs, its pictures, and what cannot be."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models import get_model

from composing import built
from l2l_runner import plots, streams
from l2l_runner.errors import ConfigError, DataError
from l2l_runner.evaluation.curves import PICTURED, run
from l2l_runner.optimizees import OPTIMIZEES
from l2l_runner.optimizees.art import NETWORKS, activations, gram, total_variation
from problems import DATA, NEEDS, RUNTIME, any_optimizer, art_files, given, optimizee, problems, scattered

CAFFE = "squeezenet1_1_caffe_features-e7ae3ddc.pth"
NEURAL_ART = DATA / "neural_art"
needs_neural_art = pytest.mark.skipif(
    "L2L_DATA" not in os.environ or not (NEURAL_ART.is_dir() and (DATA / "hub" / "checkpoints" / CAFFE).is_file()),
    reason=f"neural_art and hub/checkpoints/{CAFFE} are not in the folder that L2L_DATA names",
)
SEEDS = streams.seeds(0, "train", 0, 3)


def crops(**changes):
    return optimizee("art", **changes).crops(streams.seeds(0, "train", 0, 60), DATA)


def picture(folder: Path, name: str, image: Image.Image) -> dict[str, str]:
    """The setting that makes an image the only photograph, in its own size."""
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    return {"content": str(folder), "part": "all"}


# The losses


def plain_features(pixels: torch.Tensor, layers: set[int]) -> dict[int, torch.Tensor]:
    """Torchvision's own module on an image, layer by layer."""
    state = torch.load(art_files()["weights"], weights_only=True)
    network = get_model("squeezenet1_1", weights=None).features[:8].double()
    network.load_state_dict({name.removeprefix("features."): value for name, value in state.items()})
    x, found = torch.empty(1, 3, *pixels.shape[1:], dtype=torch.float64), {}
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        x[0, channel] = (pixels[channel] - mean) / std
    with torch.no_grad():
        for index, layer in enumerate(network):
            x = layer(x)
            found[index] = x[0].clone()
    return {index: found[index] for index in layers}


def plain_gram(features: torch.Tensor) -> np.ndarray:
    channels, height, width = features.shape
    values, matrix = features.numpy(), np.zeros((channels, channels))
    for i in range(channels):
        for j in range(channels):
            matrix[i, j] = (values[i] * values[j]).sum() / (height * width)
    return matrix


def relative(found, target) -> float:
    found, target = np.asarray(found), np.asarray(target)
    return float(((found - target) ** 2).sum() / (target**2).sum())


def test_losses_are_their_formulas():
    weights: dict[str, Any] = {"content_weight": 0.7, "style_weight": 1.3, "tv_weight": 11.0}
    problem = problems("art", 3, content_layers=[3, 4], style_layers=[0, 1, 4], **weights)
    images = problem.layout.views(scattered(problem))["image"]
    losses, metrics = problem.loss({"image": images}, 0), problem.metrics({"image": images})
    painting = plain_features(problem.sources()["style"][0], {0, 1, 4})
    for i in range(3):
        found = plain_features(images[i], {0, 1, 3, 4})
        photograph = plain_features(problem.sources()["content"][i], {3, 4})
        content = sum(relative(found[k], photograph[k]) for k in (3, 4)) / 2
        style = sum(relative(plain_gram(found[k]), plain_gram(painting[k])) for k in (0, 1, 4)) / 3
        x, tv = images[i].tolist(), 0.0
        for channel in x:
            for row in range(16):
                for column in range(16):
                    below = (channel[row + 1][column] - channel[row][column]) ** 2 if row < 15 else 0.0
                    beside = (channel[row][column + 1] - channel[row][column]) ** 2 if column < 15 else 0.0
                    tv += (below + beside) / (3 * 15 * 16)
        for name, value in (("content", content), ("style", style), ("tv", tv)):
            assert metrics[name][i].item() == pytest.approx(value, rel=1e-10), name
        assert losses[i].item() == pytest.approx(0.7 * content + 1.3 * style + 11.0 * tv, rel=1e-10)


def test_the_photograph_has_its_own_content_and_a_painting_its_own_style():
    problem = problems("art", 3)
    assert (problem.metrics({"image": problem.sources()["content"]})["content"] == 0).all()
    painting = F.interpolate(problem.sources()["style"], 16)
    square = problems("art", 3, size=40, style=art_files()["content"] + "/0.png")
    same = square.sources()["style"][..., :40]  # a painting of 40 × 56 pixels, not all of it
    assert (square.metrics({"image": same})["style"] < 0.5 * square.metrics(square.init())["style"]).all()
    assert (problem.metrics({"image": painting})["style"] < problem.metrics(problem.init())["style"]).all()


def test_losses_are_of_order_one_at_the_start():
    losses = problems("art", 30).metrics(problems("art", 30).init())
    for name in ("content", "style"):
        assert 0.1 < losses[name].mean().item() < 10, name


def test_the_loss_has_no_minibatches():
    problem = problems("art", 2)
    assert torch.equal(problem.loss(problem.init(), 0), problem.loss(problem.init(), 77))


def test_a_gram_matrix_does_not_depend_on_the_size_of_the_image():
    features = torch.rand(2, 5, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(gram(features.repeat(1, 1, 3, 2)), gram(features))
    assert total_variation(torch.ones(2, 3, 5, 5)).tolist() == [0, 0]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_computes_all_its_layers_and_no_more(tmp_path, name):
    kind = optimizee("art", network=name, content_layers=None, style_layers=None, size=48)
    layers, network = kind.layers, kind.architecture
    assert len(network) == max(*layers.content, *layers.style) + 1
    if name != "squeezenet1_1":  # Gatys' choice: the first activation of each block, and the second of the fourth
        kinds = [type(part).__name__ for part in get_model(name, weights=None).features]
        blocks = np.cumsum([part == "MaxPool2d" for part in kinds])
        for block, index in enumerate(layers.style):
            assert kinds[index] == "ReLU"
            assert blocks[index] == block
            assert index == next(k for k, part in enumerate(kinds) if part == "ReLU" and blocks[k] == block)
        assert kinds[layers.content[0]] == "ReLU"
        assert layers.content[0] == layers.style[3] + 2
    state = {f"features.{key}": torch.randn(value.shape) / 9 for key, value in network.state_dict().items()}
    torch.save({**state, "classifier.weight": torch.zeros(3)}, tmp_path / "all.pth")
    problem = replace(kind, weights=str(tmp_path / "all.pth")).sample(SEEDS[:1], RUNTIME)
    assert problem.loss(problem.init(), 0).isfinite().all()
    assert not any(p.requires_grad for p in problem.network.parameters())


def test_no_layer_overwrites_the_one_before():
    problem = problems("art", 1)
    found = activations(problem.network, problem.start, {0, 1})
    assert (found[0] < 0).any()
    assert torch.equal(found[0].clamp(min=0), found[1])


# Photographs and starts


def test_train_and_test_photographs_are_disjoint_and_all_are_used(tmp_path):
    for i in range(7):  # each of one colour, so that a crop tells whose it is
        Image.new("RGB", (20, 30), (30 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "readme.txt").write_text("no image")
    shades = {}
    for part in ("train", "test", "all"):
        values = crops(content=str(tmp_path), part=part)
        shades[part] = {round(value * 255 / 30) for value in values[:, 0].flatten().tolist()}
    assert shades == {"train": {0, 1, 2, 3, 4}, "test": {5, 6}, "all": set(range(7))}


def test_crops_are_of_every_place_and_size_mirrored_or_not(tmp_path):
    ramp = np.zeros((32, 64, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(64)[None] * 4, np.arange(32)[:, None] * 8
    many = crops(**picture(tmp_path, "ramp.png", Image.fromarray(ramp))) * 255
    steps = (many[:, 0, :, -1] - many[:, 0, :, 0]).mean(1)
    mirrored = steps < 0
    assert 15 < mirrored.sum() < 45
    sides = steps.abs() / 4 / 15 * 16  # in pixels of the photograph
    assert sides.min() >= 15
    assert sides.max() <= 33
    assert sides.round().unique().numel() > 8
    assert ((many[:, 1, -1] - many[:, 1, 0]).mean(1) > 0).all()  # never upside down
    left = torch.where(mirrored, many[:, 0, 0, -1], many[:, 0, 0, 0]) / 4
    assert left.min() < 4
    assert left.max() > 30
    assert (many >= 0).all()
    assert (many <= 255).all()


def test_a_photograph_of_the_size_of_the_image_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    own = torch.from_numpy(pixels).permute(2, 0, 1).double() / 255
    for crop in crops(**picture(tmp_path, "own.png", Image.fromarray(pixels))):
        torch.testing.assert_close(crop, own) if (crop - own).abs().max() < 1e-6 else torch.testing.assert_close(
            crop.flip(2), own
        )
    larger = crops(size=24, **picture(tmp_path / "small", "own.png", Image.fromarray(pixels)))
    assert larger.shape == (60, 3, 24, 24)  # too small a photograph is enlarged, all of it


COLOURED = Image.new("RGB", (20, 20), (10, 200, 90))
KINDS = {
    "grey.png": (Image.new("L", (20, 20), 100), (100, 100, 100)),
    "deep.png": (Image.fromarray(np.full((20, 20), 100 * 257, dtype=np.uint16)), (100, 100, 100)),
    "clear.png": (Image.new("RGBA", (20, 20), (0, 0, 0, 0)), (255, 255, 255)),
    "half.png": (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), (204, 204, 204)),
    "solid.png": (Image.new("RGBA", (20, 20), (10, 200, 90, 255)), (10, 200, 90)),
    "palette.png": (COLOURED.quantize(4), (10, 200, 90)),
    "photo.JPEG": (COLOURED, (10, 200, 90)),
}


@pytest.mark.parametrize("name", KINDS)
def test_images_of_every_kind_are_read(tmp_path, name):
    image, colour = KINDS[name]
    found = crops(**picture(tmp_path, name, image))[0] * 255
    tolerance = 2 if name.endswith("JPEG") else 1e-9
    torch.testing.assert_close(found.mean((1, 2)), torch.tensor(colour, dtype=torch.float64), rtol=0, atol=tolerance)


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("start", ["noise", "content"])
def test_starts_are_noise_around_grey_or_the_photograph(start, noise):
    problem = problems("art", 50, init=start, noise=noise)
    around = problem.sources()["content"] if start == "content" else 0.5
    difference = problem.init()["image"] - around
    assert difference.std().item() == pytest.approx(noise, rel=0.02)
    assert difference.mean().item() == pytest.approx(0, abs=0.02 * noise)


def test_relative_paths_are_looked_for_in_the_data_folder(tmp_path):
    where = art_files()
    for key in where:
        os.symlink(where[key], tmp_path / key)
    kind = optimizee("art", content="content", style="style", weights="weights")
    problem = kind.sample(SEEDS, replace(RUNTIME, data_root=tmp_path))
    assert torch.equal(problem.loss(problem.init(), 0), problems("art", 3).loss(problems("art", 3).init(), 0))


# Pictures


def test_pictures_are_the_image_cut_off():
    problem = problems("art", 2)
    images = problem.init()["image"] * 5 - 2
    found = problem.pictures({"image": images})
    assert torch.equal(found, images.clamp(0, 1))
    assert list(problem.sources()) == ["content", "style"]


@pytest.mark.parametrize("at_once", [1, 3, 4, 100])
def test_a_run_keeps_the_pictures_of_its_first_problems(at_once):
    kind = optimizee("art")
    adam = any_optimizer("adam", kind.layout())
    curves = run(adam, kind, streams.seeds(0, "test", 0, 6), 3, RUNTIME, at_once * kind.layout().size)
    assert curves.pictures is not None
    assert curves.pictures.shape == (PICTURED, 3, 16, 16)
    alone = run(adam, kind, streams.seeds(0, "test", 3, 1), 3, RUNTIME, 10**9)
    assert alone.pictures is not None
    torch.testing.assert_close(alone.pictures[0], curves.pictures[3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in OPTIMIZEES if name not in ("art", "maze", *NEEDS)])
def test_other_problems_are_no_pictures(name):
    problem = problems(name, 2)
    assert problem.pictures(problem.init()) is None
    assert problem.sources() == {}


def test_the_picture_shows_every_image_in_its_place(tmp_path):
    colours = torch.eye(3, dtype=torch.float64)[:, None, :, None, None]  # a column a colour, one row
    sources = {"content": colours[0].expand(1, 3, 8, 8), "style": colours[1].expand(1, 3, 8, 12)}
    lost = torch.full((1, 3, 8, 8), math.nan)
    losses = {"adam": torch.tensor([0.5]), "sgd": torch.tensor([math.nan])}
    plots.pictures(tmp_path / "p.png", "art", sources, {"adam": colours[2].expand(1, 3, 8, 8), "sgd": lost}, losses)
    with Image.open(tmp_path / "p.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    middles = []
    for colour in np.eye(3, dtype=np.uint8) * 255:
        rows, columns = np.nonzero((pixels == colour).all(2))
        assert len(rows) > 1000
        middles.append(columns.mean())
    assert middles == sorted(middles)


# Whole runs, and what cannot be


@pytest.mark.parametrize("fails", [True, False])
def test_missing_weights_are_downloaded_where_they_may_be(tmp_path, monkeypatch, fails):
    asked = []

    def download(url, file, prefix, *, progress):
        asked.append((url, prefix))
        if fails:
            raise OSError("the network is down")
        Path(file).write_bytes(Path(art_files()["weights"]).read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    kind, there = optimizee("art", weights=None), replace(RUNTIME, data_root=tmp_path, download=True)
    if fails:
        with pytest.raises(DataError, match=r"could not be downloaded \(the network is down\): download https"):
            kind.sample(SEEDS, there)
        return
    problem = kind.sample(SEEDS, there)
    assert torch.equal(problem.loss(problem.init(), 0), problems("art", 3).loss(problems("art", 3).init(), 0))
    single = kind.sample(SEEDS, replace(there, dtype=torch.float32, download=False))  # it stays there
    for own in (single, problem):  # of one optimizee in two precisions, each has a network of its own
        assert own.loss(own.init(), 0).dtype == own.init()["image"].dtype
    ((url, prefix),) = asked
    assert url == f"https://download.pytorch.org/models/squeezenet1_1-{prefix}.pth"
    assert (tmp_path / "hub" / "checkpoints" / f"squeezenet1_1-{prefix}.pth").is_file()


def test_too_small_an_image_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match=r"optimizee\.size is 8, which is too small for layer 6 of squeezenet1_1"):
        optimizee("art", size=8, style_layers=[6], content="nowhere").layout()


@needs_neural_art
def test_adam_paints_with_the_real_weights():
    pictures = {"content": "neural_art/content", "style": "neural_art/style/starry_night_van_gogh_1889.jpg"}
    kind = optimizee("art", weights=CAFFE, size=32, content_layers=None, style_layers=None, **pictures)
    adam = replace(any_optimizer("adam", kind.layout()), lr=0.05)
    curves = run(adam, kind, streams.seeds(0, "test", 0, 2), 40, replace(RUNTIME, dtype=torch.float32), 10**9)
    assert (curves.finals < 0.4 * curves.losses[0]).all()
    assert (curves.metrics["content"] < 0.9).all()


# What cannot be

TINY = ["optimizee=art", *given("art"), "optimizee.size=16"]
TINY += ["optimizee.content_layers=[3]", "optimizee.style_layers=[1,4]"]
EMPTY = {"nowhere": None, "empty": (), "words": ("readme.txt",), "broken": ("a.png", "b.png")}
WITHOUT_DATA = [
    (["optimizee.content=nowhere"], ["optimizee.content is 'nowhere'", "folder of images"]),
    (["optimizee.content=empty"], ["holds no images", "PNG or JPEG"]),
    (["optimizee.content=words"], ["words holds no images", "PNG or JPEG"]),
    (["optimizee.content=broken"], ["a.png cannot be read as an image"]),
    (["optimizee.content=single"], ["optimizee.part=train is empty", "optimizee.part=all"]),
    (["optimizee.style=nowhere.png"], ["optimizee.style is 'nowhere.png'", "an image"]),
    (["optimizee.style=words/readme.txt"], ["readme.txt cannot be read as an image"]),
    (["optimizee.weights=nowhere.pth"], ["there is no nowhere.pth", "hub/checkpoints", "optimizee.weights=null"]),
    (["optimizee.weights=words/readme.txt"], ["optimizee.weights", "readme.txt cannot be read"]),
    (["optimizee.weights=other.pth"], ["other.pth has no features.0.weight of the shape [64, 3, 3, 3]"]),
    (["optimizee.network=vgg16", "optimizee.size=64"], ["has no features.2.weight", "vgg16"]),
    (
        ["optimizee.weights=null", "data.download=false"],
        ["there is no squeezenet1_1-", "data.download=true", "https://", "optimizee.weights=FILE"],
    ),
]
BAD = [
    (["optimizee.content="], ["optimizee.content", "a path"]),
    (["optimizee.network=vgg11"], ["optimizee.network", "vgg16, vgg19"]),
    (["optimizee.style_layers=[13]"], ["optimizee.style_layers is [13]", "0 to 12"]),
    (["optimizee.content_layers=[]"], ["optimizee.content_layers is []", "one or more"]),
    (["optimizee.content_layers=[-1]"], ["optimizee.content_layers[0] is -1", "≥ 0"]),
    (["optimizee.size=8", "optimizee.style_layers=[6]"], ["optimizee.size is 8", "layer 6"]),
    (["optimizee.size=1"], ["optimizee.size is 1", "≥ 2"]),
    (["optimizee.part=validation"], ["optimizee.part", "train, test, all"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD + WITHOUT_DATA, ids=lambda value: " ".join(value))
def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, files in EMPTY.items():
        for file in files or ():
            Path(name).mkdir(exist_ok=True)
            Path(name, file).write_text("no image")
    Path("empty").mkdir()
    picture(Path("single"), "a.png", COLOURED)
    torch.save({"features.0.weight": torch.zeros(2)}, "other.pth")
    with pytest.raises(DataError if (arguments, words) in WITHOUT_DATA else ConfigError) as caught:
        built(*TINY, f"data.root={tmp_path / 'data'}", *arguments)
    assert [word for word in words if word not in str(caught.value)] == []
