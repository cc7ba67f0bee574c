"""Test the documentation: code runs, commands compose, links work, spelling is right, settings are described."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import l2l_runner
from documentation import DOCS, HOW_TO_COMMANDS, HOW_TOS, PAGES, TEXTS, commands_of, files_of, needs_site, written
from l2l_runner import schema, streams
from l2l_runner.launch.overrides import allow_new_keys, conf_folder
from l2l_runner.meta import TBPTT
from l2l_runner.meta.base import loss_weights
from l2l_runner.pages.reproduction.settings import parse_reproduce
from l2l_runner.runs.checkpoint import load
from l2l_runner.weights import pretrained
from problems import RUNTIME, lstm, problems
from running import ROOT, has_plugin

pytestmark = pytest.mark.usefixtures("sketches", "registries")

PARSERS = {"train": schema.parse_train, "eval": schema.parse_eval, "reproduce": parse_reproduce}

needs_codespell = pytest.mark.skipif(
    find_spec("codespell_lib") is None, reason="spelling is checked by codespell: pip install -e '.[docs]'"
)


@pytest.mark.parametrize("page", HOW_TOS)
def test_each_how_to_takes_less_than_40_lines(page: str) -> None:
    scripts = {name: text for name, text in files_of(page).items() if name.endswith(".py")}
    assert scripts
    for name, text in scripts.items():
        assert len([line for line in text.splitlines() if line.strip()]) < 40, name


def test_rastrigins_minimum_is_known(tmp_path: Path) -> None:
    namespace = runpy.run_path(str(written("docs/howto/optimizee.md", tmp_path) / "rastrigin.py"))
    made = namespace["Rastrigin"](name="rastrigin", dim=3, batch=1, validation_problems=1, test_problems=2)
    problem = made.sample(streams.seeds(0, "train", 0, 4), RUNTIME)
    assert torch.equal(problem.loss({"theta": problem.minimum}, 0), torch.zeros(4, dtype=torch.float64))
    assert (problem.loss(problem.init(), 0) > 0).all()


def test_the_learned_momentum_replays_what_autograd_finds(tmp_path: Path) -> None:
    namespace = runpy.run_path(str(written("docs/howto/optimizer.md", tmp_path) / "momentum.py"))
    optimizer = namespace["LearnedMomentum"](0.02).double()
    problem = problems("quadratic", 3)
    found = [
        [estimate.grads for estimate in TBPTT(length=4, steps=8, engine=engine).estimates(optimizer, problem)]
        for engine in ("replay", "graph")
    ]
    torch.testing.assert_close(*found)


def test_evolution_finds_the_slope_along_its_perturbation(tmp_path: Path) -> None:
    namespace = runpy.run_path(str(written("docs/howto/estimator.md", tmp_path) / "evolution.py"))
    optimizer, problem, steps, sigma = lstm(), problems("quadratic", 3), 5, 1e-4
    weights = loss_weights("linear", steps).double()
    (mine,) = namespace["Evolution"](weights=weights, sigma=sigma).estimates(optimizer, problem)
    exact = TBPTT(length=steps, steps=steps, weights="linear", engine="graph", second_order=True)
    (theirs,) = exact.estimates(optimizer, problem)
    grads, true = (torch.cat([grad.flatten() for grad in one.grads]) for one in (mine, theirs))
    noise = sigma * streams.normal(problem.seeds[:1], len(grads), "evolution")[0]
    torch.testing.assert_close(grads, noise * (noise @ true) / sigma**2, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mine.meta_loss, theirs.meta_loss, rtol=1e-4, atol=0)


def test_the_nouns_work_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(written("docs/python.md", tmp_path) / "nouns.py"))
    loss = re.fullmatch(r"mean loss (\d\.\d{3}) after 100 steps\n", capsys.readouterr().out)
    assert loss is not None
    assert float(loss[1]) < 1


def pretrained_config(name: str) -> dict[str, Any]:
    return load(pretrained()[name].path)["config"]


COMMANDS = sorted(
    {tuple(command) for page in [*PAGES, *TEXTS] for command in commands_of(page)}
    - {tuple(command) for _, command in HOW_TO_COMMANDS}
)


def _first(word: str) -> str:
    """Replace the values of a sweep by the first of them."""
    key, _, values = word.partition("=")
    return f"{key}={re.split(',', re.sub(r'tag.log,|interval.', '', values))[0]}"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_shown_is_one(command: tuple[str, ...]) -> None:
    program, *words = command
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    if program == "torchrun":
        program, words = "python", words[words.index("-m") :]
    assert (program, words[0]) == ("python", "-m")
    package, name = words[1].split(".")
    if package == "l2l_runner" and name in PARSERS:
        overrides = allow_new_keys([word for word in words[2:] if word != "-m"])
        for choice in [word.split("=")[1] for word in overrides if word.startswith(("sweep=", "hydra/launcher="))]:
            if not has_plugin(choice):
                pytest.skip(f"Hydra's plugin for {choice} is not installed")
        sweep = [word for word in overrides if "," in word and "[" not in word]
        once = [_first(word) if word in sweep else word for word in overrides]
        if name == "eval" and not any(word.startswith("optimizee=") for word in once):
            once = [word for word in once if not word.startswith("optimizee.")]  # keys of the checkpoint's optimizee
        assert bool(sweep) == ("-m" in words[2:])
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            composed: Any = OmegaConf.to_container(compose(name, once), resolve=True)
        needed = schema.LOGGERS[composed["logger"]["name"]].needs if "logger" in composed else ()
        if not all(find_spec(package) for package in needed):
            pytest.skip(f"not installed: {', '.join(needed)}")
        if name == "eval" and "optimizee" not in composed:  # the checkpoint's; a run's folder is not there to be read
            known = composed["checkpoint"] if composed["checkpoint"] in pretrained() else "quadratic"
            composed["optimizee"] = pretrained_config(known)["optimizee"]
        PARSERS[name](composed)
    else:
        assert find_spec(words[1]) is not None


@pytest.mark.parametrize("page", [*PAGES, *TEXTS])
def test_links_between_files_of_the_repository_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s#]+)", text):
        assert "://" in link or ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert text.count("![") == 1


def test_the_workflow_the_hooks_and_the_citation_are_what_they_claim_to_be() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    made = [step["run"].split()[1] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert set(made) <= targets
    assert set(made) == {"test", "wheel"}
    oldest, *_ = jobs["test"]["strategy"]["matrix"]["python"]
    assert f'requires-python = ">={oldest}"' in (ROOT / "pyproject.toml").read_text()
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook for repo in repos for hook in repo["hooks"]]
    assert {"ruff-check", "ruff-format", "codespell", "end-of-file-fixer"} <= {hook["id"] for hook in hooks}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == l2l_runner.__version__
    for page in [*PAGES, *TEXTS]:
        assert set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text())) <= targets, page


@needs_site
def test_the_reference_names_every_choice_and_key() -> None:
    reference = runpy.run_path(str(DOCS / "reference.py"))
    text = reference["page"]()
    files = list((ROOT / "conf").glob("*/*.yaml"))
    assert len(files) > 40
    for path in files:
        heading = f"### {path.parent.name}={path.stem}\n"
        assert text.count(heading) == 1
        own = re.split(r"^##+ ", text.split(heading)[1], flags=re.MULTILINE)[0]
        if path.parent.name in reference["GROUPS"]:
            keys = [str(key) for key in OmegaConf.load(path) if key not in ("defaults", "tune")]
            assert [key for key in keys if f"| `{key}` |" not in own and key != "name"] == []
            assert not re.search(r"\| +\|", own), "a key without words"
    row = next(line for line in text.splitlines() if line.startswith("| `meta_batch` |"))
    assert row == "| `meta_batch` | `${optimizee.batch}` | integer ≥ 1 | problems of a meta-step, computed together. |"
    assert "| `evaluation` | from its group | group |" in text
    assert "| `proportion` | `0.99` | number ≥ 0.5 and < 1 |" in text


@needs_codespell
def test_words_are_spelt() -> None:
    paths = [*TEXTS, "CITATION.cff", ".github", "Makefile", "docs", "conf", "src", "examples", "benchmarks"]
    command = [sys.executable, "-m", "codespell_lib", *paths]
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
