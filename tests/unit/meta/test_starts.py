"""Learned starting points: their estimators against formulas, brute force and finite differences."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from l2l_runner.meta import FOMAML, MAML, Leap, Reptile
from l2l_runner.optimizers import Adaptation
from regression import LAYOUT, TASKS, WARP, adaptation, one, tasks, theta0, trajectory, warpgrad


def final_loss(optimizer: Adaptation, steps: int) -> Tensor:
    """The mean loss that all tasks come to, by plain descent."""
    return torch.stack([trajectory(optimizer, task, steps)[2][-1] for task in range(TASKS)]).mean()


@pytest.mark.parametrize("warp", [None, WARP], ids=["plain", "warped"])
@pytest.mark.parametrize("transform", ["none", "metasgd"])
def test_maml_is_the_slope_of_the_loss_that_steps_lead_to(warp, transform):
    optimizer = adaptation(warp=warp, transform=transform)
    estimate = one(MAML(steps=3), optimizer, tasks())
    if transform == "none":
        torch.testing.assert_close(estimate.meta_loss, final_loss(optimizer, 3), rtol=1e-12, atol=0)
    for (name, parameter), grads in zip(optimizer.named_parameters(), estimate.grads, strict=True):
        for place in range(0, parameter.numel(), 2):
            values = []
            for shift in (1e-5, -1e-5):
                moved = copy.deepcopy(optimizer)
                with torch.no_grad():
                    dict(moved.named_parameters())[name].view(-1)[place] += shift
                values.append(one(MAML(steps=3), moved, tasks()).meta_loss)
            slope = (values[0] - values[1]) / 2e-5
            torch.testing.assert_close(grads.view(-1)[place], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_first_order_maml_takes_the_last_slope_and_is_not_maml(steps):
    optimizer = adaptation()
    estimate = one(FOMAML(steps=steps), optimizer, tasks())
    expected = torch.stack([trajectory(optimizer, task, steps)[3][-1] for task in range(TASKS)]).mean(0)
    torch.testing.assert_close(theta0(optimizer, estimate.grads), expected, rtol=1e-12, atol=1e-15)
    exact = theta0(optimizer, one(MAML(steps=steps), optimizer, tasks()).grads)
    assert (exact - expected).norm() > 0.05 * exact.norm()


def test_without_steps_between_both_mamls_are_the_plain_gradient():
    optimizer = adaptation(lr=1e-12)
    torch.testing.assert_close(
        theta0(optimizer, one(FOMAML(steps=1), optimizer, tasks()).grads),
        theta0(optimizer, one(MAML(steps=1), optimizer, tasks()).grads),
        rtol=1e-9,
        atol=1e-12,
    )


def test_reptile_points_to_where_the_steps_end():
    optimizer = adaptation()
    ends = torch.stack([trajectory(optimizer, task, 5)[1] for task in range(TASKS)])
    estimate = one(Reptile(steps=5), optimizer, tasks())
    torch.testing.assert_close(
        theta0(optimizer, estimate.grads), (ends[:, 0] - ends[:, -1]).mean(0), rtol=1e-12, atol=1e-15
    )


def test_leap_is_its_formula():
    optimizer = adaptation(lr=0.9)  # large enough for losses to go up, too
    total, rose = torch.zeros(LAYOUT.size, dtype=torch.float64), 0
    for task in range(TASKS):
        _, points, losses, slopes = trajectory(optimizer, task, 6)
        for i in range(6):
            step, change = points[i + 1] - points[i], losses[i + 1] - losses[i]
            rose += int(change > 0)
            change = -change.abs()
            total += (-step - change * slopes[i]) / (step.square().sum() + change.square()).sqrt() / TASKS
    assert 0 < rose < 6 * TASKS
    estimate = one(Leap(steps=6), optimizer, tasks())
    torch.testing.assert_close(theta0(optimizer, estimate.grads), total, rtol=1e-12, atol=1e-15)


def test_leap_shortens_the_path():
    optimizer = adaptation(lr=0.05)
    before = _length(optimizer)
    grads = one(Leap(steps=5), optimizer, tasks()).grads
    with torch.no_grad():
        for parameter, grad in zip(optimizer.parameters(), grads, strict=True):
            parameter -= 0.02 * grad
    assert _length(optimizer) < before


def _length(optimizer: Adaptation) -> float:
    total = 0.0
    for task in range(TASKS):
        _, points, losses, _ = trajectory(optimizer, task, 5)
        steps, changes = points.diff(dim=0), losses.diff()
        total += (steps.square().sum(1) + changes.square()).sqrt().sum().item()
    return total


ESTIMATORS: dict[str, Any] = {
    "maml": MAML(steps=3),
    "fomaml": FOMAML(steps=3),
    "reptile": Reptile(steps=3),
    "leap": Leap(steps=3),
    "offline": warpgrad(leap=True, batch=5),
    "online": warpgrad(leap=True, algorithm="online"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_tasks_together_are_tasks_one_by_one(name):
    """A batch's estimate is the mean of its tasks'; offline, of those in a batch of points."""
    estimator = ESTIMATORS[name]
    if name == "offline":
        estimator = replace(estimator, batch=100)
    optimizer = adaptation(warp=WARP if "line" in name else None)
    together = list(estimator.estimates(optimizer, tasks()))
    alone = [list(estimator.estimates(optimizer, tasks(task))) for task in range(TASKS)]
    for estimate, *singles in zip(together, *alone, strict=True):
        for grad, *others in zip(estimate.grads, *(single.grads for single in singles), strict=True):
            assert all((other is None) == (grad is None) for other in others)
            if grad is not None:
                torch.testing.assert_close(grad, torch.stack(others).mean(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_of_a_meta_step_is_left_behind(name):
    """No graph survives: the number of living tensors is the same after two meta-steps and after eight."""
    optimizer = adaptation(warp=WARP if "line" in name else None)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    counts = []
    gc.freeze()  # what lived before is not looked at
    for step in range(8):
        for estimate in ESTIMATORS[name].estimates(optimizer, tasks()):
            for parameter, grad in zip(optimizer.parameters(), estimate.grads, strict=True):
                parameter.grad = grad
        if step in (1, 7):
            counts.append(living())
    gc.unfreeze()
    assert counts[0] > 0
    assert counts[0] == counts[1]
