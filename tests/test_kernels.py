"""The kernels against each other and against autograd, alone, in the engines and in whole runs."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel, cpp, pick_kernel
from l2l_runner.kernels.build import BuildError, load_library
from l2l_runner.kernels.cpp import CppKernel
from l2l_runner.meta import TBPTT
from l2l_runner.runtime import Runtime
from problems import RUNTIME, lstm, optimizee, problems
from running import QUICK, assert_one_sentence, records, train

F32, F64 = torch.float32, torch.float64
DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
BOTH = pytest.mark.parametrize("kernel", [CppKernel(), TorchKernel()], ids=["cpp", "torch"])
NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    """The compiled library, where a compiler is."""
    try:
        load_library(cpp.SOURCE)
    except BuildError as error:
        pytest.skip(f"there is no fused kernel here: {error}")


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Windows to compute


class Case(NamedTuple):
    """A network and a window of it; width is the number of coordinates of a column, reading what it reads of each."""

    hidden: int = 8
    layers: int = 2
    preprocessing: str = "log_sign"
    steps: int = 7
    columns: int = 33
    width: int = 1
    p: float = 10.0
    output_scale: float = 0.1
    reading: int = 1
    squash: bool = False


class Window(NamedTuple):
    """What a replay takes."""

    network: Network
    grads: Tensor
    state: State
    cotangents: Tensor


def draw(case: Case, dtype: torch.dtype = F64, seed: int = 0) -> Window:
    """Gradients over 12 orders of magnitude, a state that was carried, and cotangents as large as the gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    hidden, bound = case.hidden, case.hidden**-0.5
    rows = case.reading * case.width
    inputs = [rows * FEATURES[case.preprocessing]] + [hidden] * (case.layers - 1)
    network = Network(
        tuple(bound * normal(4 * hidden, size + hidden).to(dtype) for size in inputs),
        tuple(bound * normal(4 * hidden).to(dtype) for _ in inputs),
        bound * normal(case.width, hidden).to(dtype),
        bound * normal(case.width).to(dtype),
        case.preprocessing,
        case.p,
        case.output_scale,
        case.squash,
    )
    window = (case.steps, rows, case.columns)
    grads = normal(*window) * 10 ** (12 * torch.rand(window, generator=generator) - 10)
    state = tuple(
        (normal(hidden, case.columns) if index % 2 else normal(hidden, case.columns).tanh()).to(dtype)
        for index in range(2 * case.layers)
    )
    return Window(network, grads.to(dtype), state, normal(case.steps, case.width, case.columns).to(dtype))


def double(given: Any) -> Any:
    """The same, nested as it is, with tensors in double precision."""
    if isinstance(given, Tensor):
        return given.double()
    if isinstance(given, tuple):
        parts = [double(part) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    return given


def steps(kernel: Kernel, window: Window) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The updates of a window [steps, width, columns], and the states after each of its steps."""
    updates, states, state = [], [], window.state
    for grads in window.grads:
        update, state = kernel.step(window.network, grads, state)
        updates.append(update)
        states += list(state)
    return torch.stack(updates), tuple(states)


def by_autograd(window: Window) -> tuple[Tensor, ...]:
    """∂(Σ_t ⟨cotangent_t, u_t⟩)/∂φ in double precision, by autograd through plain steps."""
    network, grads, state, cotangents = double(window)
    leaves = {id(parameter): parameter.clone().requires_grad_() for parameter in network.parameters}
    network = network._replace(
        weights=tuple(leaves[id(tensor)] for tensor in network.weights),
        biases=tuple(leaves[id(tensor)] for tensor in network.biases),
        readout_weight=leaves[id(network.readout_weight)],
        readout_bias=leaves[id(network.readout_bias)],
    )
    with torch.enable_grad():
        updates, _ = steps(TorchKernel(), Window(network, grads, state, cotangents))
        return torch.autograd.grad((updates * cotangents).sum(), network.parameters)


def replay(kernel: Kernel, window: Window) -> tuple[Tensor, ...]:
    return kernel.replay(*window)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def distance(some: tuple[Tensor, ...] | Tensor, expected: tuple[Tensor, ...] | Tensor) -> float:
    """How far the one is from the other, as a part of the other's norm."""
    one, other = (flat(part) if isinstance(part, tuple) else part.flatten() for part in (some, expected))
    assert one.shape == other.shape
    if not other.any():
        return 0.0 if not one.any() else INF
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def same(some: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> bool:
    """Whether all bits are alike, those of NaN aside."""
    return all(torch.equal(one.isnan(), other.isnan()) for one, other in zip(some, others, strict=True)) and all(
        torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in zip(some, others, strict=True)
    )


def columns_of(window: Window, columns: Any) -> Window:
    """Some of a window's columns."""
    state = tuple(tensor[:, columns] for tensor in window.state)
    return Window(window.network, window.grads[..., columns], state, window.cotangents[..., columns])


# Against plain PyTorch and against autograd

HIDDEN, LAYERS, STEPS, COLUMNS = (1, 3, 8, 20, 33), (1, 2, 3), (1, 2, 7, 20), (1, 7, 31, 32, 33, 130, 1000)

# Every network, with windows that take turns; and every window, of one network.
NETWORKS = [
    Case(hidden, layers, preprocessing, STEPS[index % 4], COLUMNS[index % 7])
    for index, (preprocessing, layers, hidden) in enumerate(itertools.product(FEATURES, LAYERS, HIDDEN))
]
WINDOWS = [Case(steps=steps, columns=columns) for steps, columns in itertools.product(STEPS, COLUMNS)]
SETTINGS = [Case(p=p, output_scale=scale) for p, scale in [(0.01, 0.1), (1.0, 1.0), (80.0, 1e-3), (10.0, 100.0)]]
MANY_BLOCKS = [Case(hidden=4, steps=3, columns=columns) for columns in (2048, 5000)]  # sums are flushed on the way
# What reads more than a gradient, what squashes, and both.
FEATURED = [
    case._replace(reading=reading, squash=squash)
    for case, (reading, squash) in zip(NETWORKS, itertools.cycle([(2, True), (1, True), (3, False)]), strict=False)
]
CASES = list(dict.fromkeys([*NETWORKS, *WINDOWS, *SETTINGS, *MANY_BLOCKS, *FEATURED]))


def name(case: Case) -> str:
    return "-".join(f"{value}" for value in case)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_cpp_is_plain_pytorch_and_autograd_to_rounding_in_float64(case: Case) -> None:
    window = draw(case)
    updates, states = steps(CppKernel(), window)
    expected_updates, expected_states = steps(TorchKernel(), window)
    assert distance(updates, expected_updates) <= 1e-12
    assert distance(states, expected_states) <= 1e-12
    replayed = replay(CppKernel(), window)
    assert [tensor.shape for tensor in replayed] == [tensor.shape for tensor in window.network.parameters]
    assert distance(replayed, by_autograd(window)) <= 1e-12
    assert distance(replayed, replay(TorchKernel(), window)) <= 1e-12


@pytest.mark.parametrize("case", CASES, ids=name)
def test_cpp_in_float32_is_near_float64(case: Case) -> None:
    window = draw(case, F32)
    updates, states = steps(CppKernel(), window)
    expected_updates, expected_states = steps(TorchKernel(), double(window))
    assert distance(updates, expected_updates) <= 2e-6
    assert distance(states, expected_states) <= 2e-6
    replayed = replay(CppKernel(), window)
    assert distance(replayed, by_autograd(window)) <= 1e-5
    assert {tensor.dtype for tensor in (updates, *states, *replayed)} == {F32}


@pytest.mark.parametrize("case", FEATURED, ids=name)
def test_plain_replay_of_features_is_autograd(case: Case) -> None:
    window = draw(case)
    assert distance(replay(TorchKernel(), window), by_autograd(window)) <= 1e-12


@pytest.mark.parametrize("case", [case._replace(columns=min(case.columns, 33), width=4) for case in NETWORKS], ids=name)
def test_plain_replay_of_whole_problems_is_autograd(case: Case) -> None:
    window = draw(case)
    assert distance(replay(TorchKernel(), window), by_autograd(window)) <= 1e-12


@given(
    case=st.builds(
        Case,
        hidden=st.integers(1, 12),
        layers=st.integers(1, 3),
        preprocessing=st.sampled_from(sorted(FEATURES)),
        steps=st.integers(1, 8),
        columns=st.integers(1, 70),
        width=st.just(1),
        p=st.floats(0.01, 80),
        output_scale=st.floats(1e-3, 10),
        reading=st.integers(1, 4),
        squash=st.booleans(),
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_cpp_is_plain_pytorch_for_any_shape(case: Case, seed: int) -> None:
    window = draw(case, seed=seed)
    for one, other in zip(steps(CppKernel(), window), steps(TorchKernel(), window), strict=True):
        assert distance(one, other) <= 1e-11
    assert distance(replay(CppKernel(), window), replay(TorchKernel(), window)) <= 1e-11


# What is not an ordinary number


@pytest.mark.parametrize("size", [0.0, -0.0, 5e-324, -1e-310, 1e-45, 1e-39, 1e-30, 1e12, -1e30])
@pytest.mark.parametrize("preprocessing", FEATURES)
@DTYPES
def test_gradients_of_every_size(dtype: torch.dtype, preprocessing: str, size: float) -> None:
    window = draw(Case(preprocessing=preprocessing, squash=size > 0), dtype)
    window.grads[2:4] = size
    exact = double(window)
    near, nearer = (1e-12, 1e-12) if dtype is F64 else (1e-5, 2e-6)
    for one, other in zip(steps(CppKernel(), window), steps(TorchKernel(), exact), strict=True):
        assert distance(one, other) <= nearer
    assert distance(replay(CppKernel(), window), replay(TorchKernel(), exact)) <= near


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("column", [0, 31, 32, 39])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("preprocessing", FEATURES)
@DTYPES
def test_what_is_not_finite_stays_in_its_column(
    dtype: torch.dtype, preprocessing: str, squash: bool, column: int, value: float
) -> None:
    window = draw(Case(preprocessing=preprocessing, columns=40, squash=squash), dtype)
    before = steps(CppKernel(), window)
    window.grads[1, 0, column] = value
    updates, states = steps(CppKernel(), window)
    others = [index for index in range(40) if index != column]
    assert same((updates[..., others],), (before[0][..., others],))
    assert same(tuple(s[:, others] for s in states), tuple(s[:, others] for s in before[1]))
    if math.isnan(value):
        assert updates[1:, 0, column].isnan().all()
        assert all(state[:, column].isnan().all() for state in states[4:])
    expected_updates, expected_states = steps(TorchKernel(), double(window))
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype is F32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(updates.double(), expected_updates, equal_nan=True, **near)
    for state, expected in zip(states, expected_states, strict=True):
        torch.testing.assert_close(state.double(), expected, equal_nan=True, **near)


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("where", ["grads", "cotangents", "state"])
@DTYPES
def test_a_replay_shows_nan(dtype: torch.dtype, where: str, squash: bool) -> None:
    # The meta-gradient is a sum over columns: one NaN has to reach it, or training would go on with nonsense.
    window = draw(Case(columns=40, squash=squash), dtype)
    tensor = window.state[1] if where == "state" else getattr(window, where)
    tensor[(0, 37) if where == "state" else (1, 0, 37)] = NAN
    replayed, expected = replay(CppKernel(), window), replay(TorchKernel(), window)
    for one, other in zip(replayed, expected, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
    assert flat(replayed).isnan().any()


@pytest.mark.parametrize("value", [INF, -INF])
@pytest.mark.parametrize("preprocessing", FEATURES)
@DTYPES
def test_a_replay_is_finite_where_the_plain_one_is(dtype: torch.dtype, preprocessing: str, value: float) -> None:
    window = draw(Case(preprocessing=preprocessing, columns=40), dtype)
    window.grads[1, 0, 37] = value
    for one, other in zip(replay(CppKernel(), window), replay(TorchKernel(), window), strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())


@pytest.mark.parametrize("where", ["weight", "bias", "readout"])
@DTYPES
def test_a_network_of_nan_gives_nan(dtype: torch.dtype, where: str) -> None:
    window = draw(Case(layers=1), dtype)
    network = window.network
    tensors = {"weight": network.weights[0], "bias": network.biases[0], "readout": network.readout_bias}
    tensors[where].fill_(NAN)
    assert steps(CppKernel(), window)[0].isnan().all()
    if where != "readout":  # whose bias has no part in any derivative
        assert flat(replay(CppKernel(), window)[2:]).isnan().all()


# How the tensors lie in memory

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns of a wider one": lambda t: torch.cat([t + 1, t, t + 2], -1)[..., t.shape[-1] : 2 * t.shape[-1]],
    "every second column": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "columns first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "rows of a taller one": lambda t: torch.cat([t + 1, t])[len(t) :],
    "backwards in memory": lambda t: t.flip(0).contiguous()[torch.arange(len(t) - 1, -1, -1)],
}


@pytest.mark.parametrize("columns", [1, 33])
@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("parts", ["state", "grads", "cotangents", "one of the state", "weights", "all"])
@pytest.mark.parametrize("layout", LAYOUTS)
@DTYPES
def test_layout_does_not_matter(dtype: torch.dtype, layout: str, parts: str, hidden: int, columns: int) -> None:
    plain, lay = (
        draw(Case(hidden=hidden, columns=columns, reading=hidden), dtype),
        LAYOUTS[layout],
    )
    window = plain
    if parts in ("state", "all"):
        window = window._replace(state=tuple(map(lay, window.state)))
    if parts == "one of the state":
        window = window._replace(state=(*window.state[:2], lay(window.state[2]), window.state[3]))
    if parts in ("grads", "all"):
        window = window._replace(grads=lay(window.grads))
    if parts in ("cotangents", "all"):
        window = window._replace(cotangents=lay(window.cotangents))
    if parts in ("weights", "all"):
        network = window.network
        weights, readout = tuple(map(lay, network.weights)), lay(network.readout_weight)
        window = window._replace(network=network._replace(weights=weights, readout_weight=readout))
    for one, other in zip(window.state, plain.state, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(steps(CppKernel(), window), steps(CppKernel(), plain), strict=True):
        assert same(tuple(one), tuple(other))
    assert same(replay(CppKernel(), window), replay(CppKernel(), plain))


def test_expanded_tensors_are_read_as_they_look() -> None:
    window = draw(Case(columns=33))
    window = window._replace(
        grads=window.grads[:1].expand(7, 1, 33),
        cotangents=window.cotangents[..., :1].expand(7, 1, 33),
        state=tuple(tensor[:1].expand(8, 33) for tensor in window.state),
    )
    assert distance(replay(CppKernel(), window), by_autograd(window)) <= 1e-12
    assert distance(steps(CppKernel(), window)[0], steps(TorchKernel(), window)[0]) <= 1e-12


@BOTH
def test_inputs_are_left_alone_and_outputs_are_new(kernel: Kernel) -> None:
    window = columns_of(draw(Case(columns=100)), slice(20, 53))
    inputs = [window.grads, window.cotangents, *window.state, *window.network.parameters]
    whole = [tensor._base if tensor._base is not None else tensor for tensor in inputs]  # what lies around it too
    before = [tensor.clone() for tensor in whole]
    update, following = kernel.step(window.network, window.grads[0], window.state)
    replayed = replay(kernel, window)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(whole, before, strict=True))
    outputs = [update, *following, *replayed]
    places = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    assert places.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in outputs)
    assert not any(tensor.requires_grad for tensor in outputs)


# Sums over columns, linear in the cotangents


@BOTH
@DTYPES
def test_a_replay_is_linear_in_the_cotangents(dtype: torch.dtype, kernel: Kernel) -> None:
    window, other = draw(Case(), dtype), draw(Case(), dtype, seed=1).cotangents
    one, two, both = (
        flat(replay(kernel, window._replace(cotangents=cotangents)))
        for cotangents in (window.cotangents, other, 3 * window.cotangents - 0.7 * other)
    )
    assert distance(both, 3 * one - 0.7 * two) <= (1e-12 if dtype is F64 else 1e-5)
    doubled = flat(replay(kernel, window._replace(cotangents=2 * window.cotangents)))
    assert torch.equal(doubled, 2 * one)  # exactly: no product rounds differently
    nothing = replay(kernel, window._replace(cotangents=torch.zeros_like(window.cotangents)))
    assert all((part == 0).all() for part in nothing)


@BOTH
def test_an_update_feels_no_later_cotangent_or_gradient(kernel: Kernel) -> None:
    # With a cotangent at step 2 alone, the steps after it could as well not be there.
    window = draw(Case(steps=7))
    window.cotangents[3:] = 0
    short = window._replace(grads=window.grads[:3], cotangents=window.cotangents[:3])
    assert distance(replay(kernel, window), replay(kernel, short)) <= 1e-13


@BOTH
@pytest.mark.parametrize("columns", [2, 33, 70])
def test_a_replay_is_the_sum_of_its_columns(kernel: Kernel, columns: int) -> None:
    window = draw(Case(hidden=3, columns=columns))
    alone = [flat(replay(kernel, columns_of(window, slice(index, index + 1)))) for index in range(columns)]
    assert distance(torch.stack(alone).sum(0), flat(replay(kernel, window))) <= 1e-12


@BOTH
def test_permuted_columns_are_stepped_alike(kernel: Kernel) -> None:
    window, order = draw(Case(columns=70)), torch.randperm(70, generator=torch.Generator().manual_seed(0))
    updates, states = steps(kernel, window)
    permuted_updates, permuted_states = steps(kernel, columns_of(window, order))
    assert distance(permuted_updates, updates[..., order]) <= 1e-14
    assert distance(permuted_states, tuple(state[:, order] for state in states)) <= 1e-14


# Threads


@pytest.mark.parametrize("columns", [1, 33, 1000])
@DTYPES
def test_the_same_number_of_threads_gives_the_same_bits(
    dtype: torch.dtype, columns: int, threads: Callable[[int], None]
) -> None:
    window = draw(Case(columns=columns), dtype)
    stepped, replayed = [], []
    for number in (1, 2, 3):
        threads(number)
        one, other = ((steps(CppKernel(), window), replay(CppKernel(), window)) for _ in range(2))
        assert torch.equal(one[0][0], other[0][0])
        assert same(one[0][1], other[0][1])
        assert same(one[1], other[1])
        stepped.append(one[0])
        replayed.append(one[1])
    for number in (1, 2):  # columns don't interact, and a sum over them is taken in double precision
        assert torch.equal(stepped[number][0], stepped[0][0])
        assert same(stepped[number][1], stepped[0][1])
        assert distance(replayed[number], replayed[0]) <= (1e-12 if dtype is F64 else 1e-6)


def test_kernels_run_side_by_side() -> None:
    windows = [draw(Case(hidden=3 + index, columns=100), seed=index) for index in range(4)]
    alone = [replay(CppKernel(), window) for window in windows]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda index: replay(CppKernel(), windows[index % 4]), range(32)))
    assert all(same(result, alone[index % 4]) for index, result in enumerate(together))


def denormals_vanish() -> bool:
    """Whether any of PyTorch's threads takes numbers below 2.2e-308 for 0."""
    return bool((torch.full((1 << 17,), 1e-310, dtype=F64) * 2 == 0).any())


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("flush", [False, True], ids=["kept", "flushed"])
def test_the_mode_of_denormals_is_left_as_it_was(flush: bool, number: int, threads: Callable[[int], None]) -> None:
    window = draw(Case(columns=1000))
    threads(number)
    try:
        if not torch.set_flush_denormal(flush):
            pytest.skip("this CPU has no such mode")
        assert denormals_vanish() is flush
        steps(CppKernel(), window)
        assert denormals_vanish() is flush
        replay(CppKernel(), window)
        assert denormals_vanish() is flush
    finally:
        torch.set_flush_denormal(False)


# Which kernel


@pytest.mark.parametrize(
    ("device", "dtype", "width", "preprocessing", "words"),
    [
        ("cuda", F32, 1, "none", "it computes on the CPU, not on cuda"),
        ("meta", F32, 1, "none", "it computes on the CPU, not on meta"),
        ("cpu", torch.bfloat16, 1, "none", "it has no torch.bfloat16"),
        ("cpu", torch.float16, 1, "log_sign", "it has no torch.float16"),
        ("cpu", F32, 2, "none", "it is for coordinatewise optimizers"),
        ("cpu", F32, 1, "cubic", "it has no preprocessing cubic"),
        ("cpu", F32, 1, "none", None),
        ("cpu", F64, 1, "log_sign", None),
    ],
)
def test_cpp_says_what_it_cannot_do(
    device: str, dtype: torch.dtype, width: int, preprocessing: str, words: str | None
) -> None:
    network = draw(Case(width=width)).network._replace(preprocessing=preprocessing)
    assert cpp.unsupported(network, torch.device(device), dtype) == words


def test_every_preprocessing_is_served() -> None:
    for kind in FEATURES:
        assert cpp.unsupported(draw(Case(preprocessing=kind)).network, torch.device("cpu"), F32) is None


@pytest.mark.parametrize(("wanted", "kind"), [("torch", TorchKernel), ("cpp", CppKernel), ("auto", CppKernel)])
def test_a_kernel_is_picked_by_name_or_the_fastest(
    wanted: str, kind: type[Kernel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert type(pick_kernel(wanted, draw(Case()).network)) is kind
    assert not caplog.records


def test_where_cpp_cannot_serve_auto_falls_back_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    network = draw(Case(width=3)).network
    with pytest.raises(ConfigError, match=r"^kernel=cpp is not available .*it is for coordinatewise optimizers"):
        pick_kernel("cpp", network)
    assert type(pick_kernel("auto", network)) is TorchKernel
    (record,) = caplog.records
    assert "it is for coordinatewise optimizers" in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.parametrize("part", ["grads", "state", "network", "cotangents"])
def test_cpp_refuses_what_it_would_misread(part: str) -> None:
    window = draw(Case(), F32)
    window = window._replace(**{part: double(getattr(window, part))})
    with pytest.raises(TypeError, match="expected tensors of one type"):
        CppKernel().replay(*window)
    if part != "cotangents":
        with pytest.raises(TypeError, match="expected tensors of one type"):
            CppKernel().step(window.network, window.grads[0], window.state)


def test_cpp_refuses_rows_that_its_network_does_not_read() -> None:
    window = draw(Case(reading=2))
    for call in (steps, replay):
        with pytest.raises(ValueError, match="was given 1 rows a column; expected 2"):
            call(CppKernel(), window._replace(grads=window.grads[:, :1]))


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp, "_function", lambda name, dtype: lambda *arguments: 1)
    window = draw(Case())
    for call in (steps, replay):
        with pytest.raises(MemoryError, match="found no memory"):
            call(CppKernel(), window)


# In the optimizer


def optimizer_with(kernel: str, dtype: torch.dtype = F64, **changes: Any) -> Any:
    optimizer = lstm(4, **changes).to(dtype)
    optimizer.use_kernel(kernel)
    assert optimizer.kernel.name == kernel
    return optimizer


class Recording(CppKernel):
    """Notes the steps it takes, and the sizes of what it is to replay."""

    def __init__(self, chunk: int | None = None):
        self.chunk = chunk
        self.steps = 0
        self.replays: list[torch.Size] = []

    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        self.steps += 1
        return super().step(network, grads, state)

    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        assert grads.shape == cotangents.shape
        assert all(tensor.shape == (network.hidden, grads.shape[-1]) for tensor in state)
        self.replays.append(grads.shape)
        return super().replay(network, grads, state, cotangents)


@pytest.mark.parametrize("kernel", ["torch", "cpp"])
def test_updates_are_differentiable_whatever_the_kernel(kernel: str) -> None:
    grads = torch.randn(3, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))

    def derivatives(kernel: str) -> Tensor:
        optimizer = optimizer_with(kernel)
        state, total = optimizer.init(grads[0]), torch.zeros((), dtype=F64)
        with torch.enable_grad():
            for g in grads:
                update, state = optimizer.update(g, state, g)
                assert update.requires_grad
                total = total + update.square().sum()
            return flat(torch.autograd.grad(total, list(optimizer.parameters())))

    assert torch.equal(derivatives(kernel), derivatives("torch"))
    assert derivatives(kernel).abs().max() > 1e-6


def test_updates_without_a_graph_are_the_kernels() -> None:
    optimizer, plain = lstm(4), lstm(4)
    optimizer.kernel = kernel = Recording()
    grads = torch.randn(2, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        update, state = optimizer.update(grads, optimizer.init(grads), grads)
        expected, _ = plain.update(grads, plain.init(grads), grads)
    assert kernel.steps == 1
    assert not update.requires_grad
    assert not any(tensor.requires_grad for tensor in state)
    torch.testing.assert_close(update, expected, rtol=1e-12, atol=1e-14)
    with torch.enable_grad():
        optimizer.update(grads, optimizer.init(grads), grads)
    assert kernel.steps == 1


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("kernel", ["torch", "cpp"])
def test_an_optimizer_is_copied_with_its_kernel(kernel: str, copied: Callable[[Any], Any]) -> None:
    optimizer = optimizer_with(kernel)
    twin = copied(optimizer)
    assert twin.kernel.name == kernel
    problem, tbptt = problems("quadratic", 2), TBPTT(length=3, steps=3)
    (mine,), (theirs,) = tbptt.estimates(optimizer, problem), tbptt.estimates(twin, problem)
    assert same(mine.grads, theirs.grads)
    assert twin.state_dict().keys() == lstm(4).state_dict().keys()  # the kernel is none of it


# In the engines

LENGTHS = [(5, 5), (3, 10), (1, 4), (20, 7), (20, 40)]


@pytest.mark.parametrize("weights", ["constant", "linear", "final"])
@pytest.mark.parametrize(("length", "horizon"), LENGTHS)
@pytest.mark.parametrize("preprocessing", FEATURES)
@pytest.mark.parametrize("chunk", [1, 5, None])
def test_replay_by_cpp_is_graph(chunk: int | None, preprocessing: str, length: int, horizon: int, weights: str) -> None:
    problem, window = problems("quadratic", 3), {"length": length, "steps": horizon, "weights": weights}
    optimizer = optimizer_with("cpp", preprocessing=preprocessing)
    replayed = list(TBPTT(**window, chunk=chunk).estimates(optimizer, problem))
    differentiated = list(TBPTT(**window, engine="graph").estimates(optimizer, problem))
    assert len(replayed) == len(differentiated) == math.ceil(horizon / length)
    for one, other in zip(replayed, differentiated, strict=True):
        assert distance(one.grads, other.grads) <= 1e-11
        torch.testing.assert_close(one.meta_loss, other.meta_loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kernel", ["torch", "cpp"])
@pytest.mark.parametrize("weights", ["constant", "linear", "final"])
@pytest.mark.parametrize("length", [1, 7, 20])
@pytest.mark.parametrize("hidden", [3, 20])
def test_replay_in_float32_is_near_the_graph_in_float64(hidden: int, length: int, weights: str, kernel: str) -> None:
    window = {"length": length, "steps": length, "weights": weights}
    seeds, network = streams.seeds(0, "train", 0, 8), {"hidden": hidden, "output_scale": 0.1}
    single, exact = (optimizer_with(kernel, dtype, **network) for dtype in (F32, F64))
    exact.load_state_dict(single.state_dict())
    settings = optimizee("quadratic", dim=10)
    problem, exact_problem = (
        settings.sample(seeds, Runtime(dtype=dtype, data_root=RUNTIME.data_root)) for dtype in (F32, F64)
    )
    (one,) = TBPTT(**window).estimates(single, problem)
    (other,) = TBPTT(**window, engine="graph").estimates(exact, exact_problem)
    assert {grad.dtype for grad in one.grads} == {F32}
    assert distance(one.grads, other.grads) <= 1e-5


@pytest.mark.parametrize("coordinates", [1, 5, 11])
@pytest.mark.parametrize("length", [1, 4])
def test_the_same_sample_of_coordinates_gives_the_same_whatever_the_kernel(length: int, coordinates: int) -> None:
    problem, tbptt = problems("quadratic", 3), TBPTT(length=length, steps=8, coordinates=coordinates)
    ours, theirs = (list(tbptt.estimates(optimizer_with(kernel), problem)) for kernel in ("cpp", "torch"))
    for one, other in zip(ours, theirs, strict=True):
        assert distance(one.grads, other.grads) <= 1e-11


@pytest.mark.parametrize("kernel", ["torch", "cpp"])
@pytest.mark.parametrize("chunk", [1, 5, 11, 12, 13, 10**9])
def test_chunks_change_nothing_beyond_rounding(chunk: int, kernel: str) -> None:
    problem, optimizer = problems("quadratic", 3), optimizer_with(kernel)
    whole, chunked = (
        list(TBPTT(length=4, steps=8, chunk=size).estimates(optimizer, problem)) for size in (None, chunk)
    )
    for one, other in zip(chunked, whole, strict=True):
        assert distance(one.grads, other.grads) <= 1e-13
        assert torch.equal(one.losses, other.losses)


@pytest.mark.parametrize(
    ("asked", "liked", "sizes"),
    [
        (5, None, [5, 5, 2]),
        (1, None, 12 * [1]),
        (5, 3, [5, 5, 2]),  # what the user says, before what the kernel likes
        (None, 7, [7, 5]),
        (None, None, [12]),
        (100, None, [12]),
    ],
)
def test_a_chunk_bounds_what_is_replayed_at_once(asked: int | None, liked: int | None, sizes: list[int]) -> None:
    optimizer = lstm(4)
    optimizer.kernel = kernel = Recording(liked)
    list(TBPTT(length=4, steps=7, chunk=asked).estimates(optimizer, problems("quadratic", 3)))
    assert kernel.replays == [(steps, 1, size) for steps in (4, 3) for size in sizes]  # each column once a window
    assert kernel.steps == 7


class Counting(TorchKernel):
    """Counts the steps that were recorded on the way, and those that were replayed."""

    def __init__(self, recordable: int):
        self.recordable = recordable
        self.recorded = self.replayed = 0

    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        self.replayed += len(grads)
        self.recorded -= len(grads)  # which `backward` is about to count
        return super().replay(network, grads, state, cotangents)

    def backward(self, network: Network, record: list[Any], cotangents: Tensor) -> tuple[Tensor, ...]:
        self.recorded += len(record)
        return super().backward(network, record, cotangents)


@pytest.mark.parametrize(
    ("asked", "recordable", "recorded", "replayed"),
    [
        ({}, 12 * 4, 4 + 3, 0),  # 12 coordinates, windows of 4 and of 3 steps
        ({}, 12 * 4 - 1, 3, 4),
        ({}, 0, 0, 4 + 3),
        ({"chunk": 12}, 10**9, 4 + 3, 0),
        ({"chunk": 11}, 10**9, 0, 2 * (4 + 3)),  # who bounds memory wants no record of all
        ({"coordinates": 12}, 10**9, 0, 4 + 3),  # who samples replays, so that processes with other shares do alike
        ({"coordinates": 11}, 10**9, 0, 4 + 3),
    ],
)
def test_what_fits_is_recorded_instead_of_replayed(
    asked: dict[str, int], recordable: int, recorded: int, replayed: int
) -> None:
    optimizer, problem = lstm(4), problems("quadratic", 3)
    optimizer.kernel = kernel = Counting(recordable)
    recording = list(TBPTT(length=4, steps=7, **asked).estimates(optimizer, problem))
    assert (kernel.recorded, kernel.replayed) == (recorded, replayed)
    optimizer.kernel = Counting(0)
    for one, other in zip(recording, TBPTT(length=4, steps=7, **asked).estimates(optimizer, problem), strict=True):
        assert distance(one.grads, other.grads) <= 1e-13


def test_an_optimizer_of_whole_problems_is_recorded_by_its_problems() -> None:
    optimizer, problem = lstm(4, coordinatewise=False), problems("quadratic", 3)
    for recordable, expected in ((3 * 4, (7, 0)), (3 * 4 - 1, (3, 4))):
        optimizer.kernel = kernel = Counting(recordable)
        list(TBPTT(length=4, steps=7).estimates(optimizer, problem))
        assert (kernel.recorded, kernel.replayed) == expected


@pytest.mark.parametrize("kernel", [CppKernel(), TorchKernel()], ids=["cpp", "torch"])
def test_a_record_is_what_the_kernel_says(kernel: Kernel) -> None:
    window = draw(Case())
    record: list[Any] = []
    if not kernel.recordable:
        with pytest.raises(NotImplementedError, match="cpp records nothing"):
            kernel.record_step(window.network, window.grads[0], window.state, record)
        with pytest.raises(NotImplementedError, match="cpp records nothing"):
            kernel.backward(window.network, record, window.cotangents)
        return
    state = window.state
    for grads in window.grads:
        _, state = kernel.record_step(window.network, grads, state, record)
    assert distance(kernel.backward(window.network, record, window.cotangents), by_autograd(window)) <= 1e-12


# In whole runs

pytestmark = pytest.mark.usefixtures("sketches")


def scores(folder: Path) -> list[float]:
    return [record["score"] for record in records(folder, "validation")]


def test_a_trained_optimizer_does_not_depend_on_the_kernel(tmp_path: Path) -> None:
    arguments = [*QUICK, "meta.steps=60", "meta.validate_every=20", "meta.lr=0.01", "unroll.steps=20"]
    arguments.append("optimizee.validation_problems=16")
    for kernel in ("torch", "cpp"):
        ended = train(tmp_path / kernel, *arguments, f"kernel={kernel}")
        assert ended.code == 0, ended.err
        assert f"kernel {kernel}," in ended.out
    ours, theirs = scores(tmp_path / "cpp"), scores(tmp_path / "torch")
    assert len(ours) == len(theirs) == 4
    assert ours == pytest.approx(theirs, rel=0.02)
    assert ours[-1] != pytest.approx(ours[0], rel=0.1)  # it has learned something


@pytest.mark.parametrize(("first", "second"), [("torch", "cpp"), ("cpp", "torch"), ("auto", "torch")])
def test_a_resumed_run_may_change_its_kernel(tmp_path: Path, first: str, second: str) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "meta.steps=4", f"kernel={first}").code == 0
    ended = train(None, f"resume={run}", "meta.steps=6", f"kernel={second}")
    assert ended.code == 0, ended.err
    assert f"kernel {second}," in ended.out
    assert len(scores(run)) == 4


def test_a_run_that_cpp_cannot_serve_says_so(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *QUICK, "optimizer.coordinatewise=false", "kernel=cpp")
    assert_one_sentence(ended, "kernel=cpp is not available", "it is for coordinatewise optimizers", "kernel=torch")


def test_a_run_with_auto_falls_back_with_one_line(tmp_path: Path) -> None:
    ended = train(tmp_path / "run", *QUICK, "optimizer.coordinatewise=false", "kernel=auto")
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.out.splitlines() if "is not available" in line]
    assert "it is for coordinatewise optimizers" in line
    assert "kernel torch," in ended.out


def test_a_kernel_of_no_known_name_is_refused(tmp_path: Path) -> None:
    assert_one_sentence(train(tmp_path / "run", *QUICK, "kernel=fast"), "kernel", "fast", "torch", "cpp", "auto")
