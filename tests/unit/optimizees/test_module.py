"""Any nn.Module as an optimizee: against plain modules, one by one; what cannot be is said."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from composing import built, refusal
from l2l_runner import streams
from l2l_runner.errors import ConfigError, DataError
from l2l_runner.models.convnet import DigitsConvNet
from l2l_runner.optimizees.data import load_images
from problems import (
    DATA,
    RUNTIME,
    needs_cifar,
    optimizee,
    problems,
    scattered,
)

CPU = torch.device("cpu")


class Tied(nn.Module):
    """The weight of `back` is that of `there`, as it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back, self.out = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.out(torch.tanh(self.back(torch.tanh(self.there(x.flatten(1))))))


class Shared(nn.Module):
    """One submodule under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Linear(64, 64)
        self.out = nn.Linear(64, 10)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


class Dropping(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 10))


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 10))


class Recurrent(nn.Module):
    """Rows of the image as a sequence: an LSTM, which vmap can't compute."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 4, batch_first=True), nn.Linear(4, 10)

    def forward(self, x):
        return self.out(self.lstm(x.squeeze(1))[0][:, -1])


class Partly(nn.Module):
    """A random projection that isn't trained, one of which is a parameter and one a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = nn.Parameter(torch.randn(8, 64) / 8, requires_grad=False)
        self.register_buffer("shift", torch.randn(8))
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        return self.out(torch.tanh(x.flatten(1) @ self.fixed.T + self.shift))


class Attending(nn.Module):
    """Rows of the image as words: a transformer's layer, whose evaluation has a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        return self.out(self.layer(x.squeeze(1)).mean(1))


class Mixed(nn.Module):
    """Layers and containers that special-purpose meta-modules get wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 2, 2, stride=2)
        self.norm = nn.BatchNorm2d(2, affine=False)
        self.several = nn.ModuleList([nn.Conv2d(2, 2, 3, stride=2), nn.Conv2d(2, 3, 3, bias=False)])
        self.heads = nn.ModuleDict({"scores": nn.Linear(75, 10, bias=False), "shift": nn.Linear(75, 1)})

    def forward(self, x):
        x = torch.tanh(self.norm(self.up(x)))
        for layer in self.several:
            x = torch.tanh(layer(x))
        return self.heads["scores"](x.flatten(1)) + self.heads["shift"](x.flatten(1)) ** 2 * torch.arange(10)


class Counting(nn.Sequential):
    """Its normalisation keeps running statistics."""

    def __init__(self) -> None:
        norm = nn.InstanceNorm2d(1, affine=True, track_running_stats=True)
        super().__init__(norm, nn.Flatten(), nn.Linear(64, 10))


class Pair(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        return super().forward(x), x


def unannotated():
    return DigitsConvNet()


class Sized(nn.Sequential):
    def __init__(self, width: int, classes: int = 10) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, classes))


def here(name: str) -> dict[str, str]:
    """The `model` that is a module of this file."""
    return {"_target_": f"{__name__}.{name}"}


KINDS: dict[str, Any] = {
    "convolutions": {},
    "tied": {"model": here("Tied")},
    "shared": {"model": here("Shared")},
    "dropout": {"model": here("Dropping")},
    "batch-norm": {"model": here("Normed")},
    "frozen-batch-norm": {"model": here("Normed"), "batch_norm": "frozen"},
    "recurrent": {"model": here("Recurrent")},
    "mixed": {"model": here("Mixed")},
    "attention": {"model": here("Attending")},
    "partly-trained": {"model": here("Partly")},
}
LOOPED = {"dropout", "recurrent", "attention"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def losses_and_grads(problem, flat, step=3):
    leaf = flat.clone().requires_grad_()
    losses = problem.loss(problem.layout.views(leaf), step)
    return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]


def gradient(problem, at, create_graph=False):
    loss = problem.loss(problem.layout.views(at), 2)
    return torch.autograd.grad(loss.sum(), at, create_graph=create_graph)[0]


def plain_loss(problem, module, i, step):
    """The loss of problem i, by an ordinary module that holds its parameters."""
    index = streams.integers(problem.seeds[i : i + 1], 6, len(problem.train.labels), "minibatch", step)[0]
    images = problem.train.images[index].double().view(-1, *problem.train.shape) / problem.train.white
    return F.cross_entropy(module(images), problem.train.labels[index])


# What a problem is


@every_kind
def test_all_at_once_is_one_after_another(kind):
    problem = problems("module", 3, **KINDS[kind])
    assert problem.network.vectorised == (kind not in LOOPED)
    flat = scattered(problem)
    views = problem.layout.views(flat)
    losses, grads = losses_and_grads(problem, flat)
    metrics = problem.metrics(views)
    problem.network.vectorised = False
    looped, looped_grads = losses_and_grads(problem, flat)
    torch.testing.assert_close(looped, losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(looped_grads, grads, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(problem.metrics(views), metrics)


@every_kind
def test_a_problem_is_the_same_alone_and_among_others(kind):
    problem = problems("module", 3, **KINDS[kind])
    flat = scattered(problem)
    losses, grads = losses_and_grads(problem, flat)
    for i in range(3):
        alone = optimizee("module", **KINDS[kind]).sample(problem.seeds[i : i + 1], RUNTIME)
        assert torch.equal(alone.layout.flatten(alone.init())[0], problem.layout.flatten(problem.init())[i])
        loss, grad = losses_and_grads(alone, flat[i : i + 1])
        torch.testing.assert_close(loss[0], losses[i], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(grad[0], grads[i], rtol=1e-10, atol=1e-12)


@every_kind
def test_second_derivatives_are_those_of_finite_differences(kind):
    problem = problems("module", 2, **KINDS[kind])
    flat, h = scattered(problem), 1e-5
    direction = torch.randn(flat.shape, dtype=flat.dtype, generator=torch.Generator().manual_seed(1))
    leaf = flat.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(problem, leaf, create_graph=True) * direction).sum(), leaf)
    ahead, behind = (gradient(problem, (flat + sign * h * direction).requires_grad_()) for sign in (1, -1))
    assert product.abs().max() > 0
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7)


@every_kind
def test_the_module_and_the_global_generator_stay_as_they_were(kind):
    generator = torch.get_rng_state()
    problem = problems("module", 2, **KINDS[kind])
    module = problem.network.module
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    before = [(name, tensor, tensor.detach().clone(), tensor.grad) for name, tensor in tensors]
    losses_and_grads(problem, scattered(problem))
    problem.network.vectorised = False
    losses_and_grads(problem, scattered(problem))
    problem.metrics(problem.init())
    after = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    assert len(after) == len(before)
    for name, tensor, value, grad in before:
        assert after[name] is tensor
        assert torch.equal(tensor, value)
        assert tensor.grad is grad
    assert torch.equal(torch.get_rng_state(), generator)


@every_kind
def test_a_start_is_the_modules_own_initialisation(kind):
    problem = problems("module", 3, **KINDS[kind])
    for i, seed in enumerate(problem.seeds.tolist()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            module = optimizee("module", **KINDS[kind]).build(seed) if kind != "convolutions" else DigitsConvNet()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert torch.equal(problem.init()[name][i], parameter.double())


@pytest.mark.parametrize("kind", ["convolutions", "tied", "shared", "recurrent", "mixed"])
def test_a_loss_is_that_of_a_plain_module(kind):
    settings = optimizee("module", **KINDS[kind])
    problem = problems("module", 2, **KINDS[kind])
    flat = scattered(problem)
    losses, grads = losses_and_grads(problem, flat, step=4)
    for i in range(2):
        module = settings.build(0).double()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(problem.layout.views(flat)[name][i])
        loss = plain_loss(problem, module, i, 4)
        loss.backward()
        torch.testing.assert_close(losses[i], loss.detach(), rtol=1e-12, atol=1e-12)
        plain = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        torch.testing.assert_close(grads[i], plain, rtol=1e-10, atol=1e-13)


def test_tied_weights_and_shared_submodules_are_one_key():
    assert list(optimizee("module", model=here("Tied")).layout().shapes) == [
        "there.weight", "there.bias", "back.bias", "out.weight", "out.bias",
    ]  # fmt: skip
    assert list(optimizee("module", model=here("Shared")).layout().shapes) == [
        "first.weight", "first.bias", "out.weight", "out.bias",
    ]  # fmt: skip


def test_what_needs_no_gradient_is_a_constant_of_each_problem():
    problem = problems("module", 2, model=here("Partly"))
    assert list(problem.layout.shapes) == ["out.weight", "out.bias"]
    assert set(problem.constants) == {"fixed", "shift"}
    assert not torch.equal(problem.constants["shift"][0], problem.constants["shift"][1])


def test_dropout_differs_between_steps_and_problems_and_is_off_for_the_accuracy():
    problem = problems("module", 2, model=here("Dropping"))
    ones = {name: torch.ones(2, *shape, dtype=torch.float64) for name, shape in problem.layout.shapes.items()}
    mask: Any = [[], []]
    for step in range(2):
        leaf = {name: value.clone().requires_grad_() for name, value in scattered_like(ones).items()}
        (grads,) = torch.autograd.grad(problem.loss(leaf, step).sum(), leaf["4.weight"])
        for i in range(2):
            mask[i].append(grads[i])
    assert not torch.equal(mask[0][0], mask[0][1])
    start = problem.init()
    images = problem.test.images.double() / problem.test.white
    for i in range(2):
        hidden = torch.tanh(images @ start["1.weight"][i].T + start["1.bias"][i])
        scores = hidden @ start["4.weight"][i].T + start["4.bias"][i]
        expected = (scores.argmax(1) == problem.test.labels).double().mean()
        assert problem.metrics(start)["accuracy"][i].item() == pytest.approx(expected.item())


def scattered_like(params):
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(p.shape, dtype=p.dtype, generator=generator) for name, p in params.items()}


# Batch norm


@pytest.fixture
def normed_file(tmp_path: Path) -> Path:
    """A file of weights of `Normed`, with statistics that were once gathered."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = Normed()
        module(5 * torch.rand(50, 1, 8, 8) + 1)
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "normed.pt")
    return tmp_path / "normed.pt"


@pytest.mark.parametrize("policy", ["batch", "frozen"])
def test_batch_norm_is_that_of_a_plain_module(normed_file, policy):
    weights: dict[str, Any] = {"weights": str(normed_file), "prefix": "module."}
    problem = problems("module", 2, model=here("Normed"), batch_norm=policy, **weights)
    stored = {k.removeprefix("module."): v for k, v in torch.load(normed_file)["state_dict"].items()}
    for name, value in problem.init().items():
        assert torch.equal(value, stored[name].double().expand_as(value))
    flat = scattered(problem)
    losses, accuracy = problem.loss(problem.layout.views(flat), 1), problem.metrics(problem.layout.views(flat))
    for i in range(2):
        module = Normed().double()
        module.load_state_dict(stored)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(problem.layout.views(flat)[name][i])
        module.train(policy == "batch")
        torch.testing.assert_close(losses[i], plain_loss(problem, module, i, 1), rtol=1e-12, atol=1e-12)
        images = problem.test.images.double().view(-1, 1, 8, 8) / problem.test.white
        right = (module(images).argmax(1) == problem.test.labels).double().mean()
        assert accuracy["accuracy"][i].item() == pytest.approx(right.item())


# Images


def test_images_are_resized_and_normalised():
    settings: dict[str, Any] = {"mean": [0.25], "std": [0.5], "resize": 16, "model": here("Recurrent")}
    problem = problems("module", 1, **{**settings, "resize": None})
    index = torch.arange(6).view(2, 3)
    pixels = problem.train.pixels(index, torch.float64).view(2, 3, 1, 8, 8)
    torch.testing.assert_close(problem.optimizee.prepared(problem.train, index, torch.float64), (pixels - 0.25) / 0.5)
    larger = replace(problem.optimizee, resize=16).prepared(problem.train, index, torch.float64)
    assert larger.shape == (2, 3, 1, 16, 16)
    smaller = replace(problem.optimizee, resize=4, mean=None, std=None).prepared(problem.train, index, torch.float64)
    torch.testing.assert_close(smaller.mean((3, 4)), pixels.mean((3, 4)), rtol=0.2, atol=0.05)


def test_the_accuracy_can_be_read_on_fewer_images():
    whole, fewer = problems("module", 2), problems("module", 2, test_images=50)
    start = whole.init()
    images = whole.optimizee.prepared(whole.test, torch.arange(50), torch.float64)
    for i in range(2):
        scores = whole.network({name: value[i] for name, value in start.items()}, images)
        expected = (scores.argmax(1) == whole.test.labels[:50]).double().mean().item()
        assert fewer.metrics(start)["accuracy"][i].item() == pytest.approx(expected)


@needs_cifar
@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar_is_what_its_files_hold(split):
    files = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images = load_images("cifar10", split, DATA, False, CPU)
    raw = [pickle.loads((DATA / "cifar-10-batches-py" / name).read_bytes(), encoding="bytes") for name in files]
    assert images.shape == (3, 32, 32)
    assert np.array_equal(images.images.numpy(), np.concatenate([part[b"data"] for part in raw]))
    assert images.labels.tolist() == [label for part in raw for label in part[b"labels"]]


def test_missing_cifar_is_said_with_its_place(tmp_path):
    with pytest.raises(DataError, match="CIFAR-10 is not in") as caught:
        load_images("cifar10", "train", tmp_path, False, CPU)
    assert str(tmp_path / "cifar-10-batches-py") in str(caught.value)
    assert "L2L_DATA" in str(caught.value)


def test_labels_are_those_that_are_kept_renumbered_in_their_order():
    whole = problems("module", 2)
    model = {"_target_": f"{__name__}.Sized", "width": 4, "classes": 3}
    problem = problems("module", 2, labels=[7, 2, 5], model=model)
    for mine, theirs in ((problem.train, whole.train), (problem.test, whole.test)):
        kept = [i for i, label in enumerate(theirs.labels.tolist()) if label in (7, 2, 5)]
        assert torch.equal(mine.images, theirs.images[kept])
        assert mine.labels.tolist() == [[7, 2, 5].index(label) for label in theirs.labels[kept].tolist()]
    assert problem.layout.shapes["3.weight"] == (3, 4)
    start = problem.init()
    index = streams.integers(problem.seeds, 6, len(problem.train.labels), "minibatch", 3)
    for i in range(2):
        module = Sized(4, 3).double()
        module.load_state_dict({name: value[i] for name, value in start.items()})
        pixels = (problem.train.images[index[i]].double() / 16).view(-1, 1, 8, 8)
        expected = F.cross_entropy(module(pixels), problem.train.labels[index[i]])
        torch.testing.assert_close(problem.loss(start, 3)[i], expected, rtol=1e-12, atol=0)
    everything = problems("module", 2, labels=list(range(10)))
    assert torch.equal(everything.loss(everything.init(), 1), whole.loss(whole.init(), 1))


# Networks


def test_a_layout_needs_no_data():
    resnet18 = {"_target_": "torchvision.models.resnet18", "num_classes": 10}
    layout = optimizee("module", model=resnet18, data="cifar10").layout()
    assert layout.size == 11_181_642
    assert layout.shapes["conv1.weight"] == (64, 3, 7, 7)


def test_a_larger_problem_is_not_vectorised_on_the_cpu(monkeypatch):
    problem = problems("module", 2)
    flat = scattered(problem)
    together = losses_and_grads(problem, flat)
    monkeypatch.setattr("l2l_runner.optimizees.module.VMAP_ON_CPU", problem.layout.size - 1)
    monkeypatch.setattr("l2l_runner.optimizees.module.vmap", None)
    for mine, theirs in zip(losses_and_grads(problem, flat), together, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


# What cannot be

GOOGLENET = ["optimizee.model._target_=torchvision.models.googlenet"]
BAD = [
    (["optimizee.labels=[1,10]"], ["optimizee.labels[1] is 10", "< 10"]),
    (["optimizee.labels=[1,-1]"], ["optimizee.labels[1] is -1", "≥ 0"]),
    (["optimizee.labels=[1]"], ["optimizee.labels is [1]", "two or more"]),
    (["optimizee.labels=[1,2,1]"], ["optimizee.labels is [1, 2, 1]", "all different"]),
    (["optimizee.labels=3"], ["optimizee.labels is 3", "list"]),
    (["optimizee.labels=[1,2,3]"], ["returns [2, 10]", "expected scores [2, 3]", "num_classes=3"]),
    (["optimizee.model=3"], ["optimizee.model is 3", "group of keys"]),
    (["~optimizee.model._target_"], ["optimizee.model._target_ is None", "import path"]),
    (["optimizee.model._target_=3"], ["optimizee.model._target_ is 3", "import path"]),
    (["optimizee.model._target_=no.such"], ["optimizee.model._target_ is 'no.such'", "No module named"]),
    (["optimizee.model._target_=torchvision.models.resnet81"], ["resnet81", "isn't there"]),
    (["optimizee.model._target_=os.getcwd"], ["'os.getcwd'", "nn.Module"]),
    ([f"optimizee.model._target_={__name__}.unannotated"], ["unannotated", "annotation"]),
    (["optimizee.model.sides=3"], ["could not be built", "sides"]),
    (["optimizee.model._target_=l2l_runner.models.resnet.CifarResNet", "optimizee.model.depth=21"], ["depth is 21"]),
    (["optimizee.model._target_=l2l_runner.models.resnet.CifarResNet"], ["cannot compute images [2, 1, 8, 8]"]),
    (["optimizee.model._target_=torch.nn.ReLU"], ["no parameter that requires a gradient"]),
    (
        ["optimizee.model._target_=torch.nn.Linear", "optimizee.model.in_features=8", "optimizee.model.out_features=3"],
        ["returns [2, 1, 8, 3]", "[2, 10]"],
    ),
    (
        [*GOOGLENET, "optimizee.model.init_weights=false", "optimizee.data=cifar10"],
        ["returns a GoogLeNetOutputs", "[2, 10]"],
    ),
    ([f"optimizee.model._target_={__name__}.Pair"], ["returns a tuple", "[2, 10]"]),
    ([f"optimizee.model._target_={__name__}.Counting"], ["changes its buffer 0.running_mean"]),
    ([f"optimizee.model._target_={__name__}.Normed", "optimizee.minibatch=1", "optimizee.resize=3"], ["[1, 1, 3, 3]"]),
    (["optimizee.model._target_=torch.nn.LazyLinear", "optimizee.model.out_features=10"], ["weight open", "lazy"]),
    (["optimizee.data=cifar100"], ["optimizee.data", "cifar10", "digits"]),
    (["optimizee.mean=[0.5,0.5]"], ["optimizee.mean has 2 numbers", "expected 1"]),
    (["optimizee.std=[0]"], ["optimizee.std[0]", "> 0"]),
    (["optimizee.resize=0"], ["optimizee.resize", "≥ 1"]),
    (["optimizee.batch_norm=none"], ["optimizee.batch_norm", "batch, frozen"]),
    (["optimizee.weights=nowhere.pt"], ["optimizee.weights", "nowhere.pt", "hub/checkpoints"]),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_module_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    sentence = refusal(["optimizee=module", "optimizee.batch=2", *arguments], built)
    assert [word for word in words if word not in sentence] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("linear.bias"), "has no linear.bias, which the module has"),
        (lambda d: d.update({"head.bias": torch.zeros(3)}), "has head.bias, which the module does not have"),
        (lambda d: d.update({"conv.bias": torch.zeros(3)}), r"conv.bias has the shape \[3\]; expected \[8\]"),
        (lambda d: d.clear(), "holds no state dict"),
    ],
)
def test_weights_that_do_not_fit_name_the_first_odd_key(tmp_path, change, words):
    state = DigitsConvNet().state_dict()
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ConfigError, match=words):
        optimizee("module", weights=str(tmp_path / "odd.pt")).sample(streams.seeds(0, "train", 0, 2), RUNTIME)


@pytest.mark.parametrize(
    "content", [b"", b"no weights", pickle.dumps(os.getcwd, protocol=2)], ids=["empty", "words", "code"]
)
def test_a_file_that_holds_no_weights_is_said(tmp_path, content):
    (tmp_path / "odd.pt").write_bytes(content)
    with pytest.raises(ConfigError, match=r"odd\.pt cannot be read"):
        optimizee("module", weights=str(tmp_path / "odd.pt")).sample(streams.seeds(0, "train", 0, 2), RUNTIME)


@pytest.mark.parametrize("folder", [".", "hub/checkpoints"])
def test_weights_are_found_in_the_data_folder(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    state = DigitsConvNet().state_dict()
    torch.save({"best": 0.5, "model": state}, tmp_path / folder / "w.pt")
    problem = optimizee("module", weights="w.pt").sample(
        streams.seeds(0, "train", 0, 3), replace(RUNTIME, data_root=tmp_path)
    )
    for name, value in problem.init().items():
        assert torch.equal(value, state[name].double().expand_as(value))
