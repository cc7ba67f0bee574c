"""A learned optimizer in an ordinary PyTorch loop."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import l2l_runner
from l2l_runner.errors import CheckpointError, ConfigError
from l2l_runner.optimizers.base import LearnedRule as Rule
from l2l_runner.runs import checkpoint
from l2l_runner.unroll import start, unroll
from problems import lstm, problems

LearnedOptimizer = l2l_runner.LearnedOptimizer


def net(dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def loss_of(model: nn.Module, step: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 5, generator=generator).to(next(model.parameters()).dtype)
    return (model(x) - x[:, :2].sin()).square().mean()


def take(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, begin: int = 0) -> list[float]:
    losses = []
    for step in range(begin, begin + steps):
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def values(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_it_goes_as_in_the_runner(kernel: str) -> None:
    problem, rule = problems("digits", 1), lstm(4)
    expected = [point.loss.item() for _, point in unroll(problem, rule, start(problem, rule), 12)]
    params = {name: nn.Parameter(value) for name, value in problem.init().items()}
    optimizer = LearnedOptimizer(params.values(), rule, kernel=kernel)
    losses = []
    for step in range(12):
        optimizer.zero_grad()
        problem.loss(params, step).sum().backward()
        optimizer.step()
        losses.append(problem.loss(params, step + 1).item())
    assert losses == pytest.approx(expected, rel=1e-9)


def test_groups_have_their_own_factor_and_schedulers_change_it() -> None:
    model, rule = net(), lstm(4)
    before = values(model)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters()}]
    optimizer = LearnedOptimizer(groups, rule, lr=2.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    loss_of(model).backward()
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 1.0]
    twin = net()
    plain = LearnedOptimizer(twin[2].parameters(), rule)
    loss_of(twin).backward()
    plain.step()
    moved, single = values(model) - before, values(twin) - before
    assert not moved[:24].any()
    torch.testing.assert_close(moved[24:], 2 * single[24:], rtol=1e-12, atol=1e-14)


def test_parameters_without_gradients_stay_and_their_state_waits() -> None:
    model = net()
    optimizer = LearnedOptimizer(model.parameters(), lstm(4))
    take(model, optimizer, 1)
    state = copy.deepcopy(optimizer.state[model[0].weight])
    before = model[0].weight.detach().clone()
    model[0].weight.requires_grad_(False)
    take(model, optimizer, 1, begin=1)
    assert torch.equal(model[0].weight, before)
    assert all(torch.equal(value, state[key]) for key, value in optimizer.state[model[0].weight].items())
    later = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [later]})
    later.square().sum().backward()
    optimizer.step()
    assert not torch.equal(later, torch.ones(3, dtype=torch.float64))


def test_a_closure_is_called_with_gradients() -> None:
    model, twin, rule = net(), net(), lstm(4)
    optimizer = LearnedOptimizer(model.parameters(), rule)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    found = optimizer.step(closure)
    assert found.item() == take(twin, LearnedOptimizer(twin.parameters(), rule), 1)[0]
    assert torch.equal(values(model), values(twin))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_state_goes_on_exactly_in_every_precision(dtype: torch.dtype) -> None:
    model, rule = net(dtype), lstm(4)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    take(model, optimizer, 3)
    wanted = torch.float64 if dtype == torch.float64 else torch.float32
    assert {value.dtype for state in optimizer.state.values() for value in state.values()} == {wanted}
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    twin = net(dtype)
    twin.load_state_dict(saved["model"])
    other = LearnedOptimizer(twin.parameters(), rule)
    other.load_state_dict(saved["optimizer"])
    take(model, optimizer, 3, begin=3)
    take(twin, other, 3, begin=3)
    assert torch.equal(values(model), values(twin))


@pytest.mark.parametrize("kernel", ["torch", "auto"])
@pytest.mark.parametrize(("first", "second"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_a_state_follows_its_parameters_into_another_precision(
    first: torch.dtype, second: torch.dtype, kernel: str
) -> None:
    ends = []
    for way in ("converted", "loaded"):
        model = net(first)
        optimizer = LearnedOptimizer(model.parameters(), lstm(4), kernel=kernel)
        take(model, optimizer, 2)
        model = model.to(second) if way == "converted" else copy.deepcopy(model).to(second)
        if way == "loaded":
            saved, optimizer = optimizer.state_dict(), LearnedOptimizer(model.parameters(), lstm(4), kernel=kernel)
            optimizer.load_state_dict(saved)
        take(model, optimizer, 2, begin=2)
        ends.append(values(model))
    exact = net()
    take(exact, LearnedOptimizer(exact.parameters(), lstm(4), kernel="torch"), 4)
    for end in ends:
        torch.testing.assert_close(end.double(), values(exact), rtol=1e-3, atol=1e-4)


def test_many_layers_keep_their_order() -> None:
    model, rule = net(), lstm(4, layers=6)
    optimizer = LearnedOptimizer(model.parameters(), rule)
    param = model[0].weight
    state = rule.init(param.detach().view(1, -1))
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before, row = param.detach().clone(), param.grad.view(1, -1)
        with torch.no_grad():
            update, state = rule.update(row, state, row)
        optimizer.step()
        torch.testing.assert_close(param - before, update.view_as(param), rtol=1e-9, atol=1e-12)


def test_copies_and_pickles_go_on_exactly() -> None:
    model = net()
    optimizer = LearnedOptimizer(model.parameters(), lstm(4), lr=0.5)
    take(model, optimizer, 2)
    buffer = io.BytesIO()
    torch.save((model, optimizer), buffer)
    buffer.seek(0)
    pairs = [copy.deepcopy((model, optimizer)), torch.load(buffer, weights_only=False)]
    take(model, optimizer, 3, begin=2)
    for twin, other in pairs:
        take(twin, other, 3, begin=2)
        assert torch.equal(values(model), values(twin))


def test_mixed_precision_and_clipping() -> None:
    model = net(torch.float32)
    optimizer = LearnedOptimizer(model.parameters(), lstm(4).float(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    before = values(model)
    for step in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, step)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    after = values(model)
    assert not torch.equal(before, after)
    # An overflow skips the step.
    optimizer.zero_grad()
    scaler.scale(loss_of(model) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(values(model), after)


def test_what_it_does_not_take_is_refused_by_name(tmp_path: Path) -> None:
    embedding = nn.Embedding(4, 3, sparse=True)
    optimizer = LearnedOptimizer(embedding.parameters(), lstm(4))
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"shape \[4, 3\] has a sparse coo gradient; LearnedOptimizer takes dense"):
        optimizer.step()
    number = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = LearnedOptimizer([number], lstm(4))
    number.abs().sum().backward()
    with pytest.raises(RuntimeError, match=r"has a complex gradient"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"lr is -1\.0; expected a finite factor of the updates that is ≥ 0"):
        LearnedOptimizer(net().parameters(), lstm(4), lr=-1.0)
    with pytest.raises(ValueError, match=r"lr is nan"):
        LearnedOptimizer([{"params": net().parameters(), "lr": float("nan")}], lstm(4))
    with pytest.raises(TypeError, match=r"optimizer is None; expected the name of a pretrained one"):
        LearnedOptimizer(net().parameters(), None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"was trained for problems of one size"):
        LearnedOptimizer(net().parameters(), lstm(4, coordinatewise=False))
    with pytest.raises(CheckpointError, match=r"no checkpoint mnits.*quadratic, mnist.*Did you mean mnist\?"):
        LearnedOptimizer(net().parameters(), "mnits")
    with pytest.raises(ConfigError, match=r"kernel=triton is not available"):
        LearnedOptimizer(net().parameters(), lstm(4), kernel="triton")


def test_a_state_of_another_optimizer_is_refused_and_nothing_is_lost() -> None:
    model = net()
    optimizer = LearnedOptimizer(model.parameters(), lstm(4))
    take(model, optimizer, 1)
    other = LearnedOptimizer(net().parameters(), lstm(4, hidden=5))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"of the learned optimizer with the fingerprint \w+; this one has \w+: load"):
        other.load_state_dict(optimizer.state_dict())
    assert other.state_dict() == before
    with pytest.raises(ValueError, match="parameter group"):
        LearnedOptimizer(net()[0].parameters(), lstm(4)).load_state_dict(optimizer.state_dict())


def test_it_is_no_part_of_what_was_given() -> None:
    rule: Rule = lstm(4)
    optimizer = LearnedOptimizer(net().parameters(), rule)
    assert optimizer.rule is not rule
    assert all(parameter.requires_grad for parameter in rule.parameters())
    assert not any(parameter.requires_grad for parameter in optimizer.rule.parameters())


# Tensors that are not plain


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_a_pending_negation_of_a_gradient_is_carried_out(kernel: str) -> None:
    real, imaginary = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
    (torch.complex(real, imaginary).conj() * (0.3 + 0.7j)).real.backward()
    assert imaginary.grad is not None
    assert imaginary.grad.is_neg()
    twins = [nn.Parameter(p.detach().clone()) for p in (real, imaginary)]
    for twin, grad in zip(twins, (0.3, 0.7), strict=True):
        twin.grad = torch.tensor(grad)
    for params in ([real, imaginary], twins):
        LearnedOptimizer(params, "mnist", kernel=kernel).step()
    assert real.item() == twins[0].item()
    assert imaginary.item() == twins[1].item()


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_lazy_zeros_and_no_elements_are_gradients(kernel: str) -> None:
    for lazy, plain in [(torch._efficientzerotensor(3), torch.zeros(3)), (torch.ones(0), torch.ones(0))]:
        params = [nn.Parameter(torch.ones(len(plain))) for _ in range(2)]
        for param, grad in zip(params, (lazy, plain), strict=True):
            param.grad = grad
        optimizer = LearnedOptimizer(params, "mnist", kernel=kernel)
        optimizer.step()
        optimizer.step()
        assert torch.equal(*params)


def test_a_tensor_without_numbers_is_refused() -> None:
    with FakeTensorMode():
        param = nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
    optimizer = LearnedOptimizer([param], lstm(4).float())
    if optimizer.rule.kernel_name == "torch":
        pytest.skip("there is no fused kernel here")
    with pytest.raises(TypeError, match=r"was given a FakeTensor, and reads plain dense tensors only"):
        optimizer.step()


# Options


def test_weight_decay_is_that_of_adamw() -> None:
    model, rule = net(), lstm(4)
    optimizer = LearnedOptimizer(model.parameters(), rule, lr=0.5, weight_decay=0.1)
    twin = net()
    plain = LearnedOptimizer(twin.parameters(), rule, lr=0.5)
    before = values(model)
    take(model, optimizer, 1)
    take(twin, plain, 1)
    torch.testing.assert_close(values(model), values(twin) - 0.5 * 0.1 * before, rtol=1e-12, atol=1e-14)


def test_maximize_descends_the_negative_loss() -> None:
    model, twin, rule = net(), net(), lstm(4)
    ascent = LearnedOptimizer(model.parameters(), rule, maximize=True)
    descent = LearnedOptimizer(twin.parameters(), rule)
    for step in range(3):
        for one, optimizer, sign in ((model, ascent, 1), (twin, descent, -1)):
            optimizer.zero_grad()
            (sign * loss_of(one, step)).backward()
            optimizer.step()
    assert torch.equal(values(model), values(twin))


@pytest.mark.parametrize("name", ["mnist", "robust"])
@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_a_coordinate_without_gradient_can_be_skipped(name: str, kernel: str) -> None:
    torch.manual_seed(0)
    param = nn.Parameter(torch.randn(4, 3))
    optimizer = LearnedOptimizer([param], name, kernel=kernel, skip_zero_grad=True, weight_decay=0.1)
    twin = nn.Parameter(param.detach()[:2].clone())
    plain = LearnedOptimizer([twin], name, kernel=kernel, weight_decay=0.1)
    before = param.detach().clone()
    for step in range(4):
        grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(step))
        param.grad, twin.grad = torch.cat([grad, torch.zeros(2, 3)]), grad
        optimizer.step()
        if step == 1:  # a step in which nothing has a gradient
            kept = copy.deepcopy(optimizer.state_dict()["state"]), param.detach().clone()
            param.grad = torch.zeros(4, 3)
            optimizer.step()
            after = optimizer.state_dict()["state"]
            assert all(torch.equal(value, after[0][key]) for key, value in kept[0][0].items())
            assert torch.equal(param, kept[1])
        plain.step()
    assert torch.equal(param[2:], before[2:])
    torch.testing.assert_close(param[:2], twin, rtol=1e-5, atol=1e-6)
    assert all(not value[:, 2:].any() for value in optimizer.state[param].values())


@pytest.mark.parametrize("bad", [float("inf"), float("nan"), -1.0, torch.tensor([0.1, 0.2]), "fast", None])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_factor_is_one_finite_number(option: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option} is .*; expected a finite factor"):
        LearnedOptimizer(net().parameters(), lstm(4), **{option: bad})
    optimizer = LearnedOptimizer(net().parameters(), lstm(4))
    with pytest.raises(ValueError, match=rf"{option} is .*; expected a finite factor"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], option: bad})
    assert len(optimizer.param_groups) == 1


def test_an_lr_may_be_a_tensor_of_one_element() -> None:
    ends = []
    for lr in (0.5, torch.tensor(0.5), torch.tensor([0.5])):
        model = net()
        take(model, LearnedOptimizer(model.parameters(), lstm(4), lr=lr), 2)
        ends.append(values(model))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_an_option_that_it_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has the option betas; LearnedOptimizer has lr, weight_decay, maximize"):
        LearnedOptimizer([{"params": net().parameters(), "betas": (0.9, 0.99)}], lstm(4))
    with pytest.raises(ConfigError, match=r"kernel is 'cuda'; expected one of auto, torch, cpp, triton"):
        LearnedOptimizer(net().parameters(), lstm(4), kernel="cuda")


def test_a_refused_gradient_leaves_all_parameters() -> None:
    first, second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = LearnedOptimizer([first, second], lstm(4))
    (first.sum() * second.abs().sum()).backward()
    with pytest.raises(RuntimeError, match="complex gradient"):
        optimizer.step()
    assert torch.equal(first, torch.ones(2))


def test_a_step_compiles_as_one_graph() -> None:
    model, twin = net(torch.float32), net(torch.float32)
    optimizer = LearnedOptimizer(model.parameters(), "mnist", kernel="torch")
    step = torch.compile(optimizer.step, fullgraph=True, backend="eager")
    for number in range(2):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        step()
    take(twin, LearnedOptimizer(twin.parameters(), "mnist", kernel="torch"), 2)
    torch.testing.assert_close(values(model), values(twin))


# What is loaded


def test_what_is_loaded_does_not_depend_on_defaults() -> None:
    expected = LearnedOptimizer(net().parameters(), "mnist").rule.state_dict()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            found = LearnedOptimizer(net().parameters(), "mnist").rule.state_dict()
            assert torch.get_default_dtype() == dtype
            assert all(
                value.dtype == torch.float32 and torch.equal(value, expected[key]) for key, value in found.items()
            )
    finally:
        torch.set_default_dtype(torch.float32)
    model, twin = net(), net()
    with torch.device("meta"):
        optimizer = LearnedOptimizer(model.parameters(), "mnist")
    assert all(torch.equal(value, expected[key]) for key, value in optimizer.rule.state_dict().items())
    take(model, optimizer, 2)
    take(twin, LearnedOptimizer(twin.parameters(), "mnist"), 2)
    assert torch.equal(values(model), values(twin))


@pytest.mark.parametrize("kernel", ["torch", "auto"])
def test_a_step_inside_autocast_is_as_precise_as_outside(kernel: str) -> None:
    ends = []
    for enabled in (False, True):
        model = net(torch.float32)
        optimizer = LearnedOptimizer(model.parameters(), "mnist", kernel=kernel)
        for step in range(2):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                optimizer.step()
        ends.append(values(model))
    assert torch.equal(*ends)


def test_what_load_hooks_make_is_what_is_loaded() -> None:
    """PyTorch's documented hook that assigns states by names: layers of the same shape, in another order."""
    torch.manual_seed(0)
    layers = {name: nn.Parameter(torch.randn(3, dtype=torch.float64)) for name in "ab"}
    optimizer = LearnedOptimizer(list(layers.items()), lstm(4))
    for param in layers.values():
        param.grad = torch.randn(3, dtype=torch.float64)
    optimizer.step()
    other = LearnedOptimizer(list(reversed(layers.items())), lstm(4))

    def by_name(own: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        group = state["param_groups"][0]
        ids = dict(zip(group["param_names"], group["params"], strict=True))
        names = own.param_groups[0]["param_names"]
        return {**state, "param_groups": [{**group, "param_names": names, "params": [ids[name] for name in names]}]}

    seen = []
    other.register_load_state_dict_pre_hook(by_name)
    other.register_load_state_dict_post_hook(lambda own: seen.append(own.state[layers["a"]]["state_0"].dtype))
    other.load_state_dict(optimizer.state_dict())
    for param in layers.values():
        assert all(torch.equal(value, other.state[param][key]) for key, value in optimizer.state[param].items())
    assert seen == [torch.float64]


def test_what_hooks_change_after_loading_stays() -> None:
    model = net()
    optimizer = LearnedOptimizer(model.parameters(), lstm(4))
    take(model, optimizer, 1)
    other = LearnedOptimizer(model.parameters(), lstm(4))
    other.register_load_state_dict_post_hook(lambda own: own.state.clear())
    other.load_state_dict(optimizer.state_dict())
    assert not other.state


def test_a_state_of_anything_else_is_refused() -> None:
    model = net()
    adam = torch.optim.Adam(model.parameters())
    take(model, adam, 1)
    optimizer = LearnedOptimizer(model.parameters(), lstm(4))
    take(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    for foreign in (adam.state_dict(), torch.optim.SGD(model.parameters()).state_dict(), {}):
        with pytest.raises(ValueError, match=r"The state dict is not of a LearnedOptimizer"):
            optimizer.load_state_dict(foreign)
    twin = LearnedOptimizer(model.parameters(), lstm(4, seed=1))
    take(model, twin, 1)
    with pytest.raises(ValueError, match=r"of the learned optimizer with the fingerprint \w+; this one has \w+"):
        optimizer.load_state_dict(twin.state_dict())
    wide = LearnedOptimizer([nn.Parameter(torch.ones(p.shape[::-1])) for p in model.parameters()], lstm(4))
    for param in wide.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    wide.step()
    with pytest.raises(ValueError, match=r"shape \[4, 5\] has the shapes \[\[3, 5, 4\].*has \[\[3, 4, 5\]"):
        optimizer.load_state_dict(wide.state_dict())
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(value, after["state"][key][name]) for name, value in state.items())
    double = LearnedOptimizer(model.parameters(), lstm(4).float().double())
    single = LearnedOptimizer(model.parameters(), lstm(4).float())
    double.load_state_dict(single.state_dict())  # the same numbers


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning's own
def test_it_trains_under_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning", reason="Lightning is not installed")

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = net(torch.float32)

        def training_step(self, batch: Any, index: int) -> Tensor:
            return loss_of(self.net, index)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return LearnedOptimizer(self.parameters(), "mnist")

    module = Module()
    before = loss_of(module.net).item()
    trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False)
    numbers: Any = range(30)
    trainer.fit(module, torch.utils.data.DataLoader(numbers, batch_size=1))
    assert loss_of(module.net).item() < before


# The pretrained ones


def test_a_pretrained_optimizer_trains_a_module() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))
    optimizer = LearnedOptimizer(model.parameters(), "mnist")
    for _ in range(100):
        batch = torch.randint(len(labels), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    assert (model(images).argmax(1) == labels).float().mean() > 0.9


def test_a_folder_of_its_name_does_not_hide_a_pretrained_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert checkpoint.load(Path("mnist"))["config"]["optimizee"]["name"] == "mnist"
