"""The Triton kernel against plain PyTorch: by Triton's interpreter on the CPU, and on a GPU where there is one.

The interpreter has to be chosen before Triton is imported, which torch may do: so it works in a process of its own.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from l2l_runner.kernels import FEATURES, Network, State, TorchKernel, triton_lstm
from l2l_runner.kernels.triton_lstm import TritonKernel, unsupported

TRITON = importlib.util.find_spec("triton") is not None
pytestmark = pytest.mark.skipif(not TRITON, reason="Triton isn't installed")

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"))
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])

Run = Callable[..., Any]


class Case(NamedTuple):
    """A window of a network that reads so many rows; `programs` and `block` of columns as in TritonKernel."""

    hidden: int = 20
    layers: int = 2
    preprocessing: str = "log_sign"
    steps: int = 3
    columns: int = 7
    dtype: torch.dtype = torch.float32
    programs: int | None = None
    block: int | None = None
    strided: bool = False
    reading: int = 1
    squash: bool = False


class Inputs(NamedTuple):
    network: Network
    grads: Tensor
    state: State
    cotangents: Tensor


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """A process in which Triton interprets its kernels."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_INTERPRET", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()  # starts it, with this environment
            patched.undo()
            yield pool


@pytest.fixture
def run(device: str, request: pytest.FixtureRequest) -> Run:
    """Call a function of this module where tensors on `device` can be served."""
    if device == "cuda":
        return lambda function, *arguments: function(*arguments, device)
    pool = request.getfixturevalue("interpreter")
    return lambda function, *arguments: pool.submit(function, *arguments, device).result()


def inputs(case: Case, device: str) -> Inputs:
    """Gradients of all magnitudes, and a state that was carried; with `strided`, all in the midst of wider tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, strided: bool = False) -> Tensor:
        wide = torch.randn(*shape[:-1], shape[-1] * 2 + 3 if strided else shape[-1], generator=generator)
        wide = wide.to(device, case.dtype)
        return wide[..., 1 : 2 * shape[-1] : 2] if strided else wide

    hidden, bound = case.hidden, case.hidden**-0.5
    sizes = [case.reading * FEATURES[case.preprocessing]] + [hidden] * (case.layers - 1)
    network = Network(
        tuple(draw(4 * hidden, size + hidden) * bound for size in sizes),
        tuple(draw(4 * hidden) * bound for _ in sizes),
        draw(1, hidden) * bound,
        draw(1) * bound,
        case.preprocessing,
        p=10.0,
        output_scale=0.1,
        squash=case.squash,
    )
    grads = draw(case.steps, case.reading, case.columns, strided=case.strided)
    grads.mul_(torch.logspace(-7, 1, case.columns, device=device, dtype=case.dtype))
    state = tuple(draw(hidden, case.columns, strided=case.strided and index != 1) for index in range(2 * case.layers))
    return Inputs(network, grads, state, draw(case.steps, 1, case.columns, strided=case.strided))


def double(given: Any) -> Any:
    if isinstance(given, Tensor):
        return given.double()
    if isinstance(given, tuple):
        converted = [double(part) for part in given]
        return type(given)(*converted) if hasattr(given, "_fields") else tuple(converted)
    return given


def distance(some: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """Of the one from the other, by the norm of all of it."""
    assert [tensor.shape for tensor in some] == [tensor.shape for tensor in expected]
    difference = math.hypot(*((one.double() - other).norm().item() for one, other in zip(some, expected, strict=True)))
    return difference / math.hypot(*(other.norm().item() for other in expected))


class Measured(NamedTuple):
    step: float
    replay: float
    again: bool
    dtypes: set[torch.dtype]


def measure(case: Case, device: str) -> Measured:
    """How far from plain PyTorch in float64 all steps, with their states, and the replay are; and if they repeat."""
    given = inputs(case, device)
    network, all_grads, state, cotangents = given
    exact = double(given)
    kernel, reference = TritonKernel(case.block, case.programs), TorchKernel()
    stepped: list[Tensor] = []
    expected: list[Tensor] = []
    exact_state = exact.state
    for grads, exact_grads in zip(all_grads, exact.grads, strict=True):
        updates, state = kernel.step(network, grads, state)
        exact_updates, exact_state = reference.step(exact.network, exact_grads, exact_state)
        stepped += [updates, *state]
        expected += [exact_updates, *exact_state]
    replayed = [kernel.replay(network, all_grads, given.state, cotangents) for _ in range(2)]
    return Measured(
        distance(tuple(stepped), tuple(expected)),
        distance(replayed[0], reference.replay(exact.network, exact.grads, exact.state, exact.cotangents)),
        all(torch.equal(one, other) for one, other in zip(*replayed, strict=True)),
        {tensor.dtype for tensor in [*stepped, *replayed[0]]},
    )


CASES = [
    Case(hidden=1, layers=1, steps=1, columns=1),
    Case(hidden=1, layers=2, steps=4, columns=7, preprocessing="none"),
    Case(hidden=3, layers=1, steps=7, columns=7),
    Case(hidden=3, layers=3, steps=5, columns=1, preprocessing="none"),
    Case(hidden=20, layers=1, steps=2, columns=130, preprocessing="none", strided=True),
    Case(hidden=20, layers=2, steps=4, columns=130, programs=2, strided=True),
    Case(hidden=20, layers=3, steps=3, columns=7),
    Case(hidden=16, layers=4, steps=3, columns=7),
    Case(hidden=33, layers=1, steps=3, columns=7, preprocessing="none"),
    Case(hidden=33, layers=2, steps=1, columns=1),
    Case(hidden=33, layers=3, steps=2, columns=20, block=16, programs=1),
    Case(steps=3, columns=20, preprocessing="none", reading=2, squash=True, strided=True),
    Case(hidden=3, layers=1, steps=2, reading=17, squash=True),
    Case(hidden=3, reading=3),
]


def label(case: Case) -> str:
    reads = f"{case.reading}-rows{'-squashed' if case.squash else ''}"
    return f"{case.layers}x{case.hidden}-{case.preprocessing}-{reads}-{case.steps}-steps-{case.columns}-columns"


@DEVICES
@pytest.mark.parametrize("case", CASES, ids=label)
def test_float32_is_plain_pytorch_to_rounding(case, device, run):
    measured = run(measure, case)
    assert measured.step < 1e-6
    assert measured.replay < 1e-5
    assert measured.again
    assert measured.dtypes == {torch.float32}


@DEVICES
@pytest.mark.parametrize(
    "case",
    [
        Case(dtype=torch.float64, columns=20, programs=1, block=16, strided=True),
        Case(dtype=torch.float64, layers=1, hidden=3, preprocessing="none", steps=5),
        Case(dtype=torch.float64, layers=3, hidden=3, steps=2),
        Case(dtype=torch.float64, layers=2, hidden=3, preprocessing="none", reading=2, squash=True),
    ],
    ids=label,
)
def test_float64_is_plain_pytorch_to_rounding(case, device, run):
    measured = run(measure, case)
    assert measured.step < 1e-13
    assert measured.replay < 1e-12
    assert measured.again
    assert measured.dtypes == {torch.float64}


def extreme(grads: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """The updates for such gradients, and those of plain PyTorch."""
    given = inputs(Case(hidden=3, columns=grads.shape[1]), device)
    updates = [
        kernel.step(given.network, grads.to(device), given.state)[0].cpu() for kernel in (TritonKernel(), TorchKernel())
    ]
    return updates[0], updates[1]


@DEVICES
def test_extreme_gradients(device, run):
    edge = math.exp(-10)
    grads = torch.tensor([[0.0, -0.0, 1e-45, edge, -edge, 0.999 * edge, 3e38, -3e38, math.inf, math.nan, 1.0]])
    updates, expected = run(extreme, grads)
    assert torch.allclose(updates, expected, rtol=1e-5, atol=1e-7, equal_nan=True)
    assert updates.isnan().tolist() == [[False] * 9 + [True, False]]


def programs_apart(device: str) -> float:
    given = inputs(Case(hidden=3, columns=50), device)
    few, many = (TritonKernel(16, programs).replay(*given) for programs in (1, 4))
    return distance(few, double(many))


@DEVICES
def test_the_number_of_programs_changes_nothing_but_rounding(device, run):
    assert run(programs_apart) < 1e-7


def untouched(device: str) -> bool:
    given = inputs(Case(), device)
    before = double(given)
    TritonKernel().step(given.network, given.grads[0], given.state)
    TritonKernel().replay(*given)
    flat = [*given.network.parameters, given.grads, *given.state, given.cotangents]
    exact = [*before.network.parameters, before.grads, *before.state, before.cotangents]
    return all(torch.equal(one.double(), other) for one, other in zip(flat, exact, strict=True))


@DEVICES
def test_what_it_is_given_stays_as_it_is(device, run):
    assert run(untouched)


def reasons(device: str) -> list[str | None]:
    where = torch.device(device)
    wide = inputs(Case(), device).network._replace(readout_weight=torch.zeros(2, 20))
    return [
        unsupported(inputs(Case(), device).network, where, torch.float32),
        unsupported(inputs(Case(), device).network, where, torch.float64),
        unsupported(inputs(Case(), device).network, where, torch.bfloat16),
        unsupported(wide, where, torch.float32),
        unsupported(inputs(Case(hidden=65), device).network, where, torch.float32),
    ]


@DEVICES
def test_what_it_cannot_serve_has_a_reason(device, run):
    assert run(reasons) == [
        None,
        None,
        "the tensors are bfloat16, not float32 or float64",
        "the network is not coordinatewise",
        "hidden=65 is more than 64",
    ]


class NoGPU:
    """What Triton asks its driver before it compiles."""

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiled(NamedTuple):
    """Stands for a kernel, and compiles it where it would be launched."""

    kernel: Any
    shared: list[int]

    def __getitem__(self, grid: tuple[int]) -> Run:  # type: ignore[override]
        return lambda *arguments, **options: self.shared.append(
            self.kernel.warmup(*arguments, grid=grid, **options).metadata.shared
        )


def compile_both(case: Case) -> list[int]:
    """The bytes of shared memory that the kernels of a step and of a replay take."""
    importlib.import_module("triton.runtime").driver.set_active(NoGPU())
    given = inputs(case, "cpu")
    shared: list[int] = []
    for name in ("_step_kernel", "_replay_kernel"):
        setattr(triton_lstm, name, Compiled(getattr(triton_lstm, name), shared))
    TritonKernel().step(given.network, given.grads[0], given.state)
    TritonKernel().replay(*given)
    return shared


@pytest.mark.parametrize(
    "case", [Case(hidden=3, columns=100), Case(preprocessing="none", reading=2, squash=True, layers=1)], ids=label
)
def test_it_compiles_without_a_gpu(case, tmp_path):
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TRITON_CACHE_DIR", str(tmp_path))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            step, replay = pool.submit(compile_both, case).result()
    assert step <= replay <= triton_lstm.SHARED[max(16, 2 ** (case.hidden - 1).bit_length())] * 1024


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_both_calls_can_be_captured_in_a_cuda_graph():
    given = inputs(Case(columns=1000), "cuda")
    kernel = TritonKernel()

    def compute() -> list[Tensor]:
        updates, state = kernel.step(given.network, given.grads[0], given.state)
        return [updates, *state, *kernel.replay(*given)]

    expected = compute()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = compute()
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(captured, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_memory_does_not_grow_with_columns_times_steps():
    case = Case(hidden=20, steps=20, columns=500_000)
    given = inputs(case, "cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    TritonKernel().replay(*given)
    assert torch.cuda.max_memory_allocated() - before < 5e8  # h and c alone, of all steps, would be 3.2e9
