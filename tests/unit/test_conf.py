"""Every file of conf/ is parsed, and settings become plain values again."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from l2l_runner.fields import (
    parse,
    parse_one_of,
    plain,
)
from l2l_runner.meta import METAS
from l2l_runner.optimizees import OPTIMIZEES
from l2l_runner.optimizers import RULES
from l2l_runner.pages.reproduction.settings import Budget
from l2l_runner.schema import LOGGERS, EvalConfig, TrainConfig
from problems import CONF, art_files, yaml_group
from problems import given as given_for

# Every file of conf/

GROUPS: dict[str, Any] = {"optimizee": OPTIMIZEES, "optimizer": RULES, "meta": METAS, "logger": LOGGERS}
"""Groups whose choices have a class each."""
FILES = {(group, stem): node for group in GROUPS for stem, node in yaml_group(group).items() if stem != "groups"}
WHOLE: list[tuple[str, type, list[str]]] = [
    ("train", TrainConfig, []),
    ("train", TrainConfig, ["optimizer=groups"]),
    ("eval", EvalConfig, ["checkpoint=best.pt", "optimizee=quadratic"]),
]
WHOLE += [("train", TrainConfig, [f"experiment={stem}", *given_for(stem)]) for stem in yaml_group("experiment")]


@pytest.mark.parametrize(("group", "stem"), list(FILES))
def test_settings_of_every_file_survive_a_round_trip(group, stem):
    values = {**FILES[group, stem], **(art_files() if stem == "art" else {})}
    settings = parse_one_of(GROUPS[group], values, group)
    assert type(settings) is GROUPS[group][values["name"]]
    assert plain(settings) == values
    assert parse_one_of(GROUPS[group], plain(settings), group) == settings


@pytest.mark.parametrize("stem", yaml_group("budget"))
def test_every_budget_survives_a_round_trip(stem):
    values = yaml_group("budget")[stem]
    assert plain(parse(Budget, values)) == values


@pytest.mark.parametrize(("command", "cls", "overrides"), WHOLE, ids=[" ".join([c, *o[:1]]) for c, _, o in WHOLE])
def test_whole_configurations_survive_a_round_trip(command, cls, overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_container(compose(command, overrides), resolve=True)
    config = parse(cls, composed)
    assert plain(config) == composed
    assert parse(cls, plain(config)) == config
