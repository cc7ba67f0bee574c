"""The building blocks of optim/: against explicit matrices, against plain autograd, and against learn2learn 0.2.0."""

from __future__ import annotations

import copy
import gc
import io
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from l2l_runner.optim import (
    ByPattern,
    DifferentiableSGD,
    KroneckerLinear,
    KroneckerTransform,
    LearnableOptimizer,
    MetaCurvatureTransform,
    MetaSGD,
    ModuleTransform,
    ParameterUpdate,
    ReshapedTransform,
    TransformDictionary,
    replace_parameters,
)

ORACLE = json.loads((Path(__file__).parent / "fixtures" / "learn2learn.json").read_text())
SHAPES = [(), (1,), (4,), (3, 5), (1, 1), (4, 3, 2), (4, 3, 2, 3), (2, 1, 1, 1)]
TRANSFORMS: dict[str, Callable[[Tensor], nn.Module]] = {
    "metasgd": MetaSGD,
    "metasgd a tensor": lambda param: MetaSGD(param, per="tensor"),
    "metacurvature": MetaCurvatureTransform,
    "kronecker": KroneckerTransform(KroneckerLinear, psd=False),
    "kronecker psd bias": KroneckerTransform(KroneckerLinear, bias=True, psd=True),
}


@pytest.fixture(autouse=True)
def double() -> Any:
    """Everything in double precision."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def scattered(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with other parameters than those at its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def matrix(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map of gradients, column by column."""
    size = torch.Size(shape).numel()
    columns = [module(unit.reshape(shape)).flatten() for unit in torch.eye(size)]
    return torch.stack(columns, dim=1).detach()


# Transforms


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_transform_is_the_identity_at_its_start(kind: str, shape: tuple[int, ...]) -> None:
    grad = torch.randn(shape)
    torch.testing.assert_close(TRANSFORMS[kind](torch.zeros(shape))(grad), grad, rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", TRANSFORMS)
def test_a_transform_keeps_shape_type_and_differentiates(kind: str, shape: tuple[int, ...]) -> None:
    transform = scattered(TRANSFORMS[kind](torch.zeros(shape, dtype=torch.float32)))
    assert {parameter.dtype for parameter in transform.parameters()} == {torch.float32}
    transform.double()
    update = transform(torch.randn(shape))
    assert update.shape == shape
    assert torch.autograd.gradcheck(transform, torch.randn(shape, requires_grad=True))
    grads = torch.autograd.grad(update.square().sum(), list(transform.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_gradients_may_lie_in_memory_as_they_like(kind: str) -> None:
    transform, grad = scattered(TRANSFORMS[kind](torch.zeros(4, 3, 2, 3))), torch.randn(4, 3, 2, 3)
    strided = grad.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert not strided.is_contiguous()
    torch.testing.assert_close(transform(strided), transform(grad), rtol=1e-12, atol=1e-14)


def test_metasgd_is_a_diagonal_matrix() -> None:
    transform = scattered(MetaSGD(torch.zeros(3, 5), lr=0.1))
    torch.testing.assert_close(matrix(transform, (3, 5)), torch.diag(transform.rate.flatten()))
    assert MetaSGD(torch.zeros(3, 5), lr=0.1, per="tensor").rate.shape == ()
    with pytest.raises(ValueError, match="per is 'layer'; expected element or tensor"):
        MetaSGD(torch.zeros(3), per="layer")


def test_metacurvature_is_a_kronecker_product() -> None:
    bias = scattered(MetaCurvatureTransform(torch.zeros(4), lr=0.5))
    torch.testing.assert_close(matrix(bias, (4,)), 0.5 * torch.diag(bias.mc))
    linear = scattered(MetaCurvatureTransform(torch.zeros(3, 5), lr=0.5))
    torch.testing.assert_close(matrix(linear, (3, 5)), 0.5 * torch.kron(linear.mc_in, linear.mc_out.T.contiguous()))
    for shape in ((4, 3, 2), (4, 3, 2, 3)):
        conv = scattered(MetaCurvatureTransform(torch.zeros(shape), lr=0.5))
        expected = 0.5 * torch.kron(torch.kron(conv.mc_in, conv.mc_out.T.contiguous()), conv.mc_f)
        torch.testing.assert_close(matrix(conv, shape), expected)


@pytest.mark.parametrize("psd", [False, True])
def test_kronecker_is_a_kronecker_product(psd: bool) -> None:
    layer = scattered(KroneckerLinear(3, 5, bias=True, psd=psd))
    left, right = layer.left, layer.right
    if psd:
        left, right = left.T @ left, right.T @ right
    x = torch.randn(3, 5)
    whole = torch.kron(left, right.T.contiguous())
    torch.testing.assert_close(layer(x).flatten(), whole @ x.flatten() + layer.bias.flatten())
    # A vector is a matrix column after column: (Rᵀ ⊗ L) vec(x) + vec(b).
    columns = torch.kron(right.T.contiguous(), left) @ x.T.flatten() + layer.bias.T.flatten()
    torch.testing.assert_close(layer(x.T.flatten()), columns)
    torch.testing.assert_close(layer(torch.stack([x, 2 * x]))[1], layer(2 * x))
    for wrong in (torch.zeros(5, 3), torch.zeros(14)):
        with pytest.raises(ValueError, match=r"expected \(\.\.\., 3, 5\) or \(15,\)"):
            layer(wrong)
    if psd:
        assert torch.linalg.eigvalsh(whole).min() > 0


@pytest.mark.parametrize(("shape", "n", "m", "count"), [((3, 5), 3, 5, 1), ((4,), 4, 1, 1), ((4, 3, 2, 3), 3, 6, 4)])
def test_kronecker_takes_a_convolution_by_its_output_channels(
    shape: tuple[int, ...], n: int, m: int, count: int
) -> None:
    transform = scattered(KroneckerTransform(KroneckerLinear, psd=False)(torch.zeros(shape)))
    layer = transform.transform
    assert (len(layer.left), len(layer.right)) == (n, m)
    grad = torch.randn(shape)
    expected = torch.stack([layer.left @ part @ layer.right for part in grad.reshape(count, n, m)])
    torch.testing.assert_close(transform(grad), expected.reshape(shape))


def test_a_module_sees_the_gradient_as_one_row() -> None:
    transform = ModuleTransform(nn.Linear)(torch.zeros(3, 2))
    grad = torch.randn(3, 2)
    layer = transform.transform
    torch.testing.assert_close(transform(grad), (layer.weight @ grad.flatten() + layer.bias).reshape(3, 2))
    assert isinstance(transform, ReshapedTransform)


def test_transforms_by_pattern_and_by_module() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    by_pattern = ByPattern({"0.bias": None, "*.bias": MetaSGD, "*": MetaCurvatureTransform})
    made = LearnableOptimizer(model, by_pattern).transforms
    assert [type(one) for one in made] == [MetaCurvatureTransform, nn.Identity, MetaCurvatureTransform, MetaSGD]
    with pytest.raises(ValueError, match=r"No pattern fits parameter 0\.bias: there are \*\.weight"):
        LearnableOptimizer(model, {"*.weight": MetaSGD})
    dictionary = TransformDictionary({model[0]: MetaSGD, model[1].bias: MetaCurvatureTransform})
    made = LearnableOptimizer(model, dictionary).transforms
    assert [type(one) for one in made] == [MetaSGD, MetaSGD, nn.Identity, MetaCurvatureTransform]
    with pytest.raises(ValueError, match=r"A key is str; expected an nn\.Module or an nn\.Parameter"):
        TransformDictionary({"0.bias": MetaSGD})
    with pytest.raises(ValueError, match=r"A transform is Parameter; expected an nn\.Module, or None"):
        LearnableOptimizer(model, lambda param: param)


# learn2learn


@pytest.mark.parametrize("row", ORACLE["transforms"], ids=lambda row: f"{row['kind']}-{row['name']}")
def test_transforms_compute_what_learn2learn_computes(row: dict[str, Any]) -> None:
    kinds = {
        "metacurvature": lambda param: MetaCurvatureTransform(param, lr=0.7),
        "kronecker": KroneckerTransform(KroneckerLinear, bias=False, psd=False),
        "kronecker psd bias": KroneckerTransform(KroneckerLinear, bias=True, psd=True),
        "module": ModuleTransform(nn.Linear),
    }
    shape = tuple(row["shape"])
    transform = kinds[row["kind"]](torch.zeros(shape))
    fill(transform, row["parameters"])
    update = transform(torch.tensor(row["grad"]).reshape(shape))
    torch.testing.assert_close(update.flatten(), torch.tensor(row["update"]), rtol=1e-12, atol=1e-14)


def test_a_training_goes_as_with_learn2learn() -> None:
    case = ORACLE["training"]
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1))
    fill(model, case["start"])
    learnable = LearnableOptimizer(model, KroneckerTransform(KroneckerLinear, bias=False, psd=True), lr=0.1)
    meta_optimizer = torch.optim.SGD(learnable.parameters(), lr=0.05)
    for x, y, expected in zip(torch.tensor(case["x"]), torch.tensor(case["y"]), case["losses"], strict=True):
        learnable.zero_grad()
        meta_optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        meta_optimizer.step()
        learnable.step()
        assert loss.item() == pytest.approx(expected, rel=1e-10)
    for mine, theirs in ((model, case["end"]), (learnable, case["transforms"])):
        for parameter, values in zip(mine.parameters(), theirs, strict=True):
            torch.testing.assert_close(parameter.detach().flatten(), torch.tensor(values), rtol=1e-10, atol=1e-12)


def fill(module: nn.Module, values: list[list[float]]) -> None:
    with torch.no_grad():
        for parameter, flat in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.tensor(flat).reshape(parameter.shape))


# LearnableOptimizer


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 2))


def loss_of(model: nn.Module, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(4, 1, 3, 3, generator=generator)
    return model(images).square().mean() + model(-images).sin().sum()


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_the_next_backward_gives_one_step_hypergradients(kind: str) -> None:
    model = net()
    learnable = LearnableOptimizer(model, lambda param: scattered(TRANSFORMS[kind](param)), lr=0.1)
    loss_of(model, 0).backward()
    first = [parameter.grad.clone() for parameter in model.parameters()]
    learnable.step()
    learnable.zero_grad()
    for parameter in learnable.parameters():
        parameter.grad = None
    loss_of(model, 1).backward()
    # −lr · g' · ∂T(g), by plain autograd
    for transform, grad, parameter in zip(learnable.transforms, first, model.parameters(), strict=True):
        learned = list(transform.parameters())
        expected = torch.autograd.grad(transform(grad), learned, -0.1 * parameter.grad)
        for one, other in zip(learned, expected, strict=True):
            torch.testing.assert_close(one.grad, other, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1.0), st.floats(0.1, 2.0))
def test_hypergradients_are_finite_differences(lr: float, rate: float) -> None:
    def after(change: float) -> tuple[Tensor, LearnableOptimizer]:
        torch.manual_seed(0)
        model = net()
        learnable = LearnableOptimizer(model, lambda param: MetaSGD(param, lr=rate, per="tensor"), lr=lr)
        loss_of(model, 0).backward()
        with torch.no_grad():
            learnable.transforms[0].rate.add_(change)
        learnable.step()
        with torch.no_grad():
            learnable.transforms[0].rate.sub_(change)
        learnable.zero_grad()
        return loss_of(model, 1), learnable

    loss, learnable = after(0.0)
    loss.backward()
    size = 1e-5
    difference = (after(size)[0] - after(-size)[0]).item() / (2 * size)
    assert learnable.transforms[0].rate.grad.item() == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_the_first_backward_gives_zeros() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    loss_of(model, 0).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in learnable.parameters())


def test_parameters_stay_parameters_and_everything_can_be_copied() -> None:
    model = net()
    before = list(model.parameters())
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.01)
    loss_of(model, 0).backward()
    learnable.step()
    assert all(one is other for one, other in zip(before, model.parameters(), strict=True))
    assert all(isinstance(parameter, nn.Parameter) and parameter.is_leaf for parameter in model.parameters())
    buffer = io.BytesIO()
    torch.save((model, learnable), buffer)
    buffer.seek(0)
    pairs = [copy.deepcopy((model, learnable)), torch.load(buffer, weights_only=False), (model, learnable)]
    states = []
    for one, optimizer in pairs:
        assert optimizer.info["model"] is one
        optimizer.zero_grad()
        loss_of(one, 1).backward()
        optimizer.step()
        states.append([*one.parameters(), *(parameter.grad for parameter in optimizer.parameters())])
    for state in states[:2]:
        assert all(torch.equal(one, other) for one, other in zip(state, states[2], strict=True))
    twin = LearnableOptimizer(net(), MetaSGD)
    twin.load_state_dict(learnable.state_dict())
    assert [name for name, _ in learnable.named_parameters()] == [f"transforms.{i}.rate" for i in range(4)]


def test_a_step_is_sgd_and_takes_a_closure() -> None:
    model, plain = net(), net()
    plain.load_state_dict(model.state_dict())
    learnable, sgd = LearnableOptimizer(model, MetaSGD, lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    for step in range(5):

        def closure(step: int = step) -> Tensor:
            learnable.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        sgd.zero_grad()
        expected = loss_of(plain, step)
        expected.backward()
        sgd.step()
        assert learnable.step(closure).item() == pytest.approx(expected.item(), rel=1e-12)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_what_is_frozen_or_unused_stays() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(2))
    model.register_parameter("unused", unused)
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for step in range(2):
        learnable.zero_grad()
        loss_of(model, step).backward()
        learnable.step()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {"0.weight", "3.weight", "3.bias"}


def test_zero_grad_is_for_the_model_alone() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    for step in range(2):
        loss_of(model, step).backward()
        learnable.step()
    found = [parameter.grad.clone() for parameter in learnable.parameters()]
    learnable.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(learnable.parameters(), found, strict=True))
    assert any(grad.any() for grad in found)


def test_what_is_unfrozen_or_replaced_later_is_heard() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
    for step in range(4):
        if step == 1:
            model[0].bias.requires_grad_(True)
            model[3].bias = nn.Parameter(model[3].bias.detach().clone())
        for parameter in learnable.parameters():
            parameter.grad = None
        learnable.zero_grad()
        loss_of(model, step).backward()
        learnable.step()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in learnable.parameters())


def test_a_hypergradient_is_of_the_rate_that_was_used() -> None:
    grads = []
    for lr in (0.1, 0.01):
        torch.manual_seed(0)
        model = net()
        learnable = LearnableOptimizer(model, MetaSGD, lr=0.1)
        loss_of(model, 0).backward()
        learnable.step()
        learnable.zero_grad()
        learnable.lr = lr  # for the next step
        loss_of(model, 1).backward()
        grads.append([parameter.grad for parameter in learnable.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_model_does_not_keep_its_optimizer_alive() -> None:
    model = net()
    learnable = LearnableOptimizer(model, MetaSGD)
    gone = weakref.ref(learnable)
    del learnable
    gc.collect()
    assert gone() is None
    loss_of(model, 0).backward()


# ParameterUpdate


def test_updates_are_transformed_gradients() -> None:
    model = net()
    update = ParameterUpdate(model.parameters(), lambda param: None if param.dim() == 1 else scattered(MetaSGD(param)))
    assert len(list(update.parameters())) == 2
    grads = torch.autograd.grad(loss_of(model, 0), list(model.parameters()))
    updates = update(loss_of(model, 0), model.parameters(), create_graph=True)
    rates = iter(update.parameters())
    for parameter, grad, found in zip(model.parameters(), grads, updates, strict=True):
        expected = grad if parameter.dim() == 1 else next(rates) * grad
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_updates_by_name() -> None:
    model = net()
    update = ParameterUpdate(model.named_parameters(), {"*.bias": None, "*": MetaSGD})
    assert list(update.transforms) == ["0", "2"]


def test_an_update_in_the_graph_has_second_derivatives() -> None:
    model = net()

    def after(create_graph: bool) -> tuple[Tensor, ...]:
        params = dict(model.named_parameters())
        update = ParameterUpdate(params.values(), MetaSGD)
        updates = update(loss_of(model, 0), params.values(), create_graph=create_graph)
        moved = {name: p - 0.1 * u for (name, p), u in zip(params.items(), updates, strict=True)}
        images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(9))
        loss = functional_call(model, moved, (images,)).square().mean()
        return torch.autograd.grad(loss, list(params.values()))

    with_second, without = after(True), after(False)
    assert not torch.allclose(with_second[0], without[0], rtol=1e-3)

    def end(weight: Tensor) -> Tensor:
        params = dict(model.named_parameters()) | {"0.weight": weight}
        images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
        out = functional_call(model, params, (images,)).square().mean()
        out = out + functional_call(model, params, (-images,)).sin().sum()
        grads = torch.autograd.grad(out, list(params.values()))
        moved = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
        images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(9))
        return functional_call(model, moved, (images,)).square().mean()

    weight, size = model[0].weight.detach(), 1e-6
    for index in range(weight.numel()):
        step = torch.zeros_like(weight).view(-1).index_fill(0, torch.tensor(index), size).view_as(weight)
        ends = [end((weight + sign * step).requires_grad_()).item() for sign in (1, -1)]
        assert with_second[0].flatten()[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * size), rel=1e-4)


def test_updates_of_what_has_no_gradient() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(2)))
    update = ParameterUpdate(model.parameters(), MetaSGD)
    updates = update(loss_of(model, 0), model.parameters(), allow_unused=True, allow_nograd=True)
    names = [name for name, _ in model.named_parameters()]
    assert [name for name, found in zip(names, updates, strict=True) if found is None] == ["unused", "0.bias"]
    with pytest.raises(RuntimeError, match="does not require grad"):
        update(loss_of(model, 0), model.parameters(), allow_unused=True)
    with pytest.raises(RuntimeError, match="not have been used"):
        update(loss_of(model, 0), model.parameters(), allow_nograd=True)


def test_updates_of_nothing_and_of_too_much() -> None:
    model = net()
    update = ParameterUpdate(model.parameters(), MetaSGD)
    with pytest.raises(ValueError, match="There are 1 parameters; expected 4"):
        update(loss_of(model, 0), [model[0].weight])
    model.requires_grad_(False)
    assert update(torch.ones((), requires_grad=True), model.parameters(), allow_nograd=True) == [None] * 4


# DifferentiableSGD


def test_an_update_of_a_module_stays_in_the_graph() -> None:
    model, start = net(), net()
    start.load_state_dict(model.state_dict())
    origins = list(model.parameters())
    sgd = DifferentiableSGD(0.1)
    for step in range(3):
        grads = torch.autograd.grad(loss_of(model, step), list(model.parameters()), create_graph=True)
        sgd(model, grads)
    found = torch.autograd.grad(loss_of(model, 3), origins)

    params = dict(start.named_parameters())
    leaves = list(params.values())
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(4, 1, 3, 3, generator=generator)
        loss = functional_call(start, params, (images,)).square().mean()
        loss = loss + functional_call(start, params, (-images,)).sin().sum()
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        params = {name: p - 0.1 * g for (name, p), g in zip(params.items(), grads, strict=True)}
    images = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(3))
    loss = functional_call(start, params, (images,)).square().mean()
    loss = loss + functional_call(start, params, (-images,)).sin().sum()
    for one, other in zip(found, torch.autograd.grad(loss, leaves), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_an_updated_module_is_a_module_still() -> None:
    model = net()
    DifferentiableSGD(0.1)(model, torch.autograd.grad(loss_of(model, 0), list(model.parameters())))
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    assert not any(parameter.is_leaf for parameter in model.parameters())
    twin = copy.deepcopy(model)
    assert all(isinstance(parameter, nn.Parameter) and parameter.is_leaf for parameter in twin.parameters())
    torch.testing.assert_close(loss_of(twin, 1), loss_of(model, 1))
    other = net()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(loss_of(other, 1), loss_of(model, 1))
    # Its gradients are there after a backward pass, as those of any parameter, and serve the next update.
    loss_of(model, 1).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = loss_of(model, 2).item()
    DifferentiableSGD(0.1)(model)
    assert loss_of(model, 2).item() != before


def test_parameters_without_gradients_stay_and_tied_ones_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    model = Tied()
    names = [name for name, _ in model.named_parameters()]
    assert names == ["one.weight", "one.bias", "two.bias"]
    grads = torch.autograd.grad(model(torch.ones(3)).sum(), list(model.parameters()))
    bias = model.two.bias
    DifferentiableSGD(0.1)(model, [grads[0], grads[1], None])
    assert model.one.weight is model.two.weight
    assert model.two.bias is bias
    with pytest.raises(ValueError, match="zip"):
        DifferentiableSGD(0.1)(model, grads[:2])


def test_what_fits_no_parameter_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"3\.wieght \[2\] fits no parameter: the module has the parameters 0\.weight"):
        replace_parameters(model, {"3.wieght": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"3\.bias \[7\] fits no parameter: the module has \[2\]"):
        replace_parameters(model, {"3.bias": torch.zeros(7)})


def test_functional_call_leaves_a_module_alone_whose_parameters_were_replaced() -> None:
    model = net()
    replace_parameters(model, {"3.bias": 2 * model[3].bias})
    inside = list(model.parameters())
    other = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    assert not functional_call(model, other, (torch.ones(1, 1, 3, 3),)).any()
    assert all(one is two for one, two in zip(inside, model.parameters(), strict=True))
