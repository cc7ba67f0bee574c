"""`python -m benchmarks.drop_in [threads]`: the cost of a step of LearnedOptimizer, beside torch.optim.Adam.

Each column is a set of parameters with gradients of the right size. The optimizers step in turn, one at a time, so each
step starts on a cold cache. The table shows medians.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import nn

import l2l_runner

SETS = {
    "MLP 784-20-10 (15,910)": [(20, 784), (20,), (10, 20), (10,)],
    "20 layers of 223 × 223 (1,000,000)": [(223, 223), (223,)] * 20,
}
REPEATS = 15


def optimizers(shapes: list[tuple[int, ...]]) -> dict[str, torch.optim.Optimizer]:
    """Create one optimizer of each kind, on its own parameters."""

    def params() -> list[nn.Parameter]:
        made = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        for param in made:
            param.grad = torch.randn(param.shape)
        return made

    return {
        "LearnedOptimizer, C++ kernel": l2l_runner.LearnedOptimizer(params(), "mnist", kernel="cpp"),
        "LearnedOptimizer, PyTorch kernel": l2l_runner.LearnedOptimizer(params(), "mnist", kernel="torch"),
        "torch.optim.Adam, foreach": torch.optim.Adam(params(), foreach=True),
    }


def main() -> None:
    """Print a table in Markdown."""
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    print(f"| ms per step, {torch.get_num_threads()} thread(s) | {' | '.join(SETS)} |\n|---|{'---|' * len(SETS)}")
    rows: dict[str, list[str]] = {}
    for shapes in SETS.values():
        times: dict[str, list[float]] = {}
        these = optimizers(shapes)
        for _ in range(REPEATS + 2):  # the first two warm up
            for name, optimizer in these.items():
                begun = time.perf_counter()
                optimizer.step()
                times.setdefault(name, []).append(time.perf_counter() - begun)
        states = {
            name: sum(value.nbytes for state in optimizer.state.values() for value in state.values())
            for name, optimizer in these.items()
        }
        for name, samples in times.items():
            cell = f"{1e3 * statistics.median(samples[2:]):.3g} ({states[name] / 1e6:.3g} MB of state)"
            rows.setdefault(name, []).append(cell)
    for name, cells in rows.items():
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
