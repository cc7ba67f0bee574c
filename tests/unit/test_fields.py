"""The typed configuration: what is accepted, and the sentence that answers what isn't."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_runner.errors import ConfigError
from l2l_runner.fields import (
    above,
    at_least,
    between,
    choice,
    did_you_mean,
    filled,
    named,
    one_of,
    parse,
    parse_one_of,
    path,
    plain,
    within,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    count: int = at_least(1)
    rate: float = above(0)


@dataclass(frozen=True, kw_only=True)
class Settings:
    name: str = choice("red", "green", "blue")
    free: str
    steps: int = at_least(0)
    rate: float = above(0)
    momentum: float = between(0, 1)
    plain: float
    enabled: bool
    widths: tuple[int, ...] = at_least(1)
    clip: float | None = above(0)
    label: str | None
    inner: Inner
    named: dict[str, Inner]


GOOD: dict[str, Any] = {
    "name": "red",
    "free": "anything",
    "steps": 3,
    "rate": 0.5,
    "momentum": 0.9,
    "plain": -1.5,
    "enabled": True,
    "widths": [20, 10],
    "clip": None,
    "label": None,
    "inner": {"count": 2, "rate": 0.1},
    "named": {"a": {"count": 1, "rate": 1.0}},
}


def refused(message, **changes):
    """Asserts that these changes are refused with a sentence that has this text in it."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(Settings, {**GOOD, **changes})


def test_good_values_become_typed_ones():
    settings = parse(Settings, GOOD)
    assert settings == Settings(
        **{**GOOD, "widths": (20, 10), "inner": Inner(count=2, rate=0.1), "named": {"a": Inner(count=1, rate=1.0)}}
    )


positive = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, count=st.integers(1, 2**70), rate=positive)


@given(
    st.builds(
        Settings,
        name=st.sampled_from(["red", "green", "blue"]),
        free=st.text(),
        steps=st.integers(0, 2**70),
        rate=positive,
        momentum=st.floats(0, 1, exclude_max=True),
        plain=st.floats(allow_nan=False, allow_infinity=False),
        enabled=st.booleans(),
        widths=st.lists(st.integers(1, 1000)).map(tuple),
        clip=st.none() | positive,
        label=st.none() | st.text(),
        inner=inners,
        named=st.dictionaries(st.text(), inners, max_size=3),
    )
)
@settings(deadline=None)
def test_settings_survive_a_round_trip_through_plain_values(settings):
    values = plain(settings)
    assert values["widths"] == list(settings.widths)  # as YAML has it
    assert parse(Settings, values) == settings


# Types


@pytest.mark.parametrize("value", [1.5, 2.0, "3", None, True, False, [1], math.nan, {}], ids=repr)
def test_what_is_no_integer_is_refused(value):
    refused(f"steps is {value!r}; expected an integer ≥ 0.", steps=value)


@pytest.mark.parametrize("value", ["0.1", None, True, False, [0.1], {}], ids=repr)
def test_what_is_no_number_is_refused(value):
    refused(f"plain is {value!r}; expected a number.", plain=value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "minus-inf", "too-large"]
)
def test_numbers_must_be_finite(value):
    for key in ("plain", "rate", "clip"):
        refused(f"{key} is {value!r}; expected a number", **{key: value})


@pytest.mark.parametrize("value", [0, 1, "true", None, 1.0], ids=repr)
def test_what_is_neither_true_nor_false_is_refused(value):
    refused(f"enabled is {value!r}; expected true or false.", enabled=value)


@pytest.mark.parametrize("value", [1, 1.5, True, None, ["red"]], ids=repr)
def test_what_is_no_word_is_refused(value):
    refused(f"free is {value!r}; expected a word.", free=value)


@given(st.integers(-(2**53), 2**53))
@settings(deadline=None)
def test_an_integer_will_do_for_a_number(value):
    number = parse(Settings, {**GOOD, "plain": value}).plain
    assert number == value
    assert type(number) is float


# Rules


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": -1}, "steps is -1; expected an integer ≥ 0."),
        ({"rate": 0.0}, "rate is 0.0; expected a number > 0."),
        ({"rate": -1}, "rate is -1; expected a number > 0."),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number ≥ 0 and < 1."),
        ({"momentum": -0.1}, "momentum is -0.1; expected a number ≥ 0 and < 1."),
        ({"clip": 0.0}, "clip is 0.0; expected a number > 0."),
        ({"name": "purple"}, "name is 'purple'; expected one of red, green, blue."),
        ({"name": 3}, "name is 3; expected one of red, green, blue."),
        ({"widths": [20, 0]}, "widths[1] is 0; expected an integer ≥ 1."),
        ({"inner": {"count": 0, "rate": 1.0}}, "inner.count is 0; expected an integer ≥ 1."),
        ({"named": {"b": {"count": 0, "rate": 1.0}}}, "named.b.count is 0; expected an integer ≥ 1."),
    ],
    ids=[
        "negative-integer",
        "zero-rate",
        "negative-rate",
        "momentum-of-one",
        "negative-momentum",
        "optional",
        "unknown-choice",
        "choice-that-is-no-word",
        "in-a-list",
        "in-a-group",
        "in-a-named-group",
    ],
)
def test_a_broken_rule_names_key_value_and_what_was_expected(changes, sentence):
    refused(sentence, **changes)


def test_an_empty_word_is_no_path():
    @dataclass(frozen=True)
    class Place:
        folder: str | None = path()

    assert parse(Place, {"folder": "a/b c"}).folder == "a/b c"
    assert parse(Place, {"folder": None}).folder is None
    with pytest.raises(ConfigError, match=re.escape("folder is ''; expected a path.")):
        parse(Place, {"folder": ""})


def test_a_range_may_hold_both_its_ends():
    @dataclass(frozen=True)
    class Share:
        share: float = within(0, 1)

    assert [parse(Share, {"share": value}).share for value in (0, 0.5, 1)] == [0, 0.5, 1]
    for value in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=re.escape(f"share is {value}; expected a number ≥ 0 and ≤ 1.")):
            parse(Share, {"share": value})


@pytest.mark.parametrize("changes", [{"steps": 0}, {"momentum": 0}, {"rate": 5e-324}, {"widths": [1]}], ids=str)
def test_a_rule_holds_at_its_edge(changes):
    parse(Settings, {**GOOD, **changes})


# Lists, options and groups


@pytest.mark.parametrize("value", [20, "20", None, {"0": 20}], ids=repr)
def test_what_is_no_list_is_refused(value):
    refused(f"widths is {value!r}; expected a list, such as [20,20].", widths=value)


@pytest.mark.parametrize("value", [1.5, True, "a", None, [1]], ids=repr)
def test_what_does_not_belong_into_a_list_is_refused(value):
    refused(f"widths[1] is {value!r}; expected an integer ≥ 1.", widths=[3, value])


def test_lists_may_be_empty_and_tuples_are_lists():
    assert parse(Settings, {**GOOD, "widths": []}).widths == ()
    assert parse(Settings, {**GOOD, "widths": (1, 2)}).widths == (1, 2)


def test_none_is_for_optional_keys_alone():
    assert parse(Settings, GOOD).clip is None
    assert parse(Settings, {**GOOD, "clip": 2}).clip == 2.0
    assert parse(Settings, {**GOOD, "label": "x"}).label == "x"
    refused("rate is None; expected a number > 0.", rate=None)
    refused("clip is 'none'; expected a number > 0.", clip="none")


@pytest.mark.parametrize("key", ["inner", "named"])
@pytest.mark.parametrize("value", [3, "a", None, [1]], ids=repr)
def test_what_is_no_group_is_refused(key, value):
    refused(f"{key} is {value!r}; expected a group of keys.", **{key: value})


def test_a_whole_configuration_that_is_no_group_is_refused():
    with pytest.raises(ConfigError, match=re.escape("The configuration is [1]; expected a group of keys.")):
        parse(Settings, [1])


# Keys


@pytest.mark.parametrize("key", GOOD)
def test_every_key_must_be_given(key):
    # Defaults are written in YAML, in one place only.
    with pytest.raises(ConfigError, match=f"^{key} is missing: give it a value.$"):
        parse(Settings, {name: value for name, value in GOOD.items() if name != key})


def test_a_missing_key_in_a_group_is_named_with_its_path():
    refused("inner.rate is missing: give it a value.", inner={"count": 1})
    refused("named.a.count is missing: give it a value.", named={"a": {"rate": 1.0}})


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        parse(Settings, {**GOOD, "momentun": 0.9})
    sentence = str(caught.value)
    assert sentence.startswith("Unknown key momentun: the configuration has the keys name, free,")
    assert sentence.endswith("Did you mean momentum?")


def test_an_unknown_key_in_a_group_is_named_with_its_path():
    refused("Unknown key inner.cuont: inner has the keys count, rate. Did you mean count?", inner={"cuont": 1})


def test_a_key_that_resembles_nothing_gets_no_guess():
    with pytest.raises(ConfigError) as caught:
        parse(Settings, {**GOOD, "xyz": 1})
    assert "Unknown key xyz" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


def test_an_unknown_key_that_is_no_word_is_refused_too():
    with pytest.raises(ConfigError, match="Unknown key 3"):
        parse(Settings, dict([*GOOD.items(), (3, 1)]))


def test_a_path_is_put_before_every_key():
    with pytest.raises(ConfigError, match=re.escape("optimizer.rate is -1; expected a number > 0.")):
        parse(Inner, {"count": 1, "rate": -1}, "optimizer")
    with pytest.raises(ConfigError, match=re.escape("optimizer is 3; expected a group of keys.")):
        parse(Inner, 3, "optimizer")


@pytest.mark.parametrize(
    ("word", "said"), [("adma", " Did you mean adam?"), ("sgdd", " Did you mean sgd?"), ("zebra", ""), ("", "")]
)
def test_did_you_mean(word, said):
    assert did_you_mean(word, ["sgd", "adam", "momentum"]) == said


# Settings whose class their name chooses


@dataclass(frozen=True, kw_only=True)
class Shape:
    name: str


@dataclass(frozen=True, kw_only=True)
class Circle(Shape):
    name: str = named("circle", "disc")
    radius: float = above(0)


@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    name: str = named("square")
    side: float = above(0)


SHAPES: dict[str, type[Shape]] = {"circle": Circle, "disc": Circle, "square": Square}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    shape: Shape = one_of(SHAPES)
    others: dict[str, Shape] = one_of(SHAPES)


SQUARE = {"name": "square", "side": 1.5}


def test_a_name_chooses_the_class_of_a_field_and_of_each_value_of_a_dictionary():
    drawing = parse(Drawing, {"shape": {"name": "disc", "radius": 2}, "others": {"a": SQUARE}})
    assert drawing == Drawing(shape=Circle(name="disc", radius=2.0), others={"a": Square(side=1.5)})
    assert parse_one_of(SHAPES, SQUARE, "shape") == Square(side=1.5)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({**SQUARE, "name": "sqare"}, "{}.name is 'sqare'; expected one of circle, disc, square. Did you mean square?"),
        ({"side": 1.0}, "{}.name is None; expected one of circle, disc, square."),
        ("square", "{}.name is None; expected one of circle, disc, square."),
        ({**SQUARE, "side": 0}, "{}.side is 0; expected a number > 0."),
        ({**SQUARE, "radius": 1}, "Unknown key {}.radius: {} has the keys name, side."),
        ({"name": "square"}, "{}.side is missing: give it a value."),
    ],
    ids=["unknown", "nameless", "no-group", "broken-rule", "key-of-another-class", "missing"],
)
def test_a_wrong_choice_or_value_is_named_with_its_path(values, sentence):
    wrong = {"shape": {"shape": values, "others": {}}, "others.a": {"shape": SQUARE, "others": {"a": values}}}
    for key, whole in wrong.items():
        with pytest.raises(ConfigError, match=re.escape(sentence.format(key, key))):
            parse(Drawing, whole)
    with pytest.raises(ConfigError, match=re.escape(sentence.format("there", "there"))):
        parse_one_of(SHAPES, values, "there")


def test_named_choices_that_are_no_group_are_refused():
    with pytest.raises(ConfigError, match=re.escape("others is 3; expected a group of keys.")):
        parse(Drawing, {"shape": SQUARE, "others": 3})


def test_a_table_may_be_filled_after_its_field_was_declared():
    table: dict[str, type[Any]] = {}

    @dataclass(frozen=True)
    class Late:
        shape: Shape = one_of(table)

    table["square"] = Square
    assert parse(Late, {"shape": SQUARE}).shape == Square(side=1.5)


def test_a_name_is_a_default_in_python_and_checked_in_a_configuration():
    assert Circle(radius=1.0).name == "circle"
    with pytest.raises(ConfigError, match=re.escape("name is 'square'; expected one of circle, disc.")):
        parse(Circle, {"name": "square", "radius": 1.0})


def test_a_word_must_not_be_empty_where_it_is_said_to_be_filled():
    @dataclass(frozen=True)
    class Label:
        label: str = filled()

    assert parse(Label, {"label": "x"}).label == "x"
    with pytest.raises(ConfigError, match=re.escape("label is ''; expected a word that isn't empty.")):
        parse(Label, {"label": ""})
