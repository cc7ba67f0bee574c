"""Whole runs on neural art."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from problems import art_files, given
from running import EVAL, SMALL, assert_one_sentence, evaluate, read_json, train

GIVEN = given("art")


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


@pytest.mark.parametrize("key", ["content", "style"])
def test_what_must_be_given_is_said(tmp_path: Path, key: str) -> None:
    arguments = [argument for argument in GIVEN if f".{key}=" not in argument]
    ended = train(tmp_path / "run", "experiment=paper_art", *arguments)
    assert_one_sentence(ended, f"optimizee.{key} is missing", f"optimizee.{key}=")


def test_data_that_is_missing_ends_with_a_code_of_its_own(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *TINY, "evaluate=false", "optimizee.content=nowhere")
    assert_one_sentence(ended, "optimizee.content is 'nowhere'", code=3)
