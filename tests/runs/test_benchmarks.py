"""The benchmarks measure what they say."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import bench, machine, problems, report, workers
from benchmarks.variant import Estimate, Unavailable

from l2l_runner.launch.hydra import ENVIRONMENT
from running import ROOT

sys.path.insert(0, str(ROOT))


KINDS = {
    "quadratics": lambda: problems.quadratics(5, 4),
    "mlp": lambda: problems.mlp(5, hidden=3, side=5, minibatch=7),
    "separable": lambda: problems.separable(33),
}
STEPS = 5


def in_precision(arrays: problems.Arrays, dtype: type) -> problems.Arrays:
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in arrays.items()}


def estimate(name: str, kind: str, dtype: type) -> Estimate:
    """What a variant computes in a small window."""
    network = in_precision(problems.network(hidden=6), dtype)
    variant = workers.build(name, network, in_precision(KINDS[kind](), dtype), STEPS, threads=1)
    try:
        return variant.estimate()
    finally:
        variant.close()


def error(found: Estimate, expected: Estimate) -> float:
    """Distance of two meta-gradients, over the norm of the expected one."""
    assert set(found.grads) == set(expected.grads)
    apart = sum(float(((found.grads[k] - grad) ** 2).sum()) for k, grad in expected.grads.items())
    return (apart / sum(float((grad**2).sum()) for grad in expected.grads.values())) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [name for name in workers.VARIANTS if name not in ("graph", "optimizee")])
def test_every_variant_computes_what_the_graph_engine_does(name: str, kind: str) -> None:
    dtype = np.float64 if name in ("replay-torch", "forward-torch", "eager", "seed") else np.float32
    try:
        found = estimate(name, kind, dtype)
    except Unavailable as why:
        pytest.skip(str(why))
    expected = estimate("graph", kind, np.float64)
    tolerance = 1e-10 if dtype is np.float64 else 2e-5
    np.testing.assert_allclose(found.losses, expected.losses, rtol=tolerance)
    assert found.losses.dtype == dtype
    if name.startswith("forward"):
        assert not found.grads
    else:
        assert error(found, expected) < tolerance


@pytest.mark.parametrize(("name", "reference"), [("replay-torch", "graph"), ("seed", "eager")])
def test_adam_moves_variants_alike(name: str, reference: str) -> None:
    """But not ours and nn.LSTM, which has two biases where one would do, so that Adam moves their sum twice as far."""
    network, problem = (in_precision(a, np.float64) for a in (problems.network(hidden=6), KINDS["quadratics"]()))
    losses = []
    for each in (name, reference):
        variant = workers.build(each, network, problem, STEPS, threads=1)
        losses.append([variant.window() for _ in range(3)])
        variant.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)
    assert losses[0][0] != losses[0][2]


def test_operations_are_counted_as_by_hand() -> None:
    # Forward, of one coordinate: gates of 2 + 20 inputs, gates of 20 + 20, a read-out of 20.
    assert problems.forward_multiply_adds() == 80 * 22 + 80 * 40 + 20 == 4980
    # Backward, each product again for its weights, and for its inputs; but not for the two features.
    assert problems.flops(1, 1) == 2 * (4980 + 4980 + 4980 - 80 * 2)
    assert problems.flops(1, 1, backward=False) == 2 * 4980
    assert problems.flops(15910, 20) / 256e9 == pytest.approx(36.7e-3, rel=2e-3)
    # hidden 1, one layer: 4 gates of 3 inputs, read-out 1
    assert problems.forward_multiply_adds(1, 1) == 13


def test_problems_have_their_sizes_and_kinds() -> None:
    for size, problems_, words in ((1280, 128, "quadratics"), (problems.MLP, 1, "MLP"), (333, 1, "separable")):
        start = problems.problem(size, 2)["start"]
        assert start.size == size
        assert len(start) == problems_
        assert words in problems.kind(size)
    pixels = problems.mlp(2)["pixels"]
    assert pixels.shape == (problems.POOL, 784)
    assert 0.75 < (pixels == 0).mean() < 0.88


def test_a_workers_environment_is_its_users() -> None:
    bench_s = {"PATH": "/bin", "OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "7", "XLA_FLAGS": "--x", "KMP_BLOCKTIME": "0"}
    assert workers.environment("eager", 2, bench_s) == {"PATH": "/bin"}
    assert workers.environment("replay-torch", 2, bench_s) == {"PATH": "/bin", **ENVIRONMENT}
    assert workers.environment("eager", 2, bench_s, briefly=True) == {"PATH": "/bin", **ENVIRONMENT}
    assert workers.environment("jax", 1, bench_s)["NPROC"] == "1"


def test_what_would_not_fit_or_takes_too_long_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench.Bench(bench.arguments(["--longest", "10"]))
    monkeypatch.setattr(machine, "free_memory", lambda: 4 * 10**9)
    assert run._reason(bench.Measurement("eager", 1_000_000, 20, 1)) == "would need about 34 GB"
    assert run._reason(bench.Measurement("replay-torch", 1_000_000, 20, 1)) is None
    run.measurements.append(bench.Measurement("replay-torch", 10_000, 20, 1, samples=[1.0, 2.0, 3.0]))
    assert run._reason(bench.Measurement("replay-torch", 1_000_000, 20, 1)) == "would take about 200 s per window"
    assert run._reason(bench.Measurement("replay-torch", 1_000_000, 20, 2)) is None
    assert run._reason(bench.Measurement("seed", 15910, 20, 1)) == "measured only at 1,280 coordinates"


def test_a_variant_that_computes_something_else_is_denounced() -> None:
    cell = [bench.Measurement(name, 8, 2, 1, meta_loss=loss) for name, loss in (("graph", 1.0), ("eager", 1.0001))]
    cell.append(bench.Measurement("jax", 8, 2, 1, meta_loss=float("nan")))
    bench.check_agreement(cell[:2])
    assert [m.note for m in cell] == [None, None, None]
    cell[2].meta_loss = 1.1
    bench.check_agreement(cell)
    assert cell[0].note is cell[1].note is None
    assert "1.1" in str(cell[2].note)


def measurement(variant: str, samples: list[float], memory: int) -> dict[str, Any]:
    found = {"variant": variant, "coordinates": 1280, "steps": 20, "threads": 1, "samples": samples, "memory": memory}
    return found | {"median": report.median(samples), "skipped": None, "note": None, "others": [0.0]}


def test_ratios_are_of_medians_and_memory_is_above_the_optimizees() -> None:
    measurements = [measurement("replay-cpp", [1.0, 2.0, 9.0], 5_000_000), measurement("eager", [8.0], 70_000_000)]
    measurements.append(measurement("optimizee", [0.5], 1_000_000))
    table = report.Table({"measurements": measurements, "gflops": {"1": {"matmul": 1.0, "multiply-adds": 2.0}}})
    cell = (1280, 20, 1)
    assert table.times_faster("replay-cpp", "eager", *cell) == 4
    assert table.times_faster("replay-cpp", "jax", *cell) is None
    assert table.megabytes("replay-cpp", *cell) == 4
    assert table.megabytes("optimizee", *cell) == 1
    assert table.bound(*cell) == pytest.approx(problems.flops(1280, 20) / 2e9)
    assert table.times_bound("replay-cpp", *cell) == pytest.approx(2e9 * 2 / problems.flops(1280, 20))


TINY = ["--sizes", "30", "--unrolls", "2", "--threads", "1", "--repeats", "2"]


def test_it_runs_from_end_to_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench", *TINY, "--variants", "replay-torch,seed,eager,optimizee"]
    ended = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    content = json.loads((tmp_path / "bench.json").read_text())
    by_variant = {(m["variant"], m["coordinates"]): m for m in content["measurements"]}
    assert len(by_variant) == 4
    for (name, _), found in by_variant.items():
        if name == "seed":
            assert found["skipped"] == "measured only at 1,280 coordinates"
            assert not found["samples"]
        else:
            assert len(found["samples"]) == 2
            assert found["note"] is found["skipped"] is None
    assert by_variant["eager", 30]["meta_loss"] == pytest.approx(by_variant["replay-torch", 30]["meta_loss"])
    assert content["versions"]["torch"]
    assert content["interrupted"] is False
    table = (tmp_path / "bench.md").read_text()
    assert table in ended.stdout
    assert "## 30 coordinates" in table
    assert "| clean eager PyTorch" in table
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_ctrl_c_ends_the_workers_and_writes_what_there_is(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench", "--sizes", "20", "--unrolls", "2", "--threads", "1"]
    command += ["--variants", "eager", "--repeats", "1000000", "--budget", "100000", "--out", str(tmp_path)]
    # Ctrl-C is deaf in what a shell starts in the background.
    deaf = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, deaf)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system doesn't tell a process's children")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = children.read_text().split()
        if found and "benchmarks.workers" in Path(f"/proc/{found[0]}/cmdline").read_text():
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 130, complaints
    while Path(f"/proc/{found[0]}").exists():  # one that was only starting ends when it finds its input closed
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert json.loads((tmp_path / "bench.json").read_text())["interrupted"] is True
    assert "Interrupted" in (tmp_path / "bench.md").read_text()


def test_a_worker_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    given = bench.arguments([*TINY, "--variants", "jax,optimizee", "--jax-python", "/bin/false"])
    run = bench.Bench(given)
    run._cell(bench.Cell(30, 2, 1), tmp_path)
    failed, alone = run.measurements
    assert failed.skipped is not None
    assert failed.skipped.startswith("failed")
    assert len(alone.samples) == 2


def test_a_peer_needs_nothing_of_ours() -> None:
    code = "import sys; sys.modules['l2l_runner'] = sys.modules['torch'] = sys.modules['hydra'] = None; "
    subprocess.run([sys.executable, "-c", code + "import benchmarks.workers"], cwd=ROOT, check=True)


@pytest.mark.parametrize("bad", [["--sizes", "0"], ["--variants", "tensorflow"], ["--unrolls", "x"]])
def test_bad_options_are_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.arguments(bad)
    assert bad[0] in capsys.readouterr().err
