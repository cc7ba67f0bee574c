"""What is taken from the record of a run that is resumed, and how values are written for Hydra."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from l2l_runner.errors import ConfigError, StorageError
from l2l_runner.launch.overrides import literal, overrides_of, prepend, quote_paths, resume_run, unquoted


def parse(item: str) -> Any:
    """The value of an override, as Hydra understands it."""
    (override,) = OverridesParser.create().parse_overrides([item])
    value = override.value()
    return value if not hasattr(value, "text") else value.text


def recorded(folder: Path, *items: str) -> Path:
    """The folder of a run that was started with these overrides."""
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(items)), folder / ".hydra" / "overrides.yaml")
    (folder / ".run").touch()
    return folder


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abz\\ ='\"\\(){}[]:,é", max_size=8),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), children, max_size=2)
    ),
    max_leaves=5,
)


@given(PLAIN)
@settings(max_examples=100, deadline=None)
def test_a_literal_is_read_by_hydra_as_the_same_value(value: Any) -> None:
    assert OmegaConf.to_container(OmegaConf.create({"key": parse(f"key={literal(value)}")})) == {"key": value}


def test_a_literal_is_never_resolved() -> None:
    with pytest.raises(ConfigError, match="which is not resolved"):
        literal({"root": "${oc.env:HOME}"})


def test_keys_and_values() -> None:
    arguments = ["-m", "optimizer=adam", "+optimizer.lr=0.1,1", "~logger", "++a.b=c=d"]
    assert overrides_of(arguments) == {"optimizer": "adam", "optimizer.lr": "0.1,1", "a.b": "c=d"}


def test_overrides_are_inserted_before_the_users_own_and_after_flags() -> None:
    assert prepend(["a=1"], ["-m", "--config-dir=conf", "b=2"]) == ["-m", "--config-dir=conf", "a=1", "b=2"]
    assert prepend(["a=1"], ["--resolve"]) == ["--resolve", "a=1"]


@pytest.mark.parametrize("path", ["runs/a=b", "Läufe/1", "a (copy)/best.pt"])
def test_paths_are_quoted_where_hydras_grammar_wants_it(path: str) -> None:
    (argument,) = quote_paths([f"init={path}"])
    assert parse(argument) == path
    assert unquoted(argument.partition("=")[2]) == path
    assert quote_paths([argument]) == [argument]


def test_a_run_is_resumed_with_its_own_overrides_under_those_that_are_given(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "optimizee.dim=3", "meta.steps=6", "logger=mlflow", "logger.store=s", "sweep=ray")
    rewritten = resume_run([f"resume={run}", "meta.steps=8", "logger=none"])
    assert rewritten == [
        "optimizee.dim=3",
        "meta.steps=6",
        "meta.steps=8",
        "logger=none",
        f"resume='{run}'",
        f"hydra.run.dir='{run}'",
        "hydra.output_subdir=.resuming",
    ]


@pytest.mark.parametrize(
    "item",
    [
        "hydra.callbacks.x={_target_:os.system}",
        "+hydra.job.env_set.PATH=/tmp",
        "hydra/launcher=mine",
        "++hydra.run.dir=/elsewhere",
        "~hydra.callbacks.guard",
        "--config-dir=/tmp",
    ],
)
def test_hydras_own_settings_are_not_taken_from_a_record(tmp_path: Path, item: str) -> None:
    rewritten = resume_run([f"resume={recorded(tmp_path / 'run', item, 'seed=3')}"])
    assert rewritten[0] == "seed=3"
    assert len(rewritten) == 4


@pytest.mark.parametrize(
    "item",
    [
        "data.root=${oc.env:TOKEN}",
        "seed=${oc.decode:1}",
        "optimizee.model={_target_:os.system}",
        "a._target_=os.system",
    ],
)
def test_what_would_be_resolved_or_called_is_refused_unless_it_is_given_again(tmp_path: Path, item: str) -> None:
    run, key = recorded(tmp_path / "run", item), item.partition("=")[0]
    with pytest.raises(StorageError, match=f"give {key}=VALUE again"):
        resume_run([f"resume={run}"])
    assert resume_run([f"resume={run}", f"{key}=1"])[0] == f"{key}=1"  # and the recorded one is gone


def test_a_model_of_the_users_is_taken(tmp_path: Path) -> None:
    run = recorded(tmp_path / "run", "++optimizee.model._target_=my_file.Net")
    assert resume_run([f"resume={run}"])[0] == "++optimizee.model._target_=my_file.Net"


@pytest.mark.parametrize("content", ["{a: 1}", "- [1]", ": no yaml: {", "\x00"])
def test_a_damaged_record_is_refused(tmp_path: Path, content: str) -> None:
    run = recorded(tmp_path / "run")
    (run / ".hydra" / "overrides.yaml").write_text(content)
    with pytest.raises(StorageError, match=r"overrides\.yaml"):
        resume_run([f"resume={run}"])
