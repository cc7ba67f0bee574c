"""Whole runs on neural art."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from problems import art_files, given
from running import EVAL, SMALL, assert_one_sentence, evaluate, read_json, train

GIVEN = given("art")


def picture(folder: Path, name: str, image: Image.Image) -> dict[str, str]:
    """The setting that makes an image the only photograph, in its own size."""
    folder.mkdir(exist_ok=True)
    image.save(folder / name)
    return {"content": str(folder), "part": "all"}


# Photographs and starts

COLOURED = Image.new("RGB", (20, 20), (10, 200, 90))

# Whole runs, and what cannot be

TINY = ["optimizee=art", *GIVEN, "optimizee.size=16", "optimizee.content_layers=[3]", "optimizee.style_layers=[1,4]"]
TINY += [*SMALL, "meta.steps=2", "optimizer.hidden=4"]


@pytest.mark.draws
def test_art_from_end_to_end(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *TINY)
    assert ended.code == 0, ended.err
    assert str(tmp_path / "run" / "pictures.png") in ended.out
    changes = ["optimizee.size=20", "optimizee.part=test", f"optimizee.style={art_files()['content']}/0.png"]
    assert evaluate(tmp_path / "eval", f"checkpoint={tmp_path / 'run'}", *changes, *EVAL).code == 0
    for folder in ("run", "eval"):
        summary = read_json(tmp_path / folder / "comparison.json")["optimizers"]
        for entry in summary.values():
            assert set(entry["metrics"]) == {"content", "style", "tv"}
        with Image.open(tmp_path / folder / "pictures.png") as drawn:
            assert drawn.width > drawn.height > 500  # 4 problems × (content, style and 5 optimizers)


def test_there_is_no_picture_where_problems_are_none(reference: Path) -> None:
    assert not (reference / "pictures.png").exists()


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


@pytest.mark.usefixtures("sketches")
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
    ended = train(tmp_path / "run", *TINY, f"data.root={tmp_path / 'data'}", "evaluate=false", *arguments)
    assert_one_sentence(ended, *words, code=3 if (arguments, words) in WITHOUT_DATA else 1)


@pytest.mark.parametrize("key", ["content", "style"])
def test_what_must_be_given_is_said(tmp_path: Path, key: str) -> None:
    arguments = [argument for argument in GIVEN if f".{key}=" not in argument]
    ended = train(tmp_path / "run", "experiment=paper_art", *arguments)
    assert_one_sentence(ended, f"optimizee.{key} is missing", f"optimizee.{key}=")
