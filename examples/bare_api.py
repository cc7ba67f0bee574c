"""Meta-train an LSTM optimizer, compare it with tuned baselines, and save it: in Python alone, in about a minute."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import l2l_runner
from l2l_runner.evaluation.comparison import table
from l2l_runner.optimizees import Quadratic
from l2l_runner.optimizers import NAG, Adam, LSTMConfig

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--meta-steps", type=int, default=400)
parser.add_argument("--problems", type=int, default=512, help="held-out problems, and half as many to validate on")
parser.add_argument("--save", type=Path, default=Path(tempfile.gettempdir()) / "bare_api.pt")
arguments = parser.parse_args()

quadratic = Quadratic(
    name="quadratic",
    distribution="gaussian",
    dim=10,
    init_scale=0.01,
    batch=128,
    validation_problems=arguments.problems // 2,
    test_problems=arguments.problems,
)
lstm = LSTMConfig(hidden=20, layers=2, coordinatewise=True, preprocessing="none", p=10.0, output_scale=0.1)
trained = l2l_runner.meta_train(
    quadratic,
    lstm,
    meta_steps=arguments.meta_steps,
    on_validation=lambda step, curves: print(f"meta-step {step}: final loss {curves.score('final'):.3g}"),
)

baselines = {
    "nag": NAG(lr=0.01, momentum=0.9, weight_decay=0.0),
    "adam": Adam(lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0),
}
comparison = l2l_runner.compare({"lstm": trained.rule}, quadratic, baselines=baselines, steps=100)
print(table(comparison.summary()))

trained.save(arguments.save)
model = torch.nn.Linear(3, 1)
optimizer = l2l_runner.LearnedOptimizer(model.parameters(), arguments.save)  # in anybody's training loop
model(torch.ones(3)).square().sum().backward()
optimizer.step()
print(f"saved as {arguments.save}")
