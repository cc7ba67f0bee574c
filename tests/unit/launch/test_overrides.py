"""The command line before Hydra reads it: what is read, refused, quoted and rewritten, against Hydra's own parser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from l2l_runner.errors import CheckpointError, ConfigError, StorageError
from l2l_runner.fields import plain
from l2l_runner.launch.hydra import under_torchrun
from l2l_runner.launch.overrides import (
    allow_new_keys,
    check_choices,
    check_torchrun,
    choices,
    is_sweep,
    keep_trained_optimizee,
    literal,
    overrides_of,
    prepend,
    quote_paths,
    quoted,
    resume_run,
    unknown_choice,
    unquoted,
)
from l2l_runner.runs import checkpoint
from problems import OPTIMIZEE_FILES

PARSER = OverridesParser.create()

# Reading


def test_overrides_are_read_without_flags_and_signs():
    arguments = ["-m", "a=1", "+b.c=x=y", "++d=", "~e", "--config-dir=f"]
    assert overrides_of(arguments) == {"a": "1", "b.c": "x=y", "d": ""}
    assert is_sweep(arguments)
    assert is_sweep(["a=1", "--multirun"])
    assert not is_sweep(["a=-m", "m"])


def test_what_is_prepended_comes_after_the_flags_and_before_the_users_own():
    assert prepend(["x=1"], ["-m", "--cfg", "job", "a=2", "~b"]) == ["-m", "--cfg", "job", "x=1", "a=2", "~b"]
    assert prepend(["x=1"], ["~b", "a=2"]) == ["x=1", "~b", "a=2"]
    assert prepend(["x=1"], ["-m"]) == ["-m", "x=1"]


def test_choices_are_the_files_of_a_group():
    assert choices("optimizee") == sorted(OPTIMIZEE_FILES)
    assert choices("none_such") == []


# Values


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=1))
def test_a_quoted_value_is_what_hydra_reads(value):
    assert PARSER.parse_override(f"key={quoted(value)}").value() == value


@given(st.text("ab0\\'\"/=,. ~", min_size=1).filter(lambda text: text[0] not in "'\""))
def test_quotes_are_taken_away_again(value):
    assert unquoted(quoted(value)) == value
    assert unquoted(value) == value


words = st.text("abcdefghij_", min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(-1e6, 1e6) | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3))


@given(values)
def test_a_literal_is_what_hydra_reads(value: Any) -> None:
    assert plain(PARSER.parse_override(f"key={literal(value)}").value()) == value


@pytest.mark.parametrize("key", ["init", "others.mine", "folder", "keep", "against", "art.content", "optimizee.style"])
def test_paths_need_no_quotes(key: str) -> None:
    parser = OverridesParser.create()
    for odd in " =,'\"[](){}<>~:;!?&|#$%@^+*ü你":
        path = f"/tmp/a{odd}b"
        (argument,) = quote_paths([f"{key}={path}"])
        assert parser.parse_override(argument).value() == path
    for kept in ("'/tmp/a=b'", "/tmp/a\\,b", "/tmp/a", ""):
        assert quote_paths([f"{key}={kept}"]) == [f"{key}={kept}"]
    assert parser.parse_override(*quote_paths([f"{key}=~/a"])).value() == "~/a"
    for swept in ("a,b", "choice(a,b)", "[a,b],c", "'a=b',c", "a\\(1\\),b"):
        assert quote_paths(["-m", f"{key}={swept}"]) == ["-m", f"{key}={swept}"]


def test_keys_that_the_user_names_may_be_new():
    arguments = [
        "optimizee.model.depth=3",
        "others.mine=run",
        "optimizer.groups.a.patterns=[b]",
        "optimizee.dim=2",
        "~a",
    ]
    assert allow_new_keys(arguments) == [*(f"++{argument}" for argument in arguments[:3]), *arguments[3:]]


# Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizee=quadratc"], "Unknown choice optimizee=quadratc: expected one of art, "),
        (["-m", "optimizer=adam,sdg"], "Unknown choice optimizer=sdg:"),
        (["sweep=joblib"], "use it with -m"),
    ],
)
def test_choices_that_there_are_not_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_choices(arguments)


def test_a_plugin_that_is_not_installed_is_named_with_its_extra():
    assert "pip install 'l2l_runner[sweep-ray]'" in unknown_choice("hydra/launcher", "ray", ["basic"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimizee=quadratic", "optimizer=adam", "meta.lr=1"],
        ["-m", "optimizee=quadratic, digits", "sweep=joblib"],
        ["optimizee='quadratic'"],
        ["optimizee=mine", "--config-dir=conf"],
    ],
)
def test_choices_that_there_are_or_may_be_pass(arguments):
    check_choices(arguments)


def test_torchrun_is_refused_where_it_makes_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torchrun("train", ["seed=1"])
    for name, arguments in (("eval", []), ("train", ["-m", "seed=1,2"]), ("train", ["hydra.mode=MULTIRUN"])):
        with pytest.raises(ConfigError, match="python -m"):
            check_torchrun(name, arguments)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not under_torchrun()  # some other system's, which says nothing of where to meet
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    check_torchrun("train", ["resume=run"])
    with pytest.raises(ConfigError, match="--max-restarts"):
        check_torchrun("train", ["seed=1"])


# Rewriting


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run leaves of its command line."""
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".run").touch()
    (folder / ".hydra" / "overrides.yaml").write_text("- logger=mlflow\n- logger.store=a\n- seed=3\n- sweep=joblib\n")
    return folder


def test_a_run_is_resumed_with_its_own_overrides_first(run: Path) -> None:
    here = [f"resume='{run}'", f"hydra.run.dir='{run}'", "hydra.output_subdir=.resuming"]
    own = ["logger=mlflow", "logger.store=a", "seed=3"]
    assert resume_run([f"resume={run}", "meta.steps=9"]) == [*own, "meta.steps=9", *here]
    assert resume_run([f"resume='{run}/checkpoints/last.pt'"]) == [*own, *here]
    assert resume_run([f"resume={run}", "logger=none"]) == ["seed=3", "logger=none", *here]  # another has other keys
    for arguments in ([], ["resume=null", "seed=1"]):
        assert resume_run(arguments) == arguments


def test_what_cannot_be_resumed_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="resume is empty"):
        resume_run(["resume="])
    for more in ("-m", "hydra.run.dir=elsewhere"):
        with pytest.raises(ConfigError, match=r"without -m and hydra\.run\.dir"):
            resume_run([more, f"resume={run}"])
    with pytest.raises(StorageError, match="is not a run"):
        resume_run([f"resume={tmp_path}"])


def test_single_keys_of_a_trained_optimizee_change_it() -> None:
    trained = checkpoint.load(Path("quadratic"))["config"]["optimizee"]
    first, *rest = keep_trained_optimizee(["checkpoint=quadratic", "optimizee.dim=3"])
    assert rest == ["checkpoint=quadratic", "optimizee.dim=3"]
    assert plain(PARSER.parse_override(first).value()) == trained
    for arguments in (["checkpoint=quadratic"], ["checkpoint=quadratic", "optimizee=digits", "optimizee.pool=1"]):
        assert keep_trained_optimizee(arguments) == arguments
    with pytest.raises(ConfigError, match="checkpoint is empty"):
        keep_trained_optimizee(["checkpoint=", "optimizee.dim=3"])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        keep_trained_optimizee(["checkpoint=nowhere", "optimizee.dim=3"])
