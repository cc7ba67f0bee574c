"""The flat layout, and every optimizee of conf/: each is held to the same contract, and the known ones to formulas."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import DataError
from l2l_runner.layout import Layout
from l2l_runner.optimizees import OPTIMIZEES
from l2l_runner.optimizees.classification import METRIC_IMAGES
from l2l_runner.optimizees.data import load_images
from l2l_runner.runtime import Runtime
from problems import (
    DATA,
    EVERY_OPTIMIZEE,
    OPTIMIZEE_FILES,
    RUNTIME,
    needs_mnist,
    optimizee,
    problems,
    scattered,
)

# Layout


@st.composite
def layouts(draw):
    shapes = draw(st.lists(st.lists(st.integers(1, 4), max_size=3).map(tuple), min_size=1, max_size=4))
    return Layout({f"p{i}": shape for i, shape in enumerate(shapes)})


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_flatten_and_views_are_inverse(layout, count):
    flat = torch.randn(count, layout.size)
    views = layout.views(flat)
    assert {name: tuple(view.shape) for name, view in views.items()} == {
        name: (count, *shape) for name, shape in layout.shapes.items()
    }
    assert torch.equal(layout.flatten(views), flat)


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_views_and_flatten_are_inverse(layout, count):
    params = {name: torch.randn(count, *shape) for name, shape in layout.shapes.items()}
    flat = layout.flatten(params)
    assert flat.shape == (count, sum(math.prod(shape) for shape in layout.shapes.values()))
    back = layout.views(flat)
    assert list(back) == list(params)
    assert all(torch.equal(back[name], params[name]) for name in params)


@given(layouts(), st.integers(1, 4))
@settings(deadline=None)
def test_views_share_memory_and_gradient(layout, count):
    flat = torch.randn(count, layout.size, requires_grad=True)
    views = layout.views(flat)
    for view in views.values():
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    factors = {name: torch.randn_like(view) for name, view in views.items()}
    sum((view * factors[name]).sum() for name, view in views.items()).backward()
    assert torch.equal(flat.grad, layout.flatten(factors))


def test_flatten_follows_the_layout_and_not_the_dictionary():
    layout = Layout({"a": (2,), "b": (1,)})
    flat = layout.flatten({"b": torch.tensor([[3.0]]), "a": torch.tensor([[1.0, 2.0]])})
    assert flat.tolist() == [[1.0, 2.0, 3.0]]


# What holds for every optimizee


def test_every_optimizee_has_a_file_and_every_file_an_optimizee():
    assert set(OPTIMIZEES) <= set(OPTIMIZEE_FILES)
    assert {node["name"] for node in OPTIMIZEE_FILES.values()} == set(OPTIMIZEES)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_shapes_and_precision(stem):
    problem = problems(stem, 3)
    start = problem.init()
    assert {name: tuple(value.shape) for name, value in start.items()} == {
        name: (3, *shape) for name, shape in problem.layout.shapes.items()
    }
    assert optimizee(stem).layout() == problem.layout
    assert all(value.dtype == torch.float64 for value in start.values())
    loss = problem.loss(start, 0)
    assert loss.shape == (3,)
    assert loss.dtype == torch.float64
    assert loss.isfinite().all()
    for value in problem.metrics(start).values():
        assert value.shape == (3,)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_float32_is_float64_rounded(stem):
    # The numbers that make a problem are drawn in float64, whatever it is computed in.
    seeds = streams.seeds(0, "train", 0, 3)
    double = problems(stem, 3)
    single = optimizee(stem).sample(seeds, Runtime(data_root=DATA))
    start = single.init()
    for name, value in double.init().items():
        assert start[name].dtype == torch.float32
        assert torch.equal(start[name], value.float())
    loss = single.loss(start, 0)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), double.loss(double.init(), 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_a_batch_of_problems_is_the_problems_one_by_one(stem):
    problem = problems(stem, 4)
    flat = scattered(problem)
    losses, metrics = problem.loss(problem.layout.views(flat), 3), problem.metrics(problem.layout.views(flat))
    start = problem.layout.flatten(problem.init())
    for i, seed in enumerate(streams.seeds(0, "train", 0, 4)):
        alone = optimizee(stem).sample(seed.view(1), RUNTIME)
        assert torch.equal(alone.layout.flatten(alone.init())[0], start[i])
        views = alone.layout.views(flat[i : i + 1])
        torch.testing.assert_close(alone.loss(views, 3)[0], losses[i], rtol=1e-12, atol=1e-12)
        for name, value in alone.metrics(views).items():
            torch.testing.assert_close(value[0], metrics[name][i], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_a_loss_does_not_depend_on_the_other_problems(stem):
    problem = problems(stem, 3)
    flat = scattered(problem).requires_grad_()
    losses = problem.loss(problem.layout.views(flat), 1)
    for i in range(3):
        (grads,) = torch.autograd.grad(losses[i], flat, retain_graph=True)
        others = [j for j in range(3) if j != i]
        assert grads[i].abs().max() > 0
        assert (grads[others] == 0).all()


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_the_same_seed_is_the_same_problem(stem):
    one, other = problems(stem, 2), problems(stem, 2)
    start = one.layout.flatten(one.init())
    assert torch.equal(other.layout.flatten(other.init()), start)
    assert torch.equal(one.layout.flatten(one.init()), start)  # asking twice changes nothing
    views = one.layout.views(scattered(one))
    for step in (0, 5, 0):
        assert torch.equal(one.loss(views, step), other.loss(views, step))


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_other_seeds_are_other_problems(stem):
    one, other = problems(stem, 3, seed=0), problems(stem, 3, seed=1)
    flat = scattered(one)
    same_point = flat[:1].expand_as(flat)  # so that a difference is the problem's, not the point's
    grads = []  # losses may be as coarse as the return of a few episodes
    for problem in (one, other):
        leaf = same_point.clone().requires_grad_()
        grads += torch.autograd.grad(problem.loss(problem.layout.views(leaf), 0).sum(), leaf)
    starts = torch.cat([one.layout.flatten(one.init()), other.layout.flatten(other.init())])
    assert len(torch.cat(grads).unique(dim=0)) == 6
    assert len(starts.unique(dim=0)) == 6


DIFFERENTIABLE = [param for param in EVERY_OPTIMIZEE if param.values[0] != "maze"]
"""Those whose gradient is that of their loss, and no estimate of its expectation's, as a policy gradient is."""


@pytest.mark.parametrize("stem", DIFFERENTIABLE)
def test_gradients_agree_with_finite_differences(stem):
    problem = problems(stem, 2)
    flat, h = scattered(problem), 1e-7 if stem == "art" else 1e-5  # which has many kinks: ReLUs and maxima
    generator = torch.Generator().manual_seed(1)

    def losses(at):
        return problem.loss(problem.layout.views(at), 2)

    leaf = flat.clone().requires_grad_()
    (grads,) = torch.autograd.grad(losses(leaf).sum(), leaf)
    for _ in range(4):
        direction = torch.randn(flat.shape, dtype=flat.dtype, generator=generator)
        difference = (losses(flat + h * direction) - losses(flat - h * direction)) / (2 * h)
        torch.testing.assert_close((grads * direction).sum(1), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("stem", DIFFERENTIABLE)
def test_second_derivatives_agree_with_finite_differences(stem):
    problem = problems(stem, 2)
    flat, h = scattered(problem), 1e-8 if stem == "art" else 1e-6
    direction = torch.randn(flat.shape, dtype=flat.dtype, generator=torch.Generator().manual_seed(1))

    def gradient(at, create_graph=False):
        loss = problem.loss(problem.layout.views(at), 2)
        return torch.autograd.grad(loss.sum(), at, create_graph=create_graph)[0]

    leaf = flat.clone().requires_grad_()
    (product,) = torch.autograd.grad((gradient(leaf, create_graph=True) * direction).sum(), leaf)
    ahead, behind = (gradient((flat + sign * h * direction).requires_grad_()) for sign in (1, -1))
    assert product.abs().max() > 0
    rounding = 1e-6 if stem == "omniglot" else 1e-7  # of biases before a batch norm, whose gradient is zero
    torch.testing.assert_close(product, (ahead - behind) / (2 * h), rtol=1e-5, atol=rounding)


# Quadratics


@pytest.mark.parametrize("distribution", ["gaussian", "uniform"])
def test_quadratic_is_its_formula(distribution):
    problem = problems("quadratic", 5, distribution=distribution)
    flat = scattered(problem)
    weight, target, theta = problem.weight.numpy(), problem.target.numpy(), flat.numpy()
    expected = [np.linalg.norm(weight[i] @ theta[i] - target[i]) ** 2 for i in range(5)]
    np.testing.assert_allclose(problem.loss({"theta": flat}, 0).numpy(), expected, rtol=1e-12)
    leaf = flat.clone().requires_grad_()
    (grads,) = torch.autograd.grad(problem.loss({"theta": leaf}, 0).sum(), leaf)
    by_hand = [2 * weight[i].T @ (weight[i] @ theta[i] - target[i]) for i in range(5)]
    np.testing.assert_allclose(grads.numpy(), by_hand, rtol=1e-10)


def test_quadratics_do_not_change_with_the_step():
    problem = problems("quadratic", 3)
    start = problem.init()
    assert torch.equal(problem.loss(start, 0), problem.loss(start, 77))


@pytest.mark.parametrize(
    ("distribution", "mean", "variance"),
    [("gaussian", 0.0, 1.0), ("uniform", 0.5, 1 / 12)],
    ids=["gaussian", "uniform"],
)
def test_quadratics_are_distributed_as_they_say(distribution, mean, variance):
    problem = problems("quadratic", 2000, distribution=distribution, dim=10)
    for values in (problem.weight.flatten(), problem.target.flatten()):
        error = 5 * (variance / len(values)) ** 0.5
        assert values.mean().item() == pytest.approx(mean, abs=error)
        assert values.var().item() == pytest.approx(variance, rel=0.04)
        if distribution == "uniform":
            assert 0 <= values.min() < 0.01
            assert 0.99 < values.max() < 1
        else:
            assert values.min() < -3
            assert values.max() > 3


def test_weight_and_target_are_independent():
    problem = problems("quadratic", 5000, dim=1)
    pairs = torch.stack([problem.weight.flatten(), problem.target.flatten(), problem.init()["theta"].flatten()])
    assert (torch.corrcoef(pairs) - torch.eye(3)).abs().max() < 5 / 5000**0.5


STARTS = [
    pytest.param(stem, marks=needs_mnist if stem == "mnist" else ())
    for stem in OPTIMIZEES
    if "init_scale" in OPTIMIZEE_FILES[stem]
]


@pytest.mark.parametrize("stem", STARTS)
@pytest.mark.parametrize("scale", [0.0, 0.01, 2.0])
def test_starts_have_the_standard_deviation_that_is_asked_for(stem, scale):
    problem = problems(stem, 500, init_scale=scale)
    start = problem.layout.flatten(problem.init())
    assert start.std().item() == pytest.approx(scale, rel=5 / (2 * start.numel()) ** 0.5)
    assert start.mean().item() == pytest.approx(0, abs=5 * scale / start.numel() ** 0.5)


@pytest.mark.parametrize("stem", EVERY_OPTIMIZEE)
def test_no_two_coordinates_start_alike(stem):
    # As those of two layers of one shape would, if they were drawn from the same numbers. Batch norm's are 1 and 0.
    problem = problems(stem, 3, **({"hidden": [4, 4, 4]} if "hidden" in OPTIMIZEE_FILES[stem] else {}))
    start = torch.cat([value.flatten() for name, value in problem.init().items() if ".norm." not in name])
    assert len(start.unique()) == start.numel()


# Rosenbrock


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock_is_its_formula(dim):
    problem = problems("rosenbrock", 3, dim=dim)
    theta = scattered(problem)
    for i in range(3):
        x, b = theta[i].tolist(), problem.steepness[i].item()
        expected = sum((1 - x[j]) ** 2 + b * (x[j + 1] - x[j] ** 2) ** 2 for j in range(dim - 1))
        assert problem.loss({"theta": theta}, 0)[i].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5])
def test_rosenbrock_has_its_minimum_of_zero_at_ones(dim):
    problem = problems("rosenbrock", 3, dim=dim)
    ones = torch.ones(3, dim, dtype=torch.float64, requires_grad=True)
    loss = problem.loss({"theta": ones}, 0)
    assert (loss == 0).all()
    assert (torch.autograd.grad(loss.sum(), ones)[0] == 0).all()
    assert (problem.loss({"theta": scattered(problem)}, 0) > 0).all()


def test_rosenbrock_steepness_is_log_uniform():
    steepness = problems("rosenbrock", 5000, steepness=100.0).steepness
    assert steepness.min() >= 1
    assert steepness.max() < 100
    logs = steepness.log10()
    assert logs.mean().item() == pytest.approx(1, abs=0.05)
    assert logs.var().item() == pytest.approx(4 / 12, rel=0.05)


# Images

DATASETS = [pytest.param("digits"), pytest.param("mnist", marks=needs_mnist)]


def raw_mnist(name: str) -> np.ndarray:
    """A file of MNIST without torchvision: the header says how many dimensions and their sizes, then come bytes."""
    path = Path(DATA, "MNIST", "raw", name)
    content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def test_digits_are_split_into_1437_and_360_that_are_disjoint():
    parts = [load_images("digits", split, DATA, False, torch.device("cpu")) for split in ("train", "test")]
    assert [len(part.labels) for part in parts] == [1437, 360]
    pairs = [
        {(image.numpy().tobytes(), int(label)) for image, label in zip(part.images, part.labels, strict=True)}
        for part in parts
    ]
    whole = load_digits()
    everything = {
        (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(whole.images, whole.target, strict=True)
    }
    assert len(everything) == 1797  # no two digits are the same, so that sets will do
    assert not pairs[0] & pairs[1]
    assert pairs[0] | pairs[1] == everything
    assert all(part.labels.unique().tolist() == list(range(10)) for part in parts)


def test_digits_pixels_run_from_0_to_1():
    images = load_images("digits", "train", DATA, False, torch.device("cpu"))
    pixels = images.pixels(torch.arange(1437), torch.float64)
    assert pixels.shape == (1437, 64)
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert images.pixels(torch.zeros(2, 3, dtype=torch.long), torch.float32).shape == (2, 3, 64)


@needs_mnist
@pytest.mark.parametrize(("split", "prefix", "count"), [("train", "train", 60_000), ("test", "t10k", 10_000)])
def test_mnist_is_what_its_files_hold(split, prefix, count):
    images = load_images("mnist", split, DATA, False, torch.device("cpu"))
    assert images.images.shape == (count, 784)
    assert np.array_equal(images.images.numpy(), raw_mnist(f"{prefix}-images-idx3-ubyte").reshape(count, 784))
    assert np.array_equal(images.labels.numpy(), raw_mnist(f"{prefix}-labels-idx1-ubyte"))
    some = images.pixels(torch.arange(100), torch.float64)
    assert torch.equal(some, images.images[:100].double() / 255)


@pytest.mark.parametrize("pool", [1, 2, 3, 4])
@pytest.mark.parametrize("name", DATASETS)
def test_pooled_images_are_means_of_squares(name, pool):
    cpu = torch.device("cpu")
    whole, pooled = (load_images(name, "test", DATA, False, cpu, size) for size in (1, pool))
    side = math.isqrt(whole.images.shape[1])
    small = side // pool  # what is left over at the edge belongs to no square
    squares = whole.images.view(-1, side, side)[:50, : small * pool, : small * pool].numpy().astype(float)
    means = squares.reshape(50, small, pool, small, pool).mean(axis=(2, 4)).reshape(50, -1)
    assert pooled.images.shape == (len(whole.labels), small**2)
    assert np.abs(pooled.images[:50].numpy() - means).max() <= 0.5  # bytes, as the whole ones
    assert torch.equal(pooled.labels, whole.labels)
    assert pooled.white == whole.white
    problem = problems(name, 2, pool=pool)
    assert problem.layout.shapes["0.weight"] == (5, small**2)
    assert problem.loss(problem.init(), 0).isfinite().all()


def test_missing_mnist_is_said_with_its_place(tmp_path):
    with pytest.raises(DataError, match="MNIST is not in") as caught:
        load_images("mnist", "train", tmp_path, False, torch.device("cpu"))
    assert str(tmp_path) in str(caught.value)
    assert "L2L_DATA" in str(caught.value)


# Classification

ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh}


def plain_mlps(problem, flat, hidden, activation):
    """For each problem an ordinary module with storage of its own, in float64, with the problem's parameters in it."""
    pixels = problem.train.images.shape[1]
    modules = []
    for i in range(len(flat)):
        layers, width = [], pixels
        for units in hidden:
            layers += [nn.Linear(width, units), ACTIVATIONS[activation]()]
            width = units
        module = nn.Sequential(*layers, nn.Linear(width, 10)).double()
        module.load_state_dict({name: view[i] for name, view in problem.layout.views(flat).items()})
        modules.append(module)
    return modules


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("hidden", [[], [5], [5, 4]], ids=["logistic-regression", "one-layer", "two-layers"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_classification_is_a_plain_mlp_with_cross_entropy(name, hidden, activation):
    problem = problems(name, 3, hidden=hidden, activation=activation)
    flat = scattered(problem).requires_grad_()
    losses = problem.loss(problem.layout.views(flat), 4)
    (grads,) = torch.autograd.grad(losses.sum(), flat)
    train = problem.train
    for i, module in enumerate(plain_mlps(problem, flat.detach(), hidden, activation)):
        seed = streams.seeds(0, "train", i, 1)
        index = streams.integers(seed, 6, len(train.labels), "minibatch", 4)[0]
        expected = F.cross_entropy(module(train.images[index].double() / train.white), train.labels[index])
        expected.backward()
        torch.testing.assert_close(losses[i], expected, rtol=1e-12, atol=1e-12)
        plain = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        torch.testing.assert_close(grads[i], plain, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", DATASETS)
def test_accuracy_is_read_on_the_test_images(name):
    problem = problems(name, 3)
    flat = scattered(problem, scale=1.0)
    accuracy = problem.metrics(problem.layout.views(flat))["accuracy"]
    test = load_images(name, "test", DATA, False, torch.device("cpu"))
    count = min(METRIC_IMAGES, len(test.labels))
    for i, module in enumerate(plain_mlps(problem, flat, [5], "sigmoid")):
        guesses = module(test.images[:count].double() / test.white).argmax(1)
        right = sum(int(guess == label) for guess, label in zip(guesses, test.labels[:count], strict=True))
        assert accuracy[i].item() == pytest.approx(right / count, abs=1e-12)


def test_minibatches_follow_from_seed_and_step_alone():
    problem = problems("digits", 2)
    views = problem.layout.views(scattered(problem))
    in_order = torch.stack([problem.loss(views, step) for step in range(5)])
    backwards = torch.stack([problem.loss(views, step) for step in reversed(range(5))]).flip(0)
    assert torch.equal(in_order, backwards)
    assert len(in_order.flatten().unique()) == 10  # every step and every problem has a minibatch of its own


def test_the_stock_module_stays_as_it_is():
    # The problem's parameters are passed through it, and must never stick to it.
    problem = problems("digits", 2)
    before = dict(problem.module.named_parameters())
    flat = scattered(problem).requires_grad_()
    problem.loss(problem.layout.views(flat), 0).sum().backward()
    problem.metrics(problem.layout.views(flat.detach()))
    after = dict(problem.module.named_parameters())
    assert list(after) == list(before)
    for name, parameter in after.items():
        assert parameter is before[name]
        assert parameter.is_meta
        assert parameter.grad is None
        assert tuple(parameter.shape) == problem.layout.shapes[name]
