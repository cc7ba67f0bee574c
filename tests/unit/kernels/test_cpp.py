"""The compiled kernel against plain PyTorch and autograd, whatever the numbers and their layout in memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from l2l_runner.kernels import FEATURES, Kernel, TorchKernel
from l2l_runner.kernels.base import in_memory
from l2l_runner.kernels.cpp import CppKernel
from problems import lstm
from windows import (
    F32,
    F64,
    INF,
    NAN,
    Case,
    Window,
    by_autograd,
    distance,
    double,
    draw,
    flat,
    name,
    replay,
    same,
    steps,
)

pytestmark = pytest.mark.usefixtures("cpp_kernel")

DTYPES = pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
BOTH = pytest.mark.parametrize("kernel", [CppKernel(), TorchKernel()], ids=["cpp", "torch"])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, for this test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Windows to compute


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
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5} if dtype is F32 else {"rtol": 1e-10, "atol": 1e-12}
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
    for mine, theirs in zip(steps(CppKernel(), window), steps(CppKernel(), plain), strict=True):
        assert same(mine, theirs)
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


# What it cannot read


def test_lazy_tensors_are_computed_and_others_refused() -> None:
    optimizer = lstm(4).float()
    optimizer.use_kernel("cpp")
    grads = torch.tensor([[0.3, -0.7, 0.0]])
    lazy = torch.complex(grads, -grads).conj().imag
    assert lazy.is_neg()
    with torch.no_grad():
        update, state = optimizer.update(grads, optimizer.init(grads), grads)
        same, following = optimizer.update(lazy, optimizer.init(grads), grads)
        assert all(torch.equal(one, other) for one, other in zip((same, *following), (update, *state), strict=True))
        negated = tuple(torch.complex(value, -value).conj().imag for value in state)
        assert torch.equal(optimizer.update(grads, negated, grads)[0], optimizer.update(grads, state, grads)[0])
        with FakeTensorMode():
            fake = torch.ones(1, 3)
        for bad, words in [(fake, "a FakeTensor"), (grads.half(), "torch.float16")]:
            with pytest.raises(TypeError, match=words):
                optimizer.update(bad, state, grads)


def test_freed_memory_is_not_read() -> None:
    freed = torch.ones(1, 3)
    freed.untyped_storage().resize_(0)
    refused = False
    try:
        in_memory(freed)
    except TypeError as error:
        refused = "memory has been freed" in str(error)
    del freed  # a failed test prints its variables
    assert refused


def test_a_replay_does_not_depend_on_the_default_device() -> None:
    optimizer = lstm(4).float()
    optimizer.use_kernel("cpp")
    grads, cotangents = torch.randn(3, 1, 4), torch.randn(3, 1, 4)
    state = optimizer.init(grads[0])
    expected = optimizer.replay(grads, state, cotangents)
    with torch.device("meta"):
        found = optimizer.replay(grads, state, cotangents)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
