"""`python -m benchmarks.processes [rounds]`: the cost of a meta-step in one process and in two.

All arms start first. Then they take meta-steps in turn, one arm at a time, so that other load on the machine affects
all of them alike. The table shows medians over the rounds, and medians of each round's ratio to one process with one
thread.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from l2l_runner.launch.hydra import ENVIRONMENT
from l2l_runner.launch.overrides import conf_folder

SETTINGS = {
    "quadratic, 128 × 10": ["optimizee=quadratic"],
    "MLP 64-20-10 (1,510), 8 problems": ["optimizee=digits", "meta_batch=8"],
    "the same, 2,048 coordinates sampled": ["optimizee=digits", "meta_batch=8", "meta.coordinates=2048"],
}
ARMS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 1)}
SECONDS = 0.5  # target duration of an arm's turn


def work(place: int, processes: int, threads: int, port: int, overrides: list[str], orders: Connection) -> None:
    """Run one process of an arm: take as many meta-steps as requested, and send the seconds they took."""
    address = {"RANK": place, "WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in address.items()})
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf
    from tqdm import tqdm

    from l2l_runner import distributed, schema
    from l2l_runner.runs.folder import RunFolder
    from l2l_runner.runtime import Runtime, machine_settings
    from l2l_runner.training.meta_training import MetaTraining

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("train", overrides), resolve=True)
    with (
        distributed.joined() if processes > 1 else nullcontext(),
        tempfile.TemporaryDirectory() as folder,
        machine_settings(threads),
        tqdm(disable=True) as bar,
    ):
        training = MetaTraining(schema.parse_train(composed), RunFolder(Path(folder)), Runtime())
        while steps := orders.recv():
            begun = time.perf_counter()
            for _ in range(steps):
                training._meta_step(bar)
            orders.send(time.perf_counter() - begun)


@dataclass(frozen=True)
class Arm:
    """The processes of an arm, and the connections to them."""

    processes: list[Any]
    lines: list[Connection]

    @classmethod
    def started(cls, count: int, threads: int, overrides: list[str]) -> Arm:
        """Start an arm's processes."""
        spawning = multiprocessing.get_context("spawn")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        pipes = [spawning.Pipe() for _ in range(count)]
        work_of = [(place, count, threads, port, overrides, theirs) for place, (_, theirs) in enumerate(pipes)]
        processes = [spawning.Process(target=work, args=given) for given in work_of]
        for process in processes:
            process.start()
        return cls(processes, [ours for ours, _ in pipes])

    def seconds(self, steps: int) -> float:
        """Measure so many meta-steps, in seconds per meta-step."""
        for line in self.lines:
            line.send(steps)
        return max(line.recv() for line in self.lines) / steps

    def end(self) -> None:
        """End the processes."""
        for line in self.lines:
            line.send(0)
        for process in self.processes:
            process.join()


def main() -> None:
    """Print a table in Markdown."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    print(f"| ms per meta-step (speed-up) | {' | '.join(SETTINGS)} |\n|---|{'---|' * len(SETTINGS)}")
    cells: dict[str, list[str]] = {name: [] for name in ARMS}
    for overrides in SETTINGS.values():
        arms = {name: Arm.started(*how, overrides) for name, how in ARMS.items()}
        first = next(iter(arms.values()))
        first.seconds(2)  # warms up
        steps = max(1, round(SECONDS / first.seconds(3)))
        for arm in arms.values():
            arm.seconds(steps)
        samples = [{name: arm.seconds(steps) for name, arm in arms.items()} for _ in range(rounds)]
        for name, arm in arms.items():
            faster = statistics.median(sample[next(iter(arms))] / sample[name] for sample in samples)
            cells[name].append(f"{1e3 * statistics.median(sample[name] for sample in samples):.3g} ({faster:.2f})")
            arm.end()
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


if __name__ == "__main__":
    main()
