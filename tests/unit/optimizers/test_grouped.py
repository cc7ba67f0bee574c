"""Groups of parameters with an optimizer each: who has what, and the engines."""

from __future__ import annotations

import copy
import re
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from composing import refusal
from l2l_runner import LearnedOptimizer, streams
from l2l_runner.errors import ConfigError
from l2l_runner.evaluation.curves import run
from l2l_runner.kernels.cpp import unsupported
from l2l_runner.layout import Layout
from l2l_runner.meta import TBPTT
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import Grouped, Optimizer
from l2l_runner.unroll import start, unroll
from problems import (
    OPTIMIZER_FILES,
    RUNTIME,
    groups_node,
    lstm,
    optimizee,
    parse_optimizer,
    problems,
)

LSTM = {**OPTIMIZER_FILES["lstm"], "hidden": 3, "output_scale": 0.5}
OTHER = {**LSTM, "hidden": 2, "layers": 1, "preprocessing": "none"}
WHOLE = {**LSTM, "coordinatewise": False}
RNNPROP = {**OPTIMIZER_FILES["rnnprop"], "hidden": 3}
CURVATURE = {**OPTIMIZER_FILES["metacurvature"], "lr": 0.05}
SGD = {**OPTIMIZER_FILES["sgd"], "lr": 0.05, "weight_decay": 0.1}
ADAM = {**OPTIMIZER_FILES["adam"], "lr": 0.05}
MIXES = {
    "two-lstms": (LSTM, OTHER),
    "rnnprop-and-lstm": (RNNPROP, LSTM),
    "lstm-and-sgd": (LSTM, SGD),
    "adam-and-lstm": (ADAM, LSTM),
    "lstm-of-whole-problems": (LSTM, WHOLE),
    "lstm-and-curvature": (LSTM, CURVATURE),
    "three": (OTHER, SGD, LSTM),
}


def grouped(layout: Layout, *optimizers: dict[str, Any], seed: int = 0) -> Grouped:
    """The layout's tensors dealt out to these optimizers, in float64."""
    settings = parse_optimizer(groups_node(layout, *optimizers))
    return settings.build(layout, torch.Generator().manual_seed(seed)).double()


def four(**changes: Any) -> Problem:
    """Two problems of four tensors: 0.weight, 0.bias, 2.weight and 2.bias."""
    return problems("digits", 2, **{"hidden": [3], "pool": 2, **changes})


class Bowls(Problem):
    """Σ_i c_i (θ_i − 1)² of two tensors: cheap, and no two coordinates' parts of a meta-gradient cancel."""

    def __init__(self) -> None:
        self.seeds = streams.seeds(0, "train", 0, 2)
        self.layout = Layout({"a": (3,), "b": (2, 2)})
        self.steepness = streams.uniform(self.seeds, 7, "steepness")

    def init(self) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(2, *shape, dtype=torch.float64) for name, shape in self.layout.shapes.items()}

    def loss(self, params: dict[str, torch.Tensor], step: int) -> torch.Tensor:
        return (self.steepness * (self.layout.flatten(params) - 1).square()).sum(1)


def flat(grads: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([grad.flatten() for grad in grads])


# Columns


@st.composite
def layouts_and_names(draw: Any) -> tuple[Layout, list[str]]:
    shapes = draw(st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), min_size=1, max_size=6))
    layout = Layout({f"p{i}": shape for i, shape in enumerate(shapes)})
    return layout, draw(st.lists(st.sampled_from(list(layout.shapes)), min_size=1, unique=True))


@given(layouts_and_names())
@settings(deadline=None)
def test_columns_are_where_the_tensors_lie(case: tuple[Layout, list[str]]) -> None:
    layout, names = case
    rows = torch.randn(2, 3, layout.size)
    columns, part = layout.columns(names), layout.only(names)
    taken = columns.take(rows)
    for row, own in zip(rows, taken, strict=True):
        views = layout.views(row)
        assert torch.equal(own, part.flatten({name: views[name] for name in part.shapes}))
    runs = columns.runs
    assert all(one.stop < other.start for one, other in pairwise(runs))  # neighbours are one run
    back = torch.zeros_like(rows)
    columns.put(taken, back)
    rest = [name for name in layout.shapes if name not in names]
    assert torch.equal(columns.take(back), taken)
    assert not rest or not layout.columns(rest).take(back).any()


# Who has what


@st.composite
def layouts_and_patterns(draw: Any) -> tuple[Layout, dict[str, list[str]]]:
    word = st.text("ab.", min_size=1, max_size=3)
    names = draw(st.lists(word, min_size=1, max_size=5, unique=True))
    pattern = st.one_of(st.sampled_from(names), st.text("ab.*?", min_size=1, max_size=3))
    patterns = draw(st.lists(st.lists(pattern, max_size=2), min_size=1, max_size=3))
    return Layout(dict.fromkeys(names, (2,))), {f"g{i}": own for i, own in enumerate(patterns)}


@given(layouts_and_patterns())
@settings(deadline=None, max_examples=200)
def test_every_parameter_is_in_exactly_one_group_or_all_is_refused(case: tuple[Layout, dict[str, list[str]]]) -> None:
    layout, patterns = case
    node = {"name": "groups", "groups": {n: {"patterns": own, "optimizer": OTHER} for n, own in patterns.items()}}
    fitting = {
        name: [group for group, own in patterns.items() if any(fnmatchcase(name, pattern) for pattern in own)]
        for name in layout.shapes
    }
    idle = [p for own in patterns.values() for p in own if not any(fnmatchcase(n, p) for n in layout.shapes)]
    odd = [name for name, groups in fitting.items() if len(groups) != 1]
    odd += [*idle, *(group for group, own in patterns.items() if not own)]
    if odd:
        with pytest.raises(ConfigError, match="|".join(map(re.escape, odd))):
            parse_optimizer(node).build(layout, torch.Generator())
        return
    parts = parse_optimizer(node).build(layout, torch.Generator()).parts()
    assert len(parts) == len(patterns)
    coordinates = torch.arange(layout.size)
    assert torch.cat([part.columns.take(coordinates) for part in parts]).sort().values.equal(coordinates)
    views = layout.views(coordinates[None])
    for group, part in zip(patterns, parts, strict=True):
        own = [views[name][0] for name, groups in fitting.items() if groups == [group]]
        assert torch.equal(part.columns.take(coordinates), torch.cat(own))


BAD = {
    "in-none": ({"a": ["0.*"], "b": ["2.weight"]}, "the parameter 2.bias fits none of them"),
    "in-two": ({"a": ["*"], "b": ["*.bias"]}, "the parameter 0.bias fits a and b"),
    "pattern-fits-nothing": ({"a": ["*", "fc*"]}, "optimizer.groups.a.patterns has fc*, which fits none"),
    "group-fits-nothing": ({"a": ["*"], "b": []}, "optimizer.groups.b.patterns is empty"),
    "no-word": ({"a.b": ["*"]}, "a group 'a.b'; expected a name of letters"),
}


@pytest.mark.parametrize(("patterns", "words"), BAD.values(), ids=BAD)
def test_what_is_refused_is_named(patterns: dict[str, list[str]], words: str) -> None:
    node = {"name": "groups", "groups": {n: {"patterns": own, "optimizer": LSTM} for n, own in patterns.items()}}
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_optimizer(node).build(four().layout, torch.Generator())


def test_groups_without_anything_to_learn_are_refused() -> None:
    every = {"patterns": ["*"], "optimizer": SGD}
    for groups, words in [({"a": every}, "(in a)"), ({}, "(there is no group)"), ({"a": None}, "(there is no group)")]:
        with pytest.raises(ConfigError, match=re.escape(f"optimizer.groups has nothing to learn {words}")):
            parse_optimizer({"name": "groups", "groups": groups})
    nested = {"name": "groups", "groups": {"a": {"patterns": ["*"], "optimizer": LSTM}}}
    with pytest.raises(ConfigError, match=r"optimizer\.groups\.b\.optimizer is groups again"):
        parse_optimizer({"name": "groups", "groups": {"b": {"patterns": ["*"], "optimizer": nested}}})


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (3, "optimizer.groups is 3"),
        ({"a": 3}, "optimizer.groups.a is 3"),
        ({"a": {"patterns": ["*"]}}, "optimizer.groups.a.optimizer is missing"),
        ({"a": {"optimizer": LSTM}}, "optimizer.groups.a.patterns is missing"),
        ({"a": {"patterns": "*", "optimizer": LSTM}}, "optimizer.groups.a.patterns is '*'; expected a list"),
        ({"a": {"patterns": ["*"], "optimizer": None}}, "optimizer.groups.a.optimizer.name is None"),
        ({"a": {"patterns": ["*"], "optimizer": {**LSTM, "hidden": 0}}}, "optimizer.groups.a.optimizer.hidden is 0"),
        ({"a": {"patterns": ["*"], "optimizer": LSTM, "lr": 1}}, "Unknown key optimizer.groups.a.lr"),
    ],
)
def test_bad_groups_are_named(groups: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse_optimizer({"name": "groups", "groups": groups})


# What it computes


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_each_group_is_updated_as_if_there_were_no_others(mix: tuple[dict[str, Any], ...]) -> None:
    layout = four().layout
    optimizer = grouped(layout, *mix)
    generator = torch.Generator().manual_seed(0)
    rules: list[Optimizer] = []
    for i, node in enumerate(mix):  # each alone, built from the same numbers in turn
        names = list(layout.shapes)[i :: len(mix)]
        settings = parse_optimizer(node)
        learned = not isinstance(settings, Optimizer)
        rules.append(settings.build(layout.only(names), generator).double() if learned else settings)
    params = torch.randn(3, layout.size, dtype=torch.float64)
    state = optimizer.init(params)
    parts = [layout.columns(list(layout.shapes)[i :: len(mix)]) for i in range(len(mix))]
    states = [rule.init(columns.take(params)) for rule, columns in zip(rules, parts, strict=True)]
    for _ in range(3):
        grads = torch.randn_like(params)
        updates, state = optimizer.update(grads, state, params)
        for i, (rule, columns) in enumerate(zip(rules, parts, strict=True)):
            expected, states[i] = rule.update(columns.take(grads), states[i], columns.take(params))
            assert torch.equal(columns.take(updates), expected)
        params = params + updates.detach()


@pytest.mark.parametrize("settings", [{}, {"coordinates": 40}, {"chunk": 50}], ids=["all", "sampled", "in-chunks"])
@pytest.mark.parametrize("kernel", ["torch", "cpp"])
def test_one_group_is_the_optimizer_itself(settings: dict[str, Any], kernel: str) -> None:
    problem = four()
    optimizer, plain = grouped(problem.layout, LSTM), lstm(problem.layout.size)
    if kernel == "cpp" and unsupported(plain._network(), torch.device("cpu"), torch.float64) is not None:
        pytest.skip("there is no compiler")
    estimates = []
    for one in (optimizer, plain):
        one.use_kernel(kernel)
        estimates.append(list(TBPTT(length=3, steps=7, **settings).estimates(one, problem)))
    for mine, theirs in zip(*estimates, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.grads, theirs.grads, strict=True))
        assert torch.equal(mine.losses, theirs.losses)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_replay_is_graph(mix: tuple[dict[str, Any], ...]) -> None:
    problem = four()
    optimizer = grouped(problem.layout, *mix)
    replayed = list(TBPTT(length=3, steps=7, engine="replay").estimates(optimizer, problem))
    differentiated = list(TBPTT(length=3, steps=7, engine="graph").estimates(optimizer, problem))
    for one, other in zip(replayed, differentiated, strict=True):
        assert [grad.shape for grad in one.grads] == [parameter.shape for parameter in optimizer.parameters()]
        for mine, theirs in zip(one.grads, other.grads, strict=True):
            assert (mine - theirs).abs().max() <= 1e-11 * theirs.abs().max()
            assert mine.abs().max() > 0
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_replay_is_that_of_its_groups(mix: tuple[dict[str, Any], ...]) -> None:
    problem = four()
    optimizer = grouped(problem.layout, *mix)
    point = start(problem, optimizer)
    grads, cotangents = torch.randn(2, 4, *point.params.shape, dtype=torch.float64)
    if any(node["name"] in ("adam", "sgd") for node in mix):
        assert len(optimizer.parts()) == len(mix) - 1  # nothing is replayed of what learns nothing
    expected, state = torch.zeros((), dtype=torch.float64), point.state
    for step_grads, cotangent in zip(grads, cotangents, strict=True):
        updates, state = optimizer.update(step_grads, state, point.params)
        expected = expected + (updates * cotangent).sum()
    exact = flat(torch.autograd.grad(expected, list(optimizer.parameters())))
    torch.testing.assert_close(flat(optimizer.replay(grads, point.state, cotangents)), exact, rtol=1e-9, atol=1e-11)


def test_a_sample_is_one_of_each_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over a fine grid of offsets, the mean of the estimates is the gradient: for every group's own parameters.
    problem = Bowls()
    optimizer = grouped(problem.layout, LSTM, OTHER)
    (exact,) = TBPTT(length=3, steps=3).estimates(optimizer, problem)
    sampled, offsets = TBPTT(length=3, steps=3, coordinates=5), 100
    means = [torch.zeros_like(parameter) for parameter in optimizer.parameters()]
    for i in range(offsets):
        offset = torch.tensor([[(i + 0.5) / offsets]], dtype=torch.float64)
        monkeypatch.setattr(streams, "uniform", lambda *args, offset=offset, **kwargs: offset)
        (estimate,) = sampled.estimates(optimizer, problem)
        for mean, grad in zip(means, estimate.grads, strict=True):
            mean += grad / offsets
    for part in optimizer.parts():
        own = [i for i, p in enumerate(optimizer.parameters()) if any(p is q for q in part.rule.parameters())]
        theirs = flat(tuple(exact.grads[i] for i in own))
        assert (flat(tuple(means[i] for i in own)) - theirs).norm() < 0.01 * theirs.norm()


def test_second_derivatives_pass_through_groups() -> None:
    problem = four()
    optimizer = grouped(problem.layout, LSTM, SGD)
    tbptt = TBPTT(length=3, steps=3, second_order=True, engine="graph")
    (estimate,) = tbptt.estimates(optimizer, problem)
    direction = [torch.randn_like(parameter) for parameter in optimizer.parameters()]
    slope = torch.stack([(grad * own).sum() for grad, own in zip(estimate.grads, direction, strict=True)]).sum()
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(optimizer)
        with torch.no_grad():
            for parameter, own in zip(moved.parameters(), direction, strict=True):
                parameter += sign * 1e-5 * own
        ends.append(sum(point.loss.mean() for _, point in unroll(problem, moved, start(problem, moved), 3)))
    assert slope.item() == pytest.approx(((ends[0] - ends[1]) / 2e-5).item(), rel=1e-5)


# Other optimizees


def test_other_optimizees_fit_where_their_names_do() -> None:
    optimizer = grouped(optimizee("module").layout(), LSTM, OTHER)  # weights and biases, one after another
    wide = Layout({"conv.weight": (2, 3), "conv.bias": (2,), "linear.bias": (4,)})
    params = torch.randn(3, wide.size, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"cover \d+ coordinates, but the optimizee has 12"):
        optimizer.init(params)
    fitted = optimizer.fitted(wide)
    assert next(fitted.parameters()) is next(optimizer.parameters())
    updates, state = fitted.update(params, fitted.init(params), params)
    assert updates.shape == params.shape
    first = fitted.parts()[0]
    expected, _ = first.rule.update(params[:, :6], first.rule.init(params[:, :6]), params[:, :6])
    assert torch.equal(updates[:, :6], expected)
    assert len(state) == 4 + 2
    only = optimizer.fitted(wide.only(["conv.weight"]))  # the other group has nothing to do
    assert [part.rule for part in only.parts()] == [first.rule]
    assert len(only.init(params[:, :6])) == 4
    with pytest.raises(ConfigError, match=r"the parameter fc\.weight fits none of them"):
        optimizer.fitted(Layout({"fc.weight": (2,)}))
    with pytest.raises(ConfigError, match="not coordinatewise"):
        grouped(optimizee("module").layout(), LSTM, WHOLE).fitted(wide)


def test_an_evaluation_is_that_of_the_fitted_rule() -> None:
    small, large = optimizee("digits", hidden=[3]), optimizee("digits", hidden=[7])
    seeds = streams.seeds(0, "test", 0, 3)
    optimizer = grouped(small.layout(), LSTM, LSTM)
    theirs = grouped(large.layout(), LSTM, LSTM)
    curves = [run(one, large, seeds, 5, RUNTIME, 10**6) for one in (optimizer.fitted(large.layout()), theirs)]
    assert torch.equal(curves[0].losses, curves[1].losses)
    assert prod(curves[0].losses.shape) == 18


# In anybody's loop


@pytest.mark.parametrize("mix", [(LSTM, OTHER), (ADAM, RNNPROP), (SGD, LSTM)], ids=["lstms", "adam", "sgd"])
def test_the_drop_in_optimizer_takes_the_rule_of_each_name(mix: tuple[dict[str, Any], ...]) -> None:
    problem = four()
    problem = optimizee("digits", hidden=[3], pool=2).sample(problem.seeds[:1], RUNTIME)
    rule = grouped(problem.layout, *mix)
    expected = [point.loss.item() for _, point in unroll(problem, rule, start(problem, rule), 8)]
    params = {name: nn.Parameter(value) for name, value in problem.init().items()}
    optimizer = LearnedOptimizer(params.items(), rule)
    for step, after in enumerate(expected):
        optimizer.zero_grad()
        problem.loss(params, step).sum().backward()
        optimizer.step()
        assert problem.loss(params, step + 1).item() == pytest.approx(after, rel=1e-9)
        if step == 3:  # a state goes into another one, and the copy goes on alike
            other = LearnedOptimizer(params.items(), rule)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer = copy.deepcopy(other)
            params = dict(zip(params, optimizer.param_groups[0]["params"], strict=True))


def test_the_drop_in_optimizer_wants_names_that_fit() -> None:
    rule = grouped(four().layout, LSTM, OTHER)
    module = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"has groups of parameters, by their names: .*named_parameters\(\)"):
        LearnedOptimizer(module.parameters(), rule)
    with pytest.raises(ConfigError, match=r"the parameter weight fits none of them"):
        LearnedOptimizer(module.named_parameters(), rule)
    with pytest.raises(ConfigError, match=r"was trained for problems of one size"):
        LearnedOptimizer(module.named_parameters(), grouped(four().layout, LSTM, WHOLE))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("optimizer.groups.conv.optimizer.hiden=3", "Did you mean hidden?"),
        ("optimizer.groups.conv.optimizer.coordinatewise=false", "meta.coordinates=20"),
        ("optimizer.groups.other.patterns=[x]", "optimizer.groups.other.optimizer is missing"),
    ],
)
def test_a_bad_setting_of_a_group_is_one_sentence(bad: str, words: str) -> None:
    assert words in refusal(["optimizee=module", "optimizer=groups", "meta.coordinates=20", bad])
