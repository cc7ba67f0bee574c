"""Joint training: the body with all tasks, and a head with each."""

from __future__ import annotations

import copy

import torch

from l2l_runner.meta import Joint
from regression import TASKS, WIDTH, Regression, adaptation, tasks


def test_joint_training_learns_the_body_with_all_tasks_and_a_head_with_each():
    optimizer = adaptation(fresh=("head.*",), own=True)
    assert optimizer.heads["/head/b"].shape == (TASKS, WIDTH)
    mine = copy.deepcopy(optimizer)
    problem = tasks(0, 2)
    for step, estimate in enumerate(Joint(steps=3).estimates(optimizer, problem)):
        loss = torch.zeros((), dtype=torch.float64)
        for task in (0, 2):
            params = {"w": mine.start["/w"].unsqueeze(0), "head.b": mine.heads["/head/b"][task].unsqueeze(0)}
            loss = loss + Regression(torch.tensor([task])).loss(params, step).sum() / 2
        expected = torch.autograd.grad(loss, list(mine.parameters()))
        torch.testing.assert_close(estimate.meta_loss, loss.detach(), rtol=1e-12, atol=0)
        assert (expected[1][1] == 0).all()  # the head of the task that isn't there
        with torch.no_grad():
            for a, b, grad, reference in zip(
                optimizer.parameters(), mine.parameters(), estimate.grads, expected, strict=True
            ):
                torch.testing.assert_close(grad, reference, rtol=1e-11, atol=1e-15)
                a -= 0.1 * grad
                b -= 0.1 * reference
    # A task that it has been trained on has its head, another one a new one.
    heads = optimizer.adapt(tasks(1, TASKS + 4)).init()["head.b"]
    assert torch.equal(heads[0], optimizer.heads["/head/b"][1])
    assert torch.equal(heads[1], tasks(TASKS + 4).init()["head.b"][0])
