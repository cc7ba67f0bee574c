"""`python -m benchmarks.sweep [key=value …]`: the gain of a second worker in a sweep.

`sweep=joblib` runs the same sweep of four meta-trainings with one worker and with two, in turn. The table shows
medians of three and their ratio. Arguments are further settings of the jobs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.machine import describe
from benchmarks.workers import busy_seconds

JOBS = ["optimizee=quadratic", "meta.steps=100", "meta.validate_every=100", "evaluate=false", "device=cpu"]
JOBS += ["meta.lr=0.001,0.003,0.01,0.03"]
WORKERS = (1, 2)
ROUNDS = 3


def seconds(workers: int, arguments: list[str]) -> float:
    """Measure the wall time of the whole sweep, including the start of Python and the workers."""
    with tempfile.TemporaryDirectory() as folder:
        where = ["sweep=joblib", f"hydra.launcher.n_jobs={workers}", f"hydra.sweep.dir={folder}/sweep"]
        command = [sys.executable, "-m", "l2l_runner.train", "-m", *JOBS, *arguments, *where]
        begun = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - begun


def main() -> None:
    """Print a table in Markdown."""
    machine = describe()
    print(f"{machine['cores']} cores of {machine['processor']}\n")
    print(f"| workers | s, median of {ROUNDS} | all |\n|---|---|---|")
    begun, busy = time.perf_counter(), busy_seconds()
    samples: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(ROUNDS):
        for workers, taken in samples.items():
            taken.append(seconds(workers, sys.argv[1:]))
    medians = {workers: statistics.median(taken) for workers, taken in samples.items()}
    for workers, taken in samples.items():
        print(f"| {workers} | {medians[workers]:.1f} | {', '.join(f'{sample:.1f}' for sample in taken)} |")
    print(f"\nratio: {medians[1] / medians[2]:.2f}")
    if busy is not None:
        print(f"busy cores meanwhile, with all else: {(busy_seconds() - busy) / (time.perf_counter() - begun):.2f}")


if __name__ == "__main__":
    main()
