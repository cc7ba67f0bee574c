"""Learned warp layers: WarpGrad against brute force, online and offline."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from l2l_runner.layout import Site
from l2l_runner.meta import MAML, Leap
from l2l_runner.optimizers import Adaptation
from l2l_runner.optimizers.warp import WarpConfig
from regression import LAYOUT, TASKS, WARP, Regression, adaptation, one, tasks, theta0, trajectory, warpgrad


def direct(optimizer: Adaptation, task: int, point: Tensor, number: int, steps: int, approximate: bool):
    """ℓ(θ − α∇ℓ(θ; φ); φ) at one point, and its gradient for φ, written out."""
    problem = Regression(torch.tensor([task]), optimizer.warp["middle"])
    first = steps + 1 + 2 * number
    leaf = point.unsqueeze(0).clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss(LAYOUT.views(leaf), first).sum(), leaf, create_graph=True)
    stepped = point - optimizer.config.lr * (slope.detach() if approximate else slope)
    meta_loss = problem.loss(LAYOUT.views(stepped), first + 1).sum()
    return meta_loss.detach(), torch.autograd.grad(meta_loss, list(optimizer.warp.parameters()))


@pytest.mark.parametrize("approximate", [False, True])
def test_warpgrad_online_is_the_mean_over_the_points_of_all_trajectories(approximate):
    optimizer = adaptation(warp=WARP, start="random")
    estimate = one(warpgrad(algorithm="online", approximate=approximate), optimizer, tasks())
    losses, grads = [], []
    for task in range(TASKS):
        points = trajectory(optimizer, task, 4)[1]
        for step in range(4):
            loss, found = direct(optimizer, task, points[step], step, 4, approximate)
            losses.append(loss), grads.append(found)
    torch.testing.assert_close(estimate.meta_loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    for grad, *expected in zip(estimate.grads, *grads, strict=True):
        torch.testing.assert_close(grad, torch.stack(expected).mean(0), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("approximate", [False, True])
def test_warpgrad_offline_with_single_points_goes_trajectory_by_trajectory(approximate):
    """While φ moves between one point and the next, the points stay those of the φ before."""
    optimizer = adaptation(warp=WARP, start="random")
    mine, begun = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
    points = [trajectory(begun, task, 4)[1] for task in range(TASKS)]
    expected = [(task, points[task][step]) for task in range(TASKS) for step in range(4)]
    problem = optimizer.adapt(tasks())
    found = warpgrad(approximate=approximate).estimates(optimizer, problem)
    for number, (estimate, (task, point)) in enumerate(zip(found, expected, strict=True)):
        loss, grads = direct(mine, task, point, number, 4, approximate)
        torch.testing.assert_close(estimate.meta_loss, loss, rtol=1e-12, atol=0)
        with torch.no_grad():
            for one_, other, a, b in zip(optimizer.parameters(), mine.parameters(), estimate.grads, grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)
                one_ -= 0.1 * a
                other -= 0.1 * b


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 13), epochs=st.integers(1, 3), shuffle=st.booleans())
def test_every_stored_point_is_replayed_once_an_epoch(batch, epochs, shuffle):
    estimator = warpgrad(batch=batch, epochs=epochs, shuffle=shuffle)
    orders = [estimator._order(tasks(), 4, epoch) for epoch in range(epochs)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(4 * TASKS))
    assert shuffle == (epochs > 1 and not torch.equal(orders[0], orders[-1])) or epochs == 1
    optimizer = adaptation(warp=WARP, start="random")
    count = len(list(estimator.estimates(optimizer, tasks())))
    assert count == epochs * -(-4 * TASKS // batch)


def test_warpgrad_in_one_batch_is_the_mean_of_its_points():
    optimizer = adaptation(warp=WARP, start="random")
    (whole,) = warpgrad(batch=100).estimates(optimizer, tasks())
    points = [trajectory(optimizer, task, 4)[1] for task in range(TASKS)]
    found = [direct(optimizer, task, points[task][step], 0, 4, False) for task in range(TASKS) for step in range(4)]
    torch.testing.assert_close(whole.meta_loss, torch.stack([loss for loss, _ in found]).mean(), rtol=1e-12, atol=0)


def test_warp_leap_learns_the_start_as_leap_does():
    optimizer = adaptation(warp=WARP)
    *replayed, last = warpgrad(leap=True).estimates(optimizer, tasks())
    leap = one(Leap(steps=4), optimizer, tasks())
    for (name, _), warped, alone, *others in zip(
        optimizer.named_parameters(), last.grads, leap.grads, *(estimate.grads for estimate in replayed), strict=True
    ):
        if name.startswith("start"):
            assert torch.equal(warped, alone)
            assert all(other is None for other in others)
        else:
            assert warped is None
            assert all(other is not None for other in others)
    online = one(warpgrad(leap=True, algorithm="online"), optimizer, tasks())
    assert all(grad is not None for grad in online.grads)
    assert torch.equal(theta0(optimizer, online.grads), theta0(optimizer, leap.grads))


def test_long_trajectories_are_thinned_to_the_memory():
    problem = tasks()
    single, double = torch.float32, torch.float64
    size = 4 * LAYOUT.size * TASKS
    for points, stored in [(10, range(10)), (5, range(0, 10, 2)), (4, range(0, 10, 3)), (1, range(0, 10, 10))]:
        assert list(warpgrad(steps=10, memory=points * size).stored(LAYOUT, TASKS, single)) == list(stored)
    assert list(warpgrad(steps=10, every=4).stored(LAYOUT, TASKS, single)) == [0, 4, 8]
    assert list(warpgrad(steps=10, every=4, memory=2 * size).stored(LAYOUT, TASKS, single)) == [0, 5]
    assert list(warpgrad(steps=10, every=4, memory=4 * size).stored(LAYOUT, TASKS, double)) == [0, 5]
    for dtype, size_said in [(single, "0.000687 MB"), (double, "0.00137 MB")]:
        said = warpgrad(steps=10, every=2).stores(LAYOUT, TASKS, dtype)
        assert said == f"5 points of each of 3 trajectories, {size_said}"
    optimizer = adaptation(warp=WARP, start="random")
    estimates = list(warpgrad(memory=4 * size).estimates(optimizer, problem))
    assert len(estimates) == 2 * TASKS


def test_warp_layers_stay_as_they_are_while_tasks_are_learned():
    optimizer = adaptation(warp=WARP)
    before = copy.deepcopy(optimizer.state_dict())
    for estimator in (MAML(steps=3), warpgrad(leap=True)):
        for estimate in estimator.estimates(optimizer, tasks()):
            assert not any(grad is not None and grad.requires_grad for grad in estimate.grads)
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state_dict().items())


@pytest.mark.parametrize("site", [Site(4, 2), Site(4, 0)], ids=["images", "vectors"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_new_warp_layers_change_nothing(site, layers, residual):
    layer = WarpConfig(layers=layers, residual=residual, batch_norm=False).build(site).double()
    x = F.relu(torch.randn(2, 4, *([5, 5] if site.dims else []), dtype=torch.float64))
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    linear = sum(parameter.numel() for parameter in layer.parameters())
    assert linear == layers * (4 * 4 * (9 if site.dims else 1) + 4)


def test_batch_norm_in_warp_layers_takes_the_statistics_of_what_comes_in():
    layer = WarpConfig(layers=1, residual=False, batch_norm=True).build(Site(4, 2)).double()
    x = 5 + 3 * torch.randn(6, 4, 5, 5, dtype=torch.float64)
    y = layer.eval()(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not list(layer.buffers())
