"""The coordinatewise LSTM optimizer on a GPU, in Triton: one kernel for a step, one for the replay of a window.

Columns do not interact, so a program takes a block of C of them through all of its work, and only its sums are combined
with those of other programs. A tile is [H, C]: H is `hidden` padded to a power of two, with zeros that stay zero; the
C columns lie side by side in memory, as in the state.

A step loads a block's state, takes it through all layers in registers, and stores the next state and the updates.

A replay runs layer by layer, not step by step. Forward, layer 0 computes all steps, then layer 1 computes all steps
from the outputs of layer 0, and so on; backward likewise from the top. So a program holds the state, weights and sums
of one layer at a time, whatever the number of layers. Between layers it uses a scratch in global memory, the same for
each of its blocks:

    h and c of each layer before each step and after the last, [steps + 1, hidden, C] each,
    ∂/∂x of the layers above the first, [steps, hidden, C], of two layers at most.

Gates are not stored but computed again in the backward pass: a third more arithmetic, for less than half of the
traffic. The GPU bounds the number of programs, whatever the number of columns, and so the scratch: with two layers of
20, 32 columns per block and 264 programs, 13 KB per step and program, 350 MB for 100 steps.

The meta-gradient is a sum over columns and steps. Within a block it is taken in the precision of the tensors, then in
float64, over the blocks of a program in order, and over programs. Without atomics, the same tensors on the same GPU
give the same bits.

Matrix products are float32 ("ieee"), because TensorFloat32 keeps only 10 bits of a meta-gradient. Nothing waits for
the GPU or depends on values, so that both calls can be captured in a CUDA graph, after a first call of each shape,
which compiles.

The arithmetic is that of reference.py.
"""

# mypy cannot check what Triton compiles, and capitals are constants to the compiler.
# mypy: disallow-untyped-decorators=False, disable-error-code="no-untyped-def,no-untyped-call"
# ruff: noqa: N803, N806

from __future__ import annotations

import math
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from l2l_runner.kernels.base import Kernel, Network, State, in_memory

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # Triton has no wheel for this platform; `unsupported` says so
    triton = None

    def jit(function: Any) -> Any:
        return function


SMALLEST_TILE = 16  # rows, columns and depth of a matrix product
LARGEST_TILE = 1024  # elements of [H, C]: four for each of 256 threads; with more a replay overflows their registers
PROGRAMS_A_PROCESSOR = 2
SHARED = {16: 32, 32: 58, 64: 160}  # by H: KiB of shared memory that a replay in float32 was compiled to, or more


def unsupported(network: Network, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why this kernel cannot compute the network on such tensors, as a phrase; None if it can."""
    if triton is None:
        return "Triton is not installed"
    if not _interpreted():
        if device.type != "cuda":
            return f"the tensors are on the {device.type.upper()}, not on a GPU"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "Triton needs a GPU of compute capability 8.0 or newer"
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "Triton finds no C compiler"
    if dtype not in (torch.float32, torch.float64):
        return f"the tensors are {str(dtype).removeprefix('torch.')}, not float32 or float64"
    if network.readout_weight.shape[0] != 1:
        return "the network is not coordinatewise"
    if network.hidden > max(SHARED):
        return f"hidden={network.hidden} is more than {max(SHARED)}"
    if device.type == "cuda":
        needed = SHARED[_padded(network.hidden)] * 1024 * dtype.itemsize // 4
        if needed > torch.cuda.get_device_properties(device).shared_memory_per_block_optin:
            return f"hidden={network.hidden} needs more shared memory than this GPU has"
    return None


class TritonKernel(Kernel):
    """A kernel in Triton, for CUDA tensors; not differentiable.

    Attributes:
        columns: per block; None chooses by the number of columns and programs.
        programs: of a replay, which bound its memory; None chooses by the GPU.
    """

    name = "triton"
    chunk = None

    def __init__(self, columns: int | None = None, programs: int | None = None):
        self.columns = columns
        self.programs = programs

    @torch.no_grad()
    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        grads, state = in_memory(grads), tuple(map(in_memory, state))
        layers, columns = len(network.weights), grads.shape[-1]
        updates = grads.new_empty(1, columns)
        following = tuple(tensor.new_empty(tensor.shape) for tensor in state)
        block = self._block(network, columns, _processors(grads.device))
        with torch.cuda.device_of(grads):
            _step_kernel[(triton.cdiv(columns, block),)](
                *_learned(network),
                grads,
                *grads.stride(),
                *_strided(state),
                following,
                updates,
                columns,
                LAYERS=layers,
                C=block,
                num_warps=_warps(network, block),
                num_stages=1,
                enable_fp_fusion=True,
                **_constants(network),
            )
        return updates, following

    @torch.no_grad()
    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        grads, state, cotangents = in_memory(grads), tuple(map(in_memory, state)), in_memory(cotangents)
        steps, _, columns = grads.shape
        layers = len(network.weights)
        programs = self.programs or PROGRAMS_A_PROCESSOR * _processors(grads.device)
        block = self._block(network, columns, programs)
        blocks = triton.cdiv(columns, block)
        programs = min(programs, blocks)
        slots = 2 * layers + min(layers - 1, 2)
        scratch = grads.new_empty(programs, slots, steps + 1, network.hidden, block)
        sizes = [parameter.numel() for parameter in network.parameters]
        sums = grads.new_zeros(programs, sum(sizes), dtype=torch.float64)
        readout, readout_bias, *rest = sums.split(sizes, dim=1)
        with torch.cuda.device_of(grads):
            _replay_kernel[(programs,)](
                *_learned(network),
                grads,
                *grads.stride(),
                *_strided(state),
                cotangents,
                cotangents.stride(0),
                cotangents.stride(2),
                scratch,
                readout,
                readout_bias,
                tuple(rest[:layers]),
                tuple(rest[layers:]),
                sums.stride(0),
                steps,
                columns,
                blocks,
                LAYERS=layers,
                C=block,
                SLOTS=slots,
                num_warps=_warps(network, block),
                num_stages=1,
                enable_fp_fusion=True,
                **_constants(network),
            )
        into_parameters = sums.sum(0).to(grads.dtype).split(sizes)
        return tuple(
            into.view_as(parameter) for into, parameter in zip(into_parameters, network.parameters, strict=True)
        )

    def _block(self, network: Network, columns: int, programs: int) -> int:
        """Return the columns per block: few enough for all programs to get some, and for a tile to fit in registers."""
        if self.columns is not None:
            return self.columns
        largest = max(SMALLEST_TILE, LARGEST_TILE // _padded(network.hidden))
        return min(largest, _padded(triton.cdiv(columns, programs)))


def _warps(network: Network, block: int) -> int:
    """Return the number of warps of 32 threads, for at least 4 elements of a tile per thread."""
    return min(8, max(1, _padded(network.hidden) * block // 128))


def _padded(size: int) -> int:
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _interpreted() -> bool:
    """Return whether Triton's interpreter runs (TRITON_INTERPRET=1), which takes tensors on the CPU."""
    return not isinstance(_step_kernel, triton.JITFunction)


def _learned(network: Network) -> tuple[Any, ...]:
    def whole(tensor: Tensor) -> Tensor:
        return in_memory(tensor.detach()).contiguous()

    weights, biases = (tuple(map(whole, tensors)) for tensors in (network.weights, network.biases))
    return weights, biases, whole(network.readout_weight), whole(network.readout_bias)


def _strided(state: State) -> tuple[Any, ...]:
    return state, tuple(tensor.stride(0) for tensor in state), tuple(tensor.stride(1) for tensor in state)


def _constants(network: Network) -> dict[str, Any]:
    return {
        "LOG_SIGN": network.preprocessing == "log_sign",
        "P": network.p,
        "EXP_P": math.exp(network.p),
        "FLOOR": math.exp(-network.p),
        "SCALE": network.output_scale,
        "SQUASH": network.squash,
        "ROWS": network.rows,
        "FEATURES": network.features,
        "HIDDEN": network.hidden,
        "F": _padded(network.features),
        "H": _padded(network.hidden),
    }


# Shared by both kernels. F and H are features and hidden, padded; X is one of them.


@jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@jit
def _read(
    grads,
    row_stride,
    column_stride,
    column,
    real,
    LOG_SIGN: tl.constexpr,
    P: tl.constexpr,
    EXP_P: tl.constexpr,
    FLOOR: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    F: tl.constexpr,
):
    """Read the inputs of a step, as features [F, C]; those of a NaN are NaN."""
    row = tl.arange(0, F)[:, None]
    at = grads + column[None, :] * column_stride
    if ROWS > 1:
        at += (row % ROWS).to(tl.int64) * row_stride
    g = tl.load(at, real[None, :], 0.0)  # [1, C] where that will do
    features = g
    if LOG_SIGN:
        magnitude = tl.log(tl.where(tl.abs(g) < FLOOR, FLOOR, tl.abs(g))) / P
        direction = tl.where(g * EXP_P > 1, 1.0, tl.where(g * EXP_P < -1, -1.0, g * EXP_P))
        features = tl.where(row < ROWS, magnitude, direction)
    return tl.where(row < FEATURES, features, 0.0)


@jit
def _weights(weight, GATE: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr, X: tl.constexpr, H: tl.constexpr):
    """Load the weights of one gate: those of the layer's inputs, [H, X], and those of its own h, [H, H]."""
    row, from_x, from_h = tl.arange(0, H)[:, None], tl.arange(0, X)[None, :], tl.arange(0, H)[None, :]
    at = weight + (GATE * HIDDEN + row) * (INPUTS + HIDDEN)
    of_x = tl.load(at + from_x, (row < HIDDEN) & (from_x < INPUTS), 0.0)
    of_h = tl.load(at + INPUTS + from_h, (row < HIDDEN) & (from_h < HIDDEN), 0.0)
    return of_x, of_h


@jit
def _gate(weight, bias, x, h, GATE: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Return a gate before its nonlinearity, [H, C]; zero in the padding rows."""
    of_x, of_h = _weights(weight, GATE, INPUTS, HIDDEN, x.shape[0], h.shape[0])
    row = tl.arange(0, h.shape[0])
    b = tl.load(bias + GATE * HIDDEN + row, row < HIDDEN, 0.0)
    raw = _dot(of_x, x) + _dot(of_h, h) + b[:, None]
    if h.shape[0] > HIDDEN:
        raw = tl.where(row[:, None] < HIDDEN, raw, 0.0)  # 0 · ∞ is not zero
    return raw


@jit
def _cell(weight, bias, x, h, c, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Return h and c [H, C] after a step, from those before it, and what the backward pass needs."""
    i = tl.sigmoid(_gate(weight, bias, x, h, 0, INPUTS, HIDDEN))
    f = tl.sigmoid(_gate(weight, bias, x, h, 1, INPUTS, HIDDEN))
    o = tl.sigmoid(_gate(weight, bias, x, h, 2, INPUTS, HIDDEN))
    candidate = _tanh(_gate(weight, bias, x, h, 3, INPUTS, HIDDEN))
    following = f * c + i * candidate
    tanh_c = _tanh(following)
    return o * tanh_c, following, i, f, o, candidate, tanh_c


@jit
def _read_out(weight, bias, h, SQUASH: tl.constexpr, HIDDEN: tl.constexpr):
    """Return the updates [C] before they are scaled, and the read-out's weights [H]."""
    row = tl.arange(0, h.shape[0])
    w = tl.load(weight + row, row < HIDDEN, 0.0)
    out = tl.sum(w[:, None] * h, 0) + tl.load(bias)
    if SQUASH:
        out = _tanh(out)
    return out, w


@jit
def _load_state(state, row_stride, column_stride, column, real, HIDDEN: tl.constexpr, H: tl.constexpr):
    """Load a block [H, C] of h or c; zero in padding, after the last row or the last column."""
    row = tl.arange(0, H)[:, None].to(tl.int64)
    at = state + row * row_stride + column[None, :] * column_stride
    return tl.load(at, (row < HIDDEN) & real[None, :], 0.0)


@jit
def _step_kernel(
    weights,
    biases,
    readout_weight,
    readout_bias,
    grads,
    grads_row,
    grads_column,
    state,
    state_row,
    state_column,
    following,
    updates,
    columns,
    LAYERS: tl.constexpr,
    LOG_SIGN: tl.constexpr,
    P: tl.constexpr,
    EXP_P: tl.constexpr,
    FLOOR: tl.constexpr,
    SCALE: tl.constexpr,
    SQUASH: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    HIDDEN: tl.constexpr,
    F: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
):
    """Take one block of columns through one step."""
    row = tl.arange(0, H)
    column = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    real = column < columns
    x = _read(grads, grads_row, grads_column, column, real, LOG_SIGN, P, EXP_P, FLOOR, ROWS, FEATURES, F)
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    stored = (row[:, None] < HIDDEN) & real[None, :]
    for LAYER in tl.static_range(LAYERS):
        h = _load_state(state[2 * LAYER], state_row[2 * LAYER], state_column[2 * LAYER], column, real, HIDDEN, H)
        c = _load_state(
            state[2 * LAYER + 1], state_row[2 * LAYER + 1], state_column[2 * LAYER + 1], column, real, HIDDEN, H
        )
        h, c, _, _, _, _, _ = _cell(weights[LAYER], biases[LAYER], x, h, c, FEATURES if LAYER == 0 else HIDDEN, HIDDEN)
        tl.store(following[2 * LAYER] + at, h, stored)
        tl.store(following[2 * LAYER + 1] + at, c, stored)
        x = h
    out, _ = _read_out(readout_weight, readout_bias, x, SQUASH, HIDDEN)
    tl.store(updates + column, out * SCALE, real)


# The replay.


@jit
def _load_kept(kept, t, HIDDEN: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    """Load tile number t, [H, C], of a part [steps + 1, hidden, C] of the scratch."""
    row, column = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    return tl.load(kept + (t * HIDDEN + row) * C + column, (row < HIDDEN), 0.0)


@jit
def _keep(kept, t, tile, HIDDEN: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    row, column = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    tl.store(kept + (t * HIDDEN + row) * C + column, tile, (row < HIDDEN))


@jit
def _into_inputs(weight, into_raw, x, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Return the derivatives by x and by h of the step before, from those by the four gates, each [H, C]."""
    into_x, into_h = tl.zeros_like(x), tl.zeros_like(into_raw[0])
    for GATE in tl.static_range(4):
        of_x, of_h = _weights(weight, GATE, INPUTS, HIDDEN, x.shape[0], into_h.shape[0])
        into_x += _dot(tl.trans(of_x), into_raw[GATE])
        into_h += _dot(tl.trans(of_h), into_raw[GATE])
    return into_x, into_h


@jit
def _nothing(dtype: tl.constexpr, X: tl.constexpr, H: tl.constexpr):
    """Return the zero sums of a gate's derivatives: by its weights of x and of h, and by its biases."""
    return tl.zeros([H, X], dtype), tl.zeros([H, H], dtype), tl.zeros([H], dtype)


@jit
def _more(sums, into_raw, x, h):
    of_x = sums[0] + _dot(into_raw, tl.trans(x))
    of_h = sums[1] + _dot(into_raw, tl.trans(h))
    return of_x, of_h, sums[2] + tl.sum(into_raw, 1)


@jit
def _add(sums, tile, mask):
    tl.store(sums, tl.load(sums, mask, 0.0) + tile.to(tl.float64), mask)


@jit
def _add_gate(weight, bias, sums, GATE: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Add a block's sums of one gate to the program's."""
    row, from_x, from_h = tl.arange(0, sums[0].shape[0]), tl.arange(0, sums[0].shape[1]), tl.arange(0, sums[1].shape[1])
    at = weight + (GATE * HIDDEN + row[:, None]) * (INPUTS + HIDDEN)
    _add(at + from_x[None, :], sums[0], (row[:, None] < HIDDEN) & (from_x[None, :] < INPUTS))
    _add(at + INPUTS + from_h[None, :], sums[1], (row[:, None] < HIDDEN) & (from_h[None, :] < HIDDEN))
    _add(bias + GATE * HIDDEN + row, sums[2], row < HIDDEN)


@jit
def _replay_kernel(
    weights,
    biases,
    readout_weight,
    readout_bias,
    grads,
    grads_step,
    grads_row,
    grads_column,
    state,
    state_row,
    state_column,
    cotangents,
    cotangents_step,
    cotangents_column,
    scratch,
    into_readout,
    into_readout_bias,
    into_weights,
    into_biases,
    sums_program,
    steps,
    columns,
    blocks,
    LAYERS: tl.constexpr,
    LOG_SIGN: tl.constexpr,
    P: tl.constexpr,
    EXP_P: tl.constexpr,
    FLOOR: tl.constexpr,
    SCALE: tl.constexpr,
    SQUASH: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    HIDDEN: tl.constexpr,
    F: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Take some blocks of columns, in order, through all steps and back.

    The barriers separate writes and reads of the scratch, which may be by different threads.
    """
    program = tl.program_id(0).to(tl.int64)
    slot = tl.cast(steps + 1, tl.int64) * (HIDDEN * C)
    scratch += program * SLOTS * slot
    sums = program * sums_program
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        column = tl.cast(block, tl.int64) * C + tl.arange(0, C)
        real = column < columns
        cotangents_at = cotangents + column * cotangents_column

        for LAYER in tl.static_range(LAYERS):
            h = _load_state(state[2 * LAYER], state_row[2 * LAYER], state_column[2 * LAYER], column, real, HIDDEN, H)
            c = _load_state(
                state[2 * LAYER + 1], state_row[2 * LAYER + 1], state_column[2 * LAYER + 1], column, real, HIDDEN, H
            )
            kept_h = scratch + LAYER * slot
            kept_c = scratch + (LAYERS + LAYER) * slot
            _keep(kept_h, 0, h, HIDDEN, H, C)
            _keep(kept_c, 0, c, HIDDEN, H, C)
            for t in range(steps):
                if LAYER == 0:
                    at = grads + tl.cast(t, tl.int64) * grads_step
                    x = _read(at, grads_row, grads_column, column, real, LOG_SIGN, P, EXP_P, FLOOR, ROWS, FEATURES, F)
                else:
                    x = _load_kept(kept_h - slot, t + 1, HIDDEN, H, C)
                h, c, _, _, _, _, _ = _cell(
                    weights[LAYER], biases[LAYER], x, h, c, FEATURES if LAYER == 0 else HIDDEN, HIDDEN
                )
                _keep(kept_h, t + 1, h, HIDDEN, H, C)
                _keep(kept_c, t + 1, c, HIDDEN, H, C)
            tl.debug_barrier()

        for LAYER in tl.static_range(LAYERS - 1, -1, -1):
            kept_h = scratch + LAYER * slot
            kept_c = scratch + (LAYERS + LAYER) * slot
            into_x_above = scratch + (2 * LAYERS + LAYER % 2) * slot
            into_x_below = scratch + (2 * LAYERS + (LAYER + 1) % 2) * slot
            into_h = tl.zeros([H, C], scratch.dtype.element_ty)  # by way of the step after
            into_c = tl.zeros([H, C], scratch.dtype.element_ty)
            into_w = tl.zeros([H], scratch.dtype.element_ty)
            into_out_sum = tl.zeros([C], scratch.dtype.element_ty)
            of_i = _nothing(scratch.dtype.element_ty, F if LAYER == 0 else H, H)
            of_f = _nothing(scratch.dtype.element_ty, F if LAYER == 0 else H, H)
            of_o = _nothing(scratch.dtype.element_ty, F if LAYER == 0 else H, H)
            of_candidate = _nothing(scratch.dtype.element_ty, F if LAYER == 0 else H, H)
            for back in range(steps):
                t = steps - 1 - back
                if LAYER == 0:
                    at = grads + tl.cast(t, tl.int64) * grads_step
                    x = _read(at, grads_row, grads_column, column, real, LOG_SIGN, P, EXP_P, FLOOR, ROWS, FEATURES, F)
                else:
                    x = _load_kept(kept_h - slot, t + 1, HIDDEN, H, C)
                h_before = _load_kept(kept_h, t, HIDDEN, H, C)
                c_before = _load_kept(kept_c, t, HIDDEN, H, C)
                h, c, i, f, o, candidate, tanh_c = _cell(
                    weights[LAYER],
                    biases[LAYER],
                    x,
                    h_before,
                    c_before,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
                if LAYER == LAYERS - 1:
                    into_out = tl.load(cotangents_at + tl.cast(t, tl.int64) * cotangents_step, real, 0.0) * SCALE
                    out, w = _read_out(readout_weight, readout_bias, h, SQUASH, HIDDEN)
                    if SQUASH:
                        into_out *= 1 - out * out
                    into_h += w[:, None] * into_out[None, :]
                    into_w += tl.sum(h * into_out[None, :], 1)
                    into_out_sum += into_out
                else:
                    into_h += _load_kept(into_x_above, t, HIDDEN, H, C)
                into_c += into_h * o * (1 - tanh_c * tanh_c)
                into_i = into_c * candidate * i * (1 - i)
                into_f = into_c * c_before * f * (1 - f)
                into_o = into_h * tanh_c * o * (1 - o)
                into_candidate = into_c * i * (1 - candidate * candidate)
                into_c *= f
                of_i = _more(of_i, into_i, x, h_before)
                of_f = _more(of_f, into_f, x, h_before)
                of_o = _more(of_o, into_o, x, h_before)
                of_candidate = _more(of_candidate, into_candidate, x, h_before)
                into_raw = (into_i, into_f, into_o, into_candidate)
                into_x, into_h = _into_inputs(weights[LAYER], into_raw, x, FEATURES if LAYER == 0 else HIDDEN, HIDDEN)
                if LAYER > 0:
                    _keep(into_x_below, t, into_x, HIDDEN, H, C)

            if LAYER == LAYERS - 1:
                row = tl.arange(0, H)
                _add(into_readout + sums + row, into_w, row < HIDDEN)
                one = tl.arange(0, 1)
                _add(into_readout_bias + sums + one, tl.sum(into_out_sum[None, :], 1), one < 1)
            of_gates = (of_i, of_f, of_o, of_candidate)
            for GATE in tl.static_range(4):
                _add_gate(
                    into_weights[LAYER] + sums,
                    into_biases[LAYER] + sums,
                    of_gates[GATE],
                    GATE,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
            tl.debug_barrier()
