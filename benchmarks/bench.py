"""`python -m benchmarks.bench`: the cost of a meta-training window, of all variants interleaved in one run."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks import machine, problems, report
from benchmarks.workers import VARIANTS, environment

ROOT = Path(__file__).parents[1]
SIZES, UNROLLS = (1280, problems.MLP, 1_000_000), (20, 100)
BURST = 0.1  # seconds: a sample averages as many short windows as fit
SLOW = 5.0  # seconds: in longer windows the warm-up is negligible, so the first one counts
AGREE = 1e-3  # relative difference of meta-losses up to which variants compute the same thing


@dataclass(frozen=True)
class Cell:
    """The size, unroll and number of threads that all variants are measured at."""

    coordinates: int
    steps: int
    threads: int


@dataclass
class Measurement:
    """The measurement of one variant in one cell.

    Attributes:
        samples: seconds per window.
        cores: number of cores that it used, on average.
        others: number of cores that other processes used meanwhile, for each sample.
        memory: peak growth of resident memory, bytes.
        meta_loss: of the first window.
        skipped: why it was not measured, or not to the end.
        note: what a reader must know of the samples.
    """

    variant: str
    coordinates: int
    steps: int
    threads: int
    samples: list[float] = field(default_factory=list)
    first: float | None = None
    cores: float | None = None
    others: list[float] = field(default_factory=list)
    memory: int | None = None
    meta_loss: float | None = None
    skipped: str | None = None
    note: str | None = None


class Failed(Exception):
    """A worker ended unexpectedly; the message says how."""


class Worker:
    """A variant in its own process and process group, so that only the parent receives Ctrl-C."""

    def __init__(self, name: str, python: str, file: Path, cell: Cell, folder: Path, briefly: bool):
        self.log = folder / f"{name}.log"
        command = [python, "-m", "benchmarks.workers", name, str(file)]
        command += ["--steps", str(cell.steps), "--threads", str(cell.threads)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(name, cell.threads, dict(os.environ), briefly),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )

    def ask(self, seconds: float) -> dict[str, Any]:
        """Let the worker measure about `seconds` of windows.

        Raises:
            Failed: the worker ended.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"seconds": seconds}), file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next line that the worker writes.

        Raises:
            Failed: the worker ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self.process.wait()
        if code == -signal.SIGKILL:
            raise Failed("killed by the system, probably out of memory")
        said = self.log.read_text().strip().splitlines()
        raise Failed(f"failed: {said[-1] if said else f'exit code {code}'}")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Bench:
    """One run of the bench, cell by cell, from small to large.

    Attributes:
        measurements: all so far.
        versions: of the libraries measured.
    """

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.measurements: list[Measurement] = []
        self.versions: dict[str, str] = {}
        self.peaks: dict[int, dict[str, float]] = {}

    def cells(self) -> list[Cell]:
        given = self.given
        sizes, unrolls, threads = sorted(given.sizes), sorted(given.unrolls), sorted(given.threads)
        return [Cell(size, steps, number) for size in sizes for steps in unrolls for number in threads]

    def run(self, folder: Path) -> None:
        """Measure all requested variants.

        Args:
            folder: for temporary files.
        """
        fma = machine.build_fma(folder)
        self._peaks(fma)
        total = len(self.cells()) * len(self.given.variants)
        with tqdm(total=total, unit="variant", disable=None) as bar:
            for cell in self.cells():
                bar.set_description(f"{cell.coordinates} × {cell.steps}, {report.threads(cell.threads)}")
                self._cell(cell, folder)
                bar.update(len(self.given.variants))
        self._peaks(fma)

    def _peaks(self, fma: Path | None) -> None:
        """Keep the best peak seen: it is measured before and after the run, because it varies."""
        for threads in self.given.threads:
            best = self.peaks.setdefault(threads, {})
            for kind, gflops in machine.peak(threads, fma).items():
                best[kind] = max(gflops, best.get(kind, 0.0))

    def _cell(self, cell: Cell, folder: Path) -> None:
        file = folder / "problem.npz"
        problems.save(file, problems.network(), problems.problem(cell.coordinates, cell.steps))
        found = [Measurement(name, cell.coordinates, cell.steps, cell.threads) for name in self.given.variants]
        for measurement in found:
            measurement.skipped = self._reason(measurement)
        before = len(self.measurements)
        self.measurements += found  # before measuring, so that those of an interrupted cell are kept
        chosen = [m for m in found if m.skipped is None]
        with self._started(chosen, file, cell, folder) as workers:
            self._first_windows(workers)
            self._rounds(workers)
        check_agreement(self.measurements[before:])

    def _reason(self, wanted: Measurement) -> str | None:
        """Return why a variant is left out, or None."""
        kind = VARIANTS[wanted.variant]
        if kind.only not in (None, wanted.coordinates):
            return f"measured only at {kind.only:,} coordinates"
        if wanted.variant.startswith("jax") and self.given.jax_python is None:
            return "JAX is not installed: `make bench-peers` measures it too"
        size = wanted.coordinates * wanted.steps
        free, needed = machine.free_memory(), kind.bytes * size
        if free is not None and needed > 0.8 * free:
            return f"would need about {needed / 1e9:.0f} GB"
        same = (m for m in self.measurements if (m.variant, m.threads) == (wanted.variant, wanted.threads))
        rates = [report.median(m.samples) / (m.coordinates * m.steps) for m in same if m.samples]
        if rates and rates[-1] * size > self.given.longest:
            return f"would take about {rates[-1] * size:.0f} s per window"
        return None

    @contextlib.contextmanager
    def _started(
        self, chosen: Sequence[Measurement], file: Path, cell: Cell, folder: Path
    ) -> Iterator[list[tuple[Measurement, Worker]]]:
        """Start the workers and yield those that are ready, each with its measurement; end all of them afterwards."""
        workers = []
        try:
            for m in chosen:
                python = self.given.jax_python if m.variant.startswith("jax") else sys.executable
                workers.append((m, Worker(m.variant, python, file, cell, folder, self.given.brief_peers)))
            yield [(m, worker) for m, worker in workers if self._ready(m, worker)]
        finally:
            for _, worker in workers:
                worker.close()

    def _ready(self, measurement: Measurement, worker: Worker) -> bool:
        try:
            answer = worker.answer()
        except Failed as why:
            measurement.skipped = str(why)
            return False
        measurement.skipped = answer.get("unavailable")
        self.versions |= answer.get("versions", {})
        return measurement.skipped is None

    def _first_windows(self, workers: list[tuple[Measurement, Worker]]) -> None:
        for m, worker in list(workers):
            try:
                answer = worker.ask(0)
            except Failed as why:
                m.skipped = str(why)
                workers.remove((m, worker))
                continue
            m.first, m.meta_loss, m.memory, m.cores = (
                answer[key] for key in ("seconds", "meta_loss", "memory", "cores")
            )
            if answer["seconds"] > SLOW:
                self._keep(m, answer)

    def _rounds(self, workers: list[tuple[Measurement, Worker]]) -> None:
        """Measure each variant in turn, round by round, until it has its number of samples or has used its time."""
        spent = sum(sum(m.samples) for m, _ in workers)
        for _ in range(self.given.repeats):
            for m, worker in list(workers):
                expected = max(BURST, m.samples[-1] if m.samples else m.first or 0.0)
                enough = len(m.samples) >= (1 if expected > SLOW else 3)
                if len(m.samples) >= self.given.repeats or (enough and spent + expected > self.given.budget):
                    continue
                time.sleep(0.01)  # lets the threads of the previous worker go to sleep
                begun = time.perf_counter()
                try:
                    answer = worker.ask(BURST)
                except Failed as why:
                    m.note = str(why)
                    workers.remove((m, worker))
                    continue
                spent += time.perf_counter() - begun
                self._keep(m, answer)

    @staticmethod
    def _keep(measurement: Measurement, answer: dict[str, Any]) -> None:
        measurement.samples.append(answer["seconds"])
        measurement.cores, measurement.memory = answer["cores"], answer["memory"]
        if answer["others"] is not None:
            measurement.others.append(answer["others"])

    def content(self, begun: datetime, interrupted: bool) -> dict[str, Any]:
        """Return the results in the form of bench.json."""
        given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(self.given).items()}
        given["jax_python"] = None if self.given.jax_python is None else "given"  # the path is private
        given.pop("out")
        return {
            "begun": begun.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "interrupted": interrupted,
            "machine": machine.describe(),
            "versions": self.versions,
            "settings": given,
            "gflops": {str(threads): found for threads, found in self.peaks.items()},
            "measurements": [asdict(m) | {"median": report.median(m.samples)} for m in self.measurements],
        }


def check_agreement(cell: Sequence[Measurement]) -> None:
    """Note each variant whose meta-loss differs from the others', because it does not compute the same thing."""
    met = [m for m in cell if m.meta_loss is not None and m.variant != "optimizee"]
    middle = report.median([m.meta_loss for m in met if m.meta_loss is not None])
    for m in met:
        if middle is None or m.meta_loss is None or not abs(m.meta_loss - middle) <= AGREE * abs(middle):
            m.note = f"its meta-loss is {m.meta_loss}, the others' {middle}"


def numbers(text: str) -> list[int]:
    """Parse positive whole numbers, separated by commas."""
    values = [int(part) for part in text.replace("_", "").split(",")]
    if min(values) < 1:
        raise ValueError(text)
    return values


def names(text: str) -> list[str]:
    """Parse variants, separated by commas."""
    values = text.split(",")
    unknown = [value for value in values if value not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown variant {unknown[0]!r}; expected some of {', '.join(VARIANTS)}")
    return values


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    threads = sorted({1, min(2, os.cpu_count() or 1)})
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the two smaller sizes, windows of 20, 3 samples")
    parser.add_argument("--sizes", type=numbers, metavar="N,…", help="coordinates (1280,15910,1000000)")
    parser.add_argument("--unrolls", type=numbers, metavar="N,…", help="steps of a window (20,100)")
    parser.add_argument("--threads", type=numbers, metavar="N,…", default=threads, help="(1,2)")
    parser.add_argument("--variants", type=names, metavar="NAME,…", help=", ".join(VARIANTS))
    parser.add_argument("--repeats", type=int, metavar="N", help="largest number of samples per variant (7)")
    parser.add_argument("--budget", type=float, metavar="SECONDS", default=40, help="of one size, unroll and threads")
    parser.add_argument("--longest", type=float, metavar="SECONDS", default=60, help="skip slower windows")
    parser.add_argument("--jax-python", metavar="PATH", help="a Python with JAX, if this one has none")
    parser.add_argument("--brief-peers", action="store_true", help="let peers' threads spin as briefly as ours")
    parser.add_argument("--out", type=Path, metavar="DIR", help="(outputs/bench-DATE-TIME)")
    given = parser.parse_args(argv)
    given.sizes = given.sizes or list(SIZES[:2] if given.quick else SIZES)
    given.unrolls = given.unrolls or list(UNROLLS[:1] if given.quick else UNROLLS)
    given.variants = given.variants or list(VARIANTS)
    given.repeats = given.repeats or (3 if given.quick else 7)
    given.out = given.out or ROOT / "outputs" / f"bench-{datetime.now():%Y-%m-%d-%H-%M-%S}"
    if given.jax_python is None and importlib.util.find_spec("jax") is not None:
        given.jax_python = sys.executable
    elif given.jax_python is not None:
        given.jax_python = str(Path(given.jax_python).absolute())  # workers run in the repository's folder
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; return 130 after Ctrl-C, with the results so far."""
    given = arguments(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    bench, begun, interrupted = Bench(given), datetime.now(UTC), False
    with tempfile.TemporaryDirectory() as folder:
        try:
            bench.run(Path(folder))
        except KeyboardInterrupt:
            interrupted = True
    content = bench.content(begun, interrupted)
    print(report.write(given.out, content), flush=True)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
