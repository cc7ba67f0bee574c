"""The coordinatewise LSTM optimizer on a GPU, in Triton: one kernel for a step, one for the replay of a window.

Columns don't interact, so a program takes a block of C of them through all of its work, and nothing but its sums ever
meets those of other programs. A tile is [H, C]: H is `hidden` padded to a power of two, with zeros that stay zeros; C
columns side by side in memory, as the state has them.

A step loads a block's state, takes it through all layers in registers, and stores the next state and the updates.

A replay runs layer by layer, not step by step. Forward: layer 0 goes through all steps, then layer 1 through all of
them reads what layer 0 said, and so on; backward the same from the top. So one layer's state, weights and sums are
all that a program holds at a time, with any number of layers. In between stands a scratch in global memory, which
belongs to the program and is used again for its next block:

    h and c of each layer before each step and after the last, [steps + 1, hidden, C] each,
    ∂/∂x of the layers above the first, [steps, hidden, C], of two layers at most.

Gates aren't stored but computed again on the way back: another quarter of the arithmetic, for two thirds of the
traffic. The number of programs depends on the GPU alone, whatever the number of columns, and so does the scratch.

The sums over columns and steps, which are the meta-gradient: within a block in the precision of the tensors, and from
there on in float64, first over the blocks of a program, one after the other, then over programs. No atomics: the same
tensors on the same GPU give the same bits.

Matrix products are float32 ("ieee"), because TensorFloat32 keeps 10 bits of a meta-gradient. Nothing here waits for
the GPU or depends on values, so that both calls can be captured in a CUDA graph (once they have run: the first call of
a shape compiles).

The arithmetic is that of reference.py.
"""

# What Triton compiles is no Python to mypy, and its capitals are constants to the compiler.
# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-untyped-calls=False
# ruff: noqa: N803, N806

from __future__ import annotations

import math
import os
import shutil
from typing import Any

import torch
from torch import Tensor

from l2l_runner.kernels.base import Kernel, Network, State
from l2l_runner.kernels.preprocessing import FEATURES

try:
    import triton
    import triton.language as tl

    jit = triton.jit
except ImportError:  # not on this platform: `unsupported` says so
    triton = None

    def jit(function: Any) -> Any:
        return function


LARGEST_HIDDEN = 64  # the weight gradients of a layer are eight tiles [H, H] in registers
SMALLEST_TILE = 16  # rows, columns and depth of a matrix product


def unsupported(network: Network, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this kernel can't serve such a network on such tensors, as a phrase; None if it can."""
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
    if network.hidden > LARGEST_HIDDEN:
        return f"hidden={network.hidden} is more than {LARGEST_HIDDEN}"
    return None


class TritonKernel(Kernel):
    """Triton, on CUDA tensors, for what `unsupported` lets through. Not differentiable.

    Attributes:
        columns: of a block; None chooses by the number of columns and programs.
        programs: of a replay, which bounds its memory; None chooses by the GPU.
    """

    name = "triton"
    chunk = None

    def __init__(self, columns: int | None = None, programs: int | None = None):
        self.columns = columns
        self.programs = programs

    @torch.no_grad()
    def step(self, network: Network, grads: Tensor, state: State) -> tuple[Tensor, State]:
        layers, columns = len(network.weights), grads.shape[-1]
        updates = grads.new_empty(1, columns)
        following = tuple(tensor.new_empty(tensor.shape) for tensor in state)
        block = self._block(network, columns, _processors(grads.device))
        with torch.cuda.device_of(grads):
            _step_kernel[(triton.cdiv(columns, block),)](
                *_learned(network),
                grads,
                grads.stride(-1),
                *_strided(state),
                following,
                updates,
                columns,
                LAYERS=layers,
                C=block,
                num_warps=_warps(network, block),
                num_stages=1,
                **_constants(network),
            )
        return updates, following

    @torch.no_grad()
    def replay(self, network: Network, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
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
                grads.stride(0),
                grads.stride(2),
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
                **_constants(network),
            )
        into_parameters = sums.sum(0).to(grads.dtype).split(sizes)
        return tuple(
            into.view_as(parameter) for into, parameter in zip(into_parameters, network.parameters, strict=True)
        )

    def _block(self, network: Network, columns: int, programs: int) -> int:
        """Columns of a block: few enough to give all programs some, and to keep a tile in registers."""
        if self.columns is not None:
            return self.columns
        largest = max(SMALLEST_TILE, TILE // _padded(network.hidden))
        return min(largest, _padded(triton.cdiv(columns, programs)))


TILE = 2048  # elements of the largest tile [H, C]
PROGRAMS_A_PROCESSOR = 2


def _warps(network: Network, block: int) -> int:
    """Of 32 threads, with 8 or more elements of a tile a thread."""
    return min(8, max(1, _padded(network.hidden) * block // 256))


def _padded(size: int) -> int:
    return max(SMALLEST_TILE, 1 << (size - 1).bit_length())


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _interpreted() -> bool:
    """Whether this is Triton's interpreter, which TRITON_INTERPRET=1 chooses, and which takes tensors on the CPU."""
    return not isinstance(_step_kernel, triton.JITFunction)


def _learned(network: Network) -> tuple[Any, ...]:
    weights, biases = (
        tuple(tensor.detach().contiguous() for tensor in tensors) for tensors in (network.weights, network.biases)
    )
    return weights, biases, network.readout_weight.detach().contiguous(), network.readout_bias.detach()


def _strided(state: State) -> tuple[Any, ...]:
    return state, tuple(tensor.stride(0) for tensor in state), tuple(tensor.stride(1) for tensor in state)


def _constants(network: Network) -> dict[str, Any]:
    return {
        "LOG_SIGN": network.preprocessing == "log_sign",
        "P": network.p,
        "EXP_P": math.exp(network.p),
        "FLOOR": math.exp(-network.p),
        "SCALE": network.output_scale,
        "FEATURES": FEATURES[network.preprocessing],
        "HIDDEN": network.hidden,
        "F": _padded(FEATURES[network.preprocessing]),
        "H": _padded(network.hidden),
    }


# What both kernels compute. F and H are features and hidden, padded; X is the one or the other.


@jit
def _dot(a, b):
    return tl.dot(a, b, input_precision="ieee", out_dtype=a.dtype)


@jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@jit
def _preprocess(g, LOG_SIGN: tl.constexpr, P: tl.constexpr, EXP_P: tl.constexpr, FLOOR: tl.constexpr, F: tl.constexpr):
    """Gradients [C] as features [F, C]. Those of a NaN are NaN."""
    row = tl.arange(0, F)[:, None]
    if LOG_SIGN:
        magnitude = tl.log(tl.where(tl.abs(g) < FLOOR, FLOOR, tl.abs(g))) / P
        direction = tl.where(g * EXP_P > 1, 1.0, tl.where(g * EXP_P < -1, -1.0, g * EXP_P))
        features = tl.where(row == 0, magnitude[None, :], tl.where(row == 1, direction[None, :], 0.0))
    else:
        features = tl.where(row == 0, g[None, :], 0.0)
    return features


@jit
def _weights(weight, GATE: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr, X: tl.constexpr, H: tl.constexpr):
    """Of one gate: those of the layer's inputs, [H, X], and those of its own h, [H, H]."""
    row, from_x, from_h = tl.arange(0, H)[:, None], tl.arange(0, X)[None, :], tl.arange(0, H)[None, :]
    at = weight + (GATE * HIDDEN + row) * (INPUTS + HIDDEN)
    of_x = tl.load(at + from_x, (row < HIDDEN) & (from_x < INPUTS), 0.0)
    of_h = tl.load(at + INPUTS + from_h, (row < HIDDEN) & (from_h < HIDDEN), 0.0)
    return of_x, of_h


@jit
def _gate(weight, bias, x, h, GATE: tl.constexpr, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """Before its nonlinearity, [H, C]; zero in the rows that are padding."""
    of_x, of_h = _weights(weight, GATE, INPUTS, HIDDEN, x.shape[0], h.shape[0])
    row = tl.arange(0, h.shape[0])
    b = tl.load(bias + GATE * HIDDEN + row, row < HIDDEN, 0.0)
    return _dot(of_x, x) + _dot(of_h, h) + b[:, None]


@jit
def _cell(weight, bias, x, h, c, INPUTS: tl.constexpr, HIDDEN: tl.constexpr):
    """From h and c [H, C] before a step those after it, and what the way back needs of it."""
    i = tl.sigmoid(_gate(weight, bias, x, h, 0, INPUTS, HIDDEN))
    f = tl.sigmoid(_gate(weight, bias, x, h, 1, INPUTS, HIDDEN))
    o = tl.sigmoid(_gate(weight, bias, x, h, 2, INPUTS, HIDDEN))
    candidate = _tanh(_gate(weight, bias, x, h, 3, INPUTS, HIDDEN))
    following = f * c + i * candidate
    tanh_c = _tanh(following)
    return o * tanh_c, following, i, f, o, candidate, tanh_c


@jit
def _load_state(state, row_stride, column_stride, column, real, HIDDEN: tl.constexpr, H: tl.constexpr):
    """A block [H, C] of h or c. Zero where it is padding: after the last row, or of columns that aren't real."""
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
    FEATURES: tl.constexpr,
    HIDDEN: tl.constexpr,
    F: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
):
    """One block of columns through one step."""
    row = tl.arange(0, H)
    column = tl.program_id(0).to(tl.int64) * C + tl.arange(0, C)
    real = column < columns
    g = tl.load(grads + column * grads_column, real, 0.0)
    x = _preprocess(g, LOG_SIGN, P, EXP_P, FLOOR, F)
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
    w = tl.load(readout_weight + row, row < HIDDEN, 0.0)
    out = tl.sum(w[:, None] * x, 0) + tl.load(readout_bias)
    tl.store(updates + column, out * SCALE, real)


# The replay.


@jit
def _load_kept(kept, t, HIDDEN: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    """Tile [H, C] number t of a part [steps + 1, hidden, C] of the scratch."""
    row, column = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    return tl.load(kept + (t * HIDDEN + row) * C + column, (row < HIDDEN) & (column < C), 0.0)


@jit
def _keep(kept, t, tile, HIDDEN: tl.constexpr, H: tl.constexpr, C: tl.constexpr):
    row, column = tl.arange(0, H)[:, None], tl.arange(0, C)[None, :]
    tl.store(kept + (t * HIDDEN + row) * C + column, tile, (row < HIDDEN) & (column < C))


@jit
def _gate_backward(
    weight,
    into_raw,
    x,
    h,
    into_x,
    into_h,
    into_of_x,
    into_of_h,
    into_b,
    GATE: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """From into_raw [H, C], add to the derivatives by x and h (of the step before), and by a gate's own weights."""
    of_x, of_h = _weights(weight, GATE, INPUTS, HIDDEN, x.shape[0], h.shape[0])
    into_x += _dot(tl.trans(of_x), into_raw)
    into_h += _dot(tl.trans(of_h), into_raw)
    into_of_x += _dot(into_raw, tl.trans(x))
    into_of_h += _dot(into_raw, tl.trans(h))
    into_b += tl.sum(into_raw, 1)
    return into_x, into_h, into_of_x, into_of_h, into_b


@jit
def _add(sums, tile, mask):
    tl.store(sums, tl.load(sums, mask, 0.0) + tile.to(tl.float64), mask)


@jit
def _add_gate(
    into_weight,
    into_bias,
    of_x,
    of_h,
    b,
    GATE: tl.constexpr,
    INPUTS: tl.constexpr,
    HIDDEN: tl.constexpr,
    X: tl.constexpr,
    H: tl.constexpr,
):
    """Add a block's derivatives by a gate's weights [H, X], [H, H] and biases [H] to the program's."""
    row, from_x, from_h = tl.arange(0, H)[:, None], tl.arange(0, X)[None, :], tl.arange(0, H)[None, :]
    at = into_weight + (GATE * HIDDEN + row) * (INPUTS + HIDDEN)
    _add(at + from_x, of_x, (row < HIDDEN) & (from_x < INPUTS))
    _add(at + INPUTS + from_h, of_h, (row < HIDDEN) & (from_h < HIDDEN))
    row = tl.arange(0, H)
    _add(into_bias + GATE * HIDDEN + row, b, row < HIDDEN)


@jit
def _replay_kernel(
    weights,
    biases,
    readout_weight,
    readout_bias,
    grads,
    grads_step,
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
    FEATURES: tl.constexpr,
    HIDDEN: tl.constexpr,
    F: tl.constexpr,
    H: tl.constexpr,
    C: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Some blocks of columns, one after the other, each through all steps and back.

    The barriers stand between the writing and the reading of the scratch, which may be by different threads.
    """
    program = tl.program_id(0).to(tl.int64)
    slot = tl.cast(steps + 1, tl.int64) * (HIDDEN * C)
    scratch += program * SLOTS * slot
    sums = program * sums_program
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        column = tl.cast(block, tl.int64) * C + tl.arange(0, C)
        real = column < columns
        grads_at = grads + column * grads_column
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
                    g = tl.load(grads_at + tl.cast(t, tl.int64) * grads_step, real, 0.0)
                    x = _preprocess(g, LOG_SIGN, P, EXP_P, FLOOR, F)
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
            w = tl.load(readout_weight + tl.arange(0, H), tl.arange(0, H) < HIDDEN, 0.0)
            into_w = tl.zeros([H], scratch.dtype.element_ty)
            into_out_sum = tl.zeros([C], scratch.dtype.element_ty)
            i_of_x = tl.zeros([H, F if LAYER == 0 else H], scratch.dtype.element_ty)
            i_of_h = tl.zeros([H, H], scratch.dtype.element_ty)
            i_b = tl.zeros([H], scratch.dtype.element_ty)
            f_of_x = tl.zeros([H, F if LAYER == 0 else H], scratch.dtype.element_ty)
            f_of_h = tl.zeros([H, H], scratch.dtype.element_ty)
            f_b = tl.zeros([H], scratch.dtype.element_ty)
            o_of_x = tl.zeros([H, F if LAYER == 0 else H], scratch.dtype.element_ty)
            o_of_h = tl.zeros([H, H], scratch.dtype.element_ty)
            o_b = tl.zeros([H], scratch.dtype.element_ty)
            candidate_of_x = tl.zeros([H, F if LAYER == 0 else H], scratch.dtype.element_ty)
            candidate_of_h = tl.zeros([H, H], scratch.dtype.element_ty)
            candidate_b = tl.zeros([H], scratch.dtype.element_ty)
            for back in range(steps):
                t = steps - 1 - back
                if LAYER == 0:
                    g = tl.load(grads_at + tl.cast(t, tl.int64) * grads_step, real, 0.0)
                    x = _preprocess(g, LOG_SIGN, P, EXP_P, FLOOR, F)
                else:
                    x = _load_kept(kept_h - slot, t + 1, HIDDEN, H, C)
                h_before = _load_kept(kept_h, t, HIDDEN, H, C)
                c_before = _load_kept(kept_c, t, HIDDEN, H, C)
                h, c, i, f, o, candidate, tanh_c = _cell(
                    weights[LAYER], biases[LAYER], x, h_before, c_before, FEATURES if LAYER == 0 else HIDDEN, HIDDEN
                )
                if LAYER == LAYERS - 1:
                    into_out = tl.load(cotangents_at + tl.cast(t, tl.int64) * cotangents_step, real, 0.0) * SCALE
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
                into_h = tl.zeros_like(into_c)
                into_x = tl.zeros_like(x)
                into_x, into_h, i_of_x, i_of_h, i_b = _gate_backward(
                    weights[LAYER],
                    into_i,
                    x,
                    h_before,
                    into_x,
                    into_h,
                    i_of_x,
                    i_of_h,
                    i_b,
                    0,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
                into_x, into_h, f_of_x, f_of_h, f_b = _gate_backward(
                    weights[LAYER],
                    into_f,
                    x,
                    h_before,
                    into_x,
                    into_h,
                    f_of_x,
                    f_of_h,
                    f_b,
                    1,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
                into_x, into_h, o_of_x, o_of_h, o_b = _gate_backward(
                    weights[LAYER],
                    into_o,
                    x,
                    h_before,
                    into_x,
                    into_h,
                    o_of_x,
                    o_of_h,
                    o_b,
                    2,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
                into_x, into_h, candidate_of_x, candidate_of_h, candidate_b = _gate_backward(
                    weights[LAYER],
                    into_candidate,
                    x,
                    h_before,
                    into_x,
                    into_h,
                    candidate_of_x,
                    candidate_of_h,
                    candidate_b,
                    3,
                    FEATURES if LAYER == 0 else HIDDEN,
                    HIDDEN,
                )
                if LAYER > 0:
                    _keep(into_x_below, t, into_x, HIDDEN, H, C)
            if LAYER == LAYERS - 1:
                row = tl.arange(0, H)
                _add(into_readout + sums + row, into_w, row < HIDDEN)
                one = tl.arange(0, 1)
                _add(into_readout_bias + sums + one, tl.sum(into_out_sum[None, :], 1), one < 1)
            _add_gate(
                into_weights[LAYER] + sums,
                into_biases[LAYER] + sums,
                i_of_x,
                i_of_h,
                i_b,
                0,
                FEATURES if LAYER == 0 else HIDDEN,
                HIDDEN,
                F if LAYER == 0 else H,
                H,
            )
            _add_gate(
                into_weights[LAYER] + sums,
                into_biases[LAYER] + sums,
                f_of_x,
                f_of_h,
                f_b,
                1,
                FEATURES if LAYER == 0 else HIDDEN,
                HIDDEN,
                F if LAYER == 0 else H,
                H,
            )
            _add_gate(
                into_weights[LAYER] + sums,
                into_biases[LAYER] + sums,
                o_of_x,
                o_of_h,
                o_b,
                2,
                FEATURES if LAYER == 0 else HIDDEN,
                HIDDEN,
                F if LAYER == 0 else H,
                H,
            )
            _add_gate(
                into_weights[LAYER] + sums,
                into_biases[LAYER] + sums,
                candidate_of_x,
                candidate_of_h,
                candidate_b,
                3,
                FEATURES if LAYER == 0 else HIDDEN,
                HIDDEN,
                F if LAYER == 0 else H,
                H,
            )
            tl.debug_barrier()
