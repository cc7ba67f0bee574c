"""`python -m benchmarks.warpgrad [threads] [--steps 100]`: the cost of a meta-step of Warp-Leap on Omniglot.

5 alphabets, minibatches of 20 drawings, 64 filters, offline WarpGrad, every point replayed once. The variants take
their meta-steps in turn, so that other load on the machine affects all alike. The table shows medians. Omniglot must
be in the folder named by L2L_DATA, or in data/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from l2l_runner.meta import WarpGrad
from l2l_runner.optimizees import omniglot
from l2l_runner.optimizers import AdaptationConfig
from l2l_runner.optimizers.warp import WarpConfig
from l2l_runner.runtime import Runtime

OPTIMIZEE = omniglot.Omniglot(
    name="omniglot", pretrain_alphabets=25, test_alphabets=10, split_seed=0, filters=64, minibatch=20, augment=True,
    batch_norm="batch", read_every=20, batch=5, validation_problems=10, test_problems=20,
)  # fmt: skip
OPTIMIZER = AdaptationConfig(
    lr=0.1, start="learned", fresh=(), own=False, transform="none",
    warp=WarpConfig(layers=1, residual=False, batch_norm=False),
)  # fmt: skip
TEN = WarpGrad(
    steps=100, algorithm="offline", approximate=False, batch=10, epochs=1, shuffle=True, every=1, memory=1 << 31,
    leap=True,
)  # fmt: skip
SEQUENTIAL = replace(TEN, batch=1, shuffle=False)
WAYS = {
    "one point an update, one image distorted at a time": (SEQUENTIAL, True),
    "one point an update": (SEQUENTIAL, False),
    "ten points an update (meta=warpgrad)": (TEN, False),
    "ten points an update, meta.approximate=true": (replace(TEN, approximate=True), False),
}


def one_by_one(distorted: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap the distortion to process one image at a time, as a data loader does."""

    def each(images: Tensor, numbers: Tensor) -> Tensor:
        return torch.cat([distorted(images[i : i + 1], numbers[i : i + 1]) for i in range(len(images))])

    return each


def seconds(estimator: WarpGrad, distort: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Measure one meta-step, with plain gradient descent as the meta-optimizer."""
    runtime = Runtime(data_root=Path(os.environ.get("L2L_DATA", "data")))
    optimizer = OPTIMIZER.build(OPTIMIZEE.layout(), torch.Generator().manual_seed(0))
    problem = OPTIMIZEE.sample(OPTIMIZEE.seeds(0, "train", 0, OPTIMIZEE.batch), runtime)
    optimizer.initialise_from(problem)
    with mock.patch.object(omniglot, "distorted", distort):
        begun = time.perf_counter()
        for estimate in estimator.estimates(optimizer, problem):
            with torch.no_grad():
                for parameter, grad in zip(optimizer.parameters(), estimate.grads, strict=True):
                    if grad is not None:
                        parameter -= 0.1 * grad
        return time.perf_counter() - begun


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("threads", nargs="?", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100, help="steps of a trajectory (100)")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(given.repeats + 1):  # the first warms up
        for name, (estimator, single) in WAYS.items():
            distort = one_by_one(omniglot.distorted) if single else omniglot.distorted
            times[name].append(seconds(replace(estimator, steps=given.steps), distort))
    medians = {name: statistics.median(samples[1:]) for name, samples in times.items()}
    first = next(iter(medians.values()))
    print(
        f"| a meta-step of 5 tasks × {given.steps} steps, {given.threads} thread(s) | seconds | times |\n|---|---|---|"
    )
    for name, median in medians.items():
        print(f"| {name} | {median:.3g} | {first / median:.3g} × |")


if __name__ == "__main__":
    main()
