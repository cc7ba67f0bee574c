"""Which kernel computes, and what it computes in optimizers and estimators."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.kernels import FEATURES, Kernel, Network, State, TorchKernel, cpp, pick_kernel
from l2l_runner.kernels.cpp import CppKernel
from l2l_runner.meta import TBPTT
from l2l_runner.runtime import Runtime
from problems import RUNTIME, lstm, optimizee, problems
from windows import F32, F64, Case, by_autograd, distance, double, draw, flat, replay, same, steps

pytestmark = pytest.mark.usefixtures("cpp_kernel")


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
    with pytest.raises(TypeError, match="expected all float32 or all float64, on the CPU"):
        CppKernel().replay(*window)
    if part != "cotangents":
        with pytest.raises(TypeError, match="expected all float32 or all float64, on the CPU"):
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
        self.chunk = chunk  # type: ignore[assignment]
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
    problem = problems("quadratic", 3)
    window: dict[str, Any] = {"length": length, "steps": horizon, "weights": weights}
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
    window: dict[str, Any] = {"length": length, "steps": length, "weights": weights}
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
    asked: dict[str, Any], recordable: int, recorded: int, replayed: int
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
