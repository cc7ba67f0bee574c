"""Test that the code of the how-tos runs whole and that the site builds cleanly."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from documentation import HOW_TO_COMMANDS, needs_site, written
from running import ROOT, call, read_json

pytestmark = pytest.mark.usefixtures("sketches", "registries")

FEWER = ["optimizee.batch=4", "optimizee.validation_problems=4", "optimizee.test_problems=4", "device.threads=1"]
CRUDE = ["evaluation.tune.per_decade=1", "evaluation.tune.refinements=0"]


@pytest.mark.parametrize(("page", "command"), HOW_TO_COMMANDS, ids=[" ".join(c[1:4]) for _, c in HOW_TO_COMMANDS])
def test_every_how_to_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, command: list[str]) -> None:
    python, script, *arguments = command
    assert python == "python"
    monkeypatch.chdir(written(page, tmp_path))
    run = tmp_path / "run"
    ended = call(lambda: runpy.run_path(script, run_name="__main__"), run, [*arguments, *FEWER, *CRUDE])
    assert ended.code == 0, ended.err
    assert read_json(run / "result.json")["status"] == "completed"
    name = Path(script).stem
    composed = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert name in (run / ".hydra" / "overrides.yaml").read_text()
    if "optimizer=lion" in arguments:
        assert not (run / "comparison.json").exists()
    else:
        compared = read_json(run / "comparison.json")
        assert {"sgd", "nag", "rms", "adam", composed.optimizer.name} <= set(compared["optimizers"])
        assert ("lion" in compared["optimizers"]) == (name == "lion")


def test_the_first_page_uses_a_pretrained_optimizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(written("docs/index.md", tmp_path) / "digits.py"))
    loss = re.fullmatch(r"loss (\d\.\d\d) after 100 steps\n", capsys.readouterr().out)
    assert loss is not None
    assert float(loss[1]) < 0.3


@needs_site
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "WARNING" not in ended.stdout + ended.stderr
    pages = list(tmp_path.rglob("*.html"))
    for page in pages:
        text = page.read_text()
        assert re.findall(r'<(?:script|img)[^>]* src="(?:https?:)?//', text) == [], page
        assert re.findall(r'<link[^>]* href="(?:https?:)?//(?![^>]*canonical)', text) == [], page
    shown = {name: (tmp_path / f"{name}.html").read_text() for name in ("performance", "configuration", "transforms")}
    assert "optimizee=quadratic" in shown["configuration"]
    assert "replay, C++ kernel" in shown["performance"]
    assert 'href="files/examples/learned_rates.py.html"' in shown["transforms"]
    api = (tmp_path / "api" / "learned_optimizer.html").read_text()
    assert "the update of a trained coordinatewise optimizer" in api
