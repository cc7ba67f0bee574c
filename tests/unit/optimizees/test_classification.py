"""Multilayer perceptrons against plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.optimizees.classification import METRIC_IMAGES
from l2l_runner.optimizees.data import load_images
from problems import (
    DATA,
    needs_mnist,
    problems,
    scattered,
)

# Images

DATASETS = [pytest.param("digits"), pytest.param("mnist", marks=needs_mnist)]

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
