"""Differentiable updates: against plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from l2l_runner.optim import (
    DifferentiableSGD,
    MetaSGD,
    ParameterUpdate,
    replace_parameters,
)
from small_nets import loss_of, net, scattered

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
