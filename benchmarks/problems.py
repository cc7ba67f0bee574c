"""The inputs of a window: the LSTM's initial weights and an optimizee's data, as NumPy arrays.

Every variant reads the same arrays from a file, so all of them compute the same thing. This module needs neither
PyTorch nor JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]

HIDDEN, LAYERS, FEATURES = 20, 2, 2
P, OUTPUT_SCALE = 10.0, 0.1
META_LR = 1e-3
MLP = 15910  # coordinates of 784-20-10
QUADRATICS = 12800  # most coordinates that are random quadratics; more are separable
POOL = 1024  # images


def network(hidden: int = HIDDEN, layers: int = LAYERS, seed: int = 0) -> Arrays:
    """Draw an untrained LSTM optimizer: `weight0` … [4 hidden, inputs + hidden], `bias0` … and the read-out.

    The gates are in the order input, forget, output, candidate.
    """
    draw = np.random.default_rng(seed)
    bound = hidden**-0.5
    shapes = {"readout_weight": (1, hidden), "readout_bias": (1,)}
    for layer in range(layers):
        shapes[f"weight{layer}"] = (4 * hidden, (FEATURES if layer == 0 else hidden) + hidden)
        shapes[f"bias{layer}"] = (4 * hidden,)
    return {name: draw.uniform(-bound, bound, shape).astype(np.float32) for name, shape in shapes.items()}


def problem(coordinates: int, steps: int, seed: int = 0) -> Arrays:
    """Draw the optimizee with so many coordinates: quadratics, the MLP or, for other numbers, a separable quadratic."""
    if coordinates == MLP:
        return mlp(steps, seed=seed)
    if coordinates % 10 == 0 and coordinates <= QUADRATICS:
        return quadratics(coordinates // 10, 10, seed)
    return separable(coordinates, seed)


def kind(coordinates: int) -> str:
    """Describe the optimizee that `problem` draws for that size."""
    if coordinates == MLP:
        return "MLP 784-20-10, minibatches of 128"
    if coordinates % 10 == 0 and coordinates <= QUADRATICS:
        return f"{coordinates // 10} quadratics of 10"
    return "a separable quadratic"


def quadratics(count: int, dim: int, seed: int = 0) -> Arrays:
    """Draw gaussian f(θ) = ‖Wθ − y‖², one for each problem, as `optimizee=quadratic` does."""
    draw = np.random.default_rng(seed)
    return {
        "kind": np.array("quadratic"),
        "weight": draw.standard_normal((count, dim, dim), dtype=np.float32),
        "target": draw.standard_normal((count, dim), dtype=np.float32),
        "start": 0.01 * draw.standard_normal((count, dim), dtype=np.float32),
    }


def mlp(steps: int, hidden: int = 20, side: int = 28, minibatch: int = 128, seed: int = 0) -> Arrays:
    """Draw an MLP (sigmoid, cross-entropy) on random images of MNIST's shape, with about a fifth of the pixels inked.

    Ink is likely in the middle and rare in the corners, so some weights get almost no gradient, as on MNIST.
    """
    draw = np.random.default_rng(seed)
    row, column = np.mgrid[:side, :side] - (side - 1) / 2
    inked = 0.75 * np.exp(-(row**2 + column**2) / (side / 3.5) ** 2)
    pixels = draw.random((POOL, side, side), dtype=np.float32) * (draw.random((POOL, side, side)) < inked)
    size = (side**2 + 1) * hidden + (hidden + 1) * 10
    return {
        "kind": np.array("mlp"),
        "hidden": np.array(hidden),
        "pixels": pixels.reshape(POOL, -1).astype(np.float32),
        "labels": draw.integers(0, 10, POOL),
        "index": draw.integers(0, POOL, (steps + 1, minibatch)),
        "start": 0.1 * draw.standard_normal((1, size), dtype=np.float32),
    }


def separable(size: int, seed: int = 0) -> Arrays:
    """f(θ) = ½ Σ a (θ − y)²: as many coordinates as one likes, at next to no cost of its own."""
    draw = np.random.default_rng(seed)
    return {
        "kind": np.array("separable"),
        "curvature": draw.uniform(0.5, 2, (1, size)).astype(np.float32),
        "target": draw.standard_normal((1, size), dtype=np.float32),
        "start": np.zeros((1, size), dtype=np.float32),
    }


def sample(data: Arrays) -> Arrays:
    """Draw a tiny problem of the same kind, which warms up a worker's libraries."""
    made = {"quadratic": lambda: quadratics(3, 4), "mlp": lambda: mlp(4, 3, 4, 5), "separable": lambda: separable(9)}
    return made[str(data["kind"])]()


def save(path: Path, network: Arrays, problem: Arrays) -> None:
    arrays: dict[str, Any] = {f"network/{name}": array for name, array in network.items()}
    arrays |= {f"problem/{name}": array for name, array in problem.items()}
    np.savez(path, **arrays)


def load(path: Path) -> tuple[Arrays, Arrays]:
    """Read the network and the problem from a file."""
    with np.load(path) as file:
        parts = [{k.split("/")[1]: file[k] for k in file if k.startswith(prefix)} for prefix in ("network", "problem")]
    return parts[0], parts[1]


def forward_multiply_adds(hidden: int = HIDDEN, layers: int = LAYERS) -> int:
    """Count the multiply-adds of one step of the LSTM for one coordinate."""
    inputs = [FEATURES] + [hidden] * (layers - 1)
    return sum(4 * hidden * (size + hidden) for size in inputs) + hidden


def flops(coordinates: int, steps: int, hidden: int = HIDDEN, layers: int = LAYERS, backward: bool = True) -> int:
    """Count the unavoidable floating-point operations: the LSTM's matrix products, forward and backward.

    Backward, each product counts once for its weights and once for its inputs, except the features, whose derivatives
    are not needed. Recomputation, nonlinearities, the optimizee and Adam do not count.
    """
    forward = forward_multiply_adds(hidden, layers)
    both = forward + (2 * forward - 4 * hidden * FEATURES if backward else 0)
    return 2 * both * coordinates * steps
