"""Learned transforms as optimizers of the runner."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout
from l2l_runner.meta import TBPTT
from l2l_runner.optimizers import SGD, Transformed
from l2l_runner.unroll import start, unroll
from problems import OPTIMIZER_FILES, optimizee, parse_optimizer, problems

KINDS = ("metasgd", "metacurvature", "kronecker", "module_transform", "hypergradient")


def transformed(kind: str, layout: Layout, seed: int = 0, **changes: Any) -> Transformed:
    """An optimizer of that kind, away from its start, in float64."""
    settings = parse_optimizer({**OPTIMIZER_FILES[kind], "lr": 0.05, **changes})
    generator = torch.Generator().manual_seed(seed)
    optimizer = settings.build(layout, generator).double()
    with torch.no_grad():
        for parameter in optimizer.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator))
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_start_it_is_sgd(kind: str) -> None:
    problem = problems("digits", 3, pool=2)
    settings = parse_optimizer({**OPTIMIZER_FILES[kind], "lr": 0.05})
    optimizer = settings.build(problem.layout, torch.Generator().manual_seed(0)).double()
    lr = 0.05 * OPTIMIZER_FILES[kind].get("init", 1.0)
    sgd = SGD(lr=lr, weight_decay=0.0)
    ours, theirs = (
        [point.loss for _, point in unroll(problem, each, start(problem, each), 5)] for each in (optimizer, sgd)
    )
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_problems_do_not_see_each_other(kind: str) -> None:
    problem = problems("digits", 3, pool=2)
    optimizer = transformed(kind, problem.layout)
    grads = torch.randn(3, problem.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    together, _ = optimizer.update(grads, (), grads)
    alone = torch.cat([optimizer.update(row, (), row)[0] for row in grads.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, 4])
def test_the_replay_is_the_graph(kind: str, length: int) -> None:
    problem = problems("digits", 2, pool=2)
    optimizer = transformed(kind, problem.layout)
    replayed, differentiated = (
        list(TBPTT(length=length, steps=8, engine=engine).estimates(optimizer, problem))
        for engine in ("replay", "graph")
    )
    for one, other in zip(replayed, differentiated, strict=True):
        torch.testing.assert_close(one.meta_loss, other.meta_loss, rtol=1e-12, atol=0)
        for mine, theirs in zip(one.grads, other.grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_are_those_of_finite_differences(kind: str) -> None:
    problem = problems("rosenbrock", 2)
    optimizer = transformed(kind, problem.layout, lr=1e-3)
    whole: dict[str, Any] = {"length": 4, "steps": 4, "engine": "graph"}
    (exact,) = TBPTT(**whole, second_order=True).estimates(optimizer, problem)
    (first,) = TBPTT(**whole).estimates(optimizer, problem)
    parameters, size = list(optimizer.parameters()), 1e-6
    apart = False
    for parameter, mine, short in zip(parameters, exact.grads, first.grads, strict=True):
        flat = parameter.detach().view(-1)
        for index in range(flat.numel()):
            ends = []
            for sign in (1, -1):
                flat[index] += sign * size
                (moved,) = TBPTT(**whole).estimates(optimizer, problem)
                ends.append(moved.meta_loss.item())
                flat[index] -= sign * size
            expected = (ends[0] - ends[1]) / (2 * size)
            assert mine.view(-1)[index].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
            apart |= short.view(-1)[index].item() != pytest.approx(expected, rel=1e-2, abs=1e-6)
    assert apart


@pytest.mark.parametrize("kind", KINDS)
def test_windows_of_one_step_are_one_step_hypergradients(kind: str) -> None:
    problem = problems("digits", 2, pool=2)
    optimizer = transformed(kind, problem.layout)
    (estimate,) = TBPTT(length=1, steps=1).estimates(optimizer, problem)
    begun = start(problem, optimizer)
    ((_, reached),) = unroll(problem, optimizer, begun, 1)
    # The mean over problems of ⟨g', ∂u⟩ with u = −lr T(g), which is −lr g' · ∂T(g).
    with torch.enable_grad():
        update, _ = optimizer.update(begun.grads, (), begun.params)
        expected = torch.autograd.grad(update, list(optimizer.parameters()), reached.grads / len(reached.grads))
    for mine, theirs in zip(estimate.grads, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-14)


def test_rates_are_for_all_for_a_tensor_or_for_an_element() -> None:
    layout = optimizee("digits", pool=2).layout()
    counts = {}
    for rates in ("global", "tensor", "element"):
        settings = parse_optimizer({**OPTIMIZER_FILES["hypergradient"], "lr": 0.5, "init": 0.1, "rates": rates})
        optimizer = settings.build(layout, torch.Generator())
        counts[rates] = sum(parameter.numel() for parameter in optimizer.parameters())
        assert set(optimizer.rates()) == set(layout.shapes)
        for name, rate in optimizer.rates().items():
            torch.testing.assert_close(rate, torch.full_like(rate, 0.05))
            assert rate.shape == (layout.shapes[name] if rates == "element" else ())
    assert counts == {"global": 1, "tensor": len(layout.shapes), "element": layout.size}


def test_patterns_choose_other_transforms() -> None:
    layout = optimizee("digits", pool=2).layout()
    optimizer = transformed("kronecker", layout, patterns={"2.*": "none", "*.bias": "metasgd"})
    kinds = {name[1:].replace("/", "."): type(one).__name__ for name, one in optimizer.transforms.items()}
    assert kinds == {"0.weight": "ReshapedTransform", "0.bias": "MetaSGD"}
    grads = torch.randn(2, layout.size, dtype=torch.float64)
    update, _ = optimizer.update(grads, (), grads)
    torch.testing.assert_close(layout.views(update)["2.weight"], -0.05 * layout.views(grads)["2.weight"])


def test_a_pattern_for_all_is_for_all_and_names_are_free() -> None:
    layout = Layout({"keys": (2,), "a": (3, 2), "b": (2,)})
    optimizer = transformed("metasgd", layout, patterns={"b": "none", "*": "metacurvature"})
    assert {name: type(one).__name__ for name, one in optimizer.transforms.items()} == {
        "/keys": "MetaCurvatureTransform",
        "/a": "MetaCurvatureTransform",
    }


def test_the_start_follows_from_the_seed_alone() -> None:
    layout = Layout({"theta": (3,)})
    build = parse_optimizer({**OPTIMIZER_FILES["module_transform"], "identity": False}).build
    before = torch.random.get_rng_state()
    one, other, third = (build(layout, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [next(iter(each.parameters())) for each in (one, other, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_does_not_fit_is_refused() -> None:
    layout, other = Layout({"a.b": (2, 3)}), Layout({"a.b": (6,)})
    optimizer = transformed("metacurvature", layout)
    optimizer.fitted(layout)
    with pytest.raises(ConfigError, match=r"for each of the tensors a\.b \[2, 3\], but the optimizee has a\.b \[6\]"):
        optimizer.fitted(other)
    with pytest.raises(ConfigError, match=r"kernel=cpp computes LSTM optimizers only.*use kernel=auto"):
        optimizer.use_kernel("cpp")
    optimizer.use_kernel("auto")
    with pytest.raises(ConfigError, match=r"4,097 inputs and outputs for theta; expected at most 4,096"):
        parse_optimizer(OPTIMIZER_FILES["module_transform"]).build(Layout({"theta": (4097,)}), torch.Generator())
    for module, words in {
        "torch.nn.Nothing": r"optimizer\.module is 'torch\.nn\.Nothing', which isn't there",
        "os.getcwd": r"expected the import path of an nn\.Module",  # what makes no modules is never called
        "torch.nn.ReLU": r"optimizer\.module=torch\.nn\.ReLU could not be called with \(6, 6\)",
    }.items():
        with pytest.raises(ConfigError, match=words):
            parse_optimizer({**OPTIMIZER_FILES["module_transform"], "module": module}).build(layout, torch.Generator())
    for pattern, words in {
        "no.*": r"no\.\*, which fits none of the parameters a\.b",
        "*": "nothing to learn",
    }.items():
        with pytest.raises(ConfigError, match=words):
            transformed("metasgd", layout, patterns={pattern: "none"})
