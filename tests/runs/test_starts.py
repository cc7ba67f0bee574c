"""Whole runs that learn where to start."""

from __future__ import annotations

import pytest
import torch

from problems import problems
from running import last, same_bits, train


@pytest.mark.parametrize("name", ["maml", "leap"])
def test_a_run_that_is_resumed_is_one_that_was_not_stopped(tmp_path, name):
    few = ["optimizee.batch=2", "optimizee.validation_problems=2", "unroll.steps=5", "meta.validate_every=2"]
    few += [f"optimizer={name}", "evaluate=false", "device=cpu", "device.threads=1", "device.dtype=float64"]
    assert train(tmp_path / "whole", *few, "meta.steps=4").code == 0
    assert train(tmp_path / "parts", *few, "meta.steps=2").code == 0
    assert train(None, *few, "meta.steps=4", f"resume={tmp_path / 'parts'}").code == 0
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert same_bits(whole["optimizer"], parts["optimizer"])
    assert whole["optimizer"]["start./theta"].abs().sum() > 0


def test_sgd_as_meta_optimizer_takes_plain_steps(tmp_path):
    few = ["optimizee.batch=2", "optimizee.validation_problems=2", "unroll.steps=3", "meta.validate_every=1"]
    few += ["optimizer=reptile", "meta.lr=1", "evaluate=false", "device=cpu", "device.threads=1"]
    assert train(tmp_path / "run", *few, "meta.steps=1", "optimizer.lr=0.01").code == 0
    # Reptile at a rate of 1 goes to the mean of where the tasks end.
    problem = problems("quadratic", 2, dim=10, batch=2)
    theta = problem.layout.flatten(problem.init())[:1].expand(2, -1)
    for step in range(3):
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss(problem.layout.views(leaf), step).sum(), leaf)
        theta = theta - 0.01 * slope
    found = last(tmp_path / "run")["optimizer"]["start./theta"].double()
    torch.testing.assert_close(found, theta.mean(0), rtol=1e-4, atol=1e-5)
