"""Transforms of gradients: against explicit matrices, and against learn2learn 0.2.0."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l2l_runner.optim import (
    ByPattern,
    KroneckerLinear,
    KroneckerTransform,
    LearnableOptimizer,
    MetaCurvatureTransform,
    MetaSGD,
    ModuleTransform,
    ReshapedTransform,
    TransformDictionary,
)
from running import ROOT
from small_nets import TRANSFORMS, scattered

ORACLE = json.loads((ROOT / "tests" / "fixtures" / "learn2learn.json").read_text())
SHAPES = [(), (1,), (4,), (3, 5), (1, 1), (4, 3, 2), (4, 3, 2, 3), (2, 1, 1, 1)]


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
    dictionary = TransformDictionary({model[0]: MetaSGD, model.get_parameter("1.bias"): MetaCurvatureTransform})
    made = LearnableOptimizer(model, dictionary).transforms
    assert [type(one) for one in made] == [MetaSGD, MetaSGD, nn.Identity, MetaCurvatureTransform]
    with pytest.raises(ValueError, match=r"A key is str; expected an nn\.Module or an nn\.Parameter"):
        TransformDictionary({"0.bias": MetaSGD})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"A transform is Parameter; expected an nn\.Module, or None"):
        LearnableOptimizer(model, lambda param: param)  # type: ignore[arg-type, return-value]


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
