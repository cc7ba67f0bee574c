"""What a good JAX user writes: jit of value_and_grad of lax.scan, with Adam inside."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problems import META_LR, OUTPUT_SCALE, Arrays, P
from benchmarks.variant import Estimate

Tree = dict[str, Any]
State = tuple[tuple[jax.Array, jax.Array], ...]


def losses(kind: str, data: Tree, hidden: int, params: jax.Array, step: jax.Array | int) -> jax.Array:
    """Compute the losses [problems] at params [problems, coordinates], on the minibatch of `step`."""
    if kind == "quadratic":
        residual = jnp.einsum("bij,bj->bi", data["weight"], params) - data["target"]
        return (residual**2).sum(-1)
    if kind == "separable":
        return 0.5 * (data["curvature"] * (params - data["target"]) ** 2).sum(-1)
    index = data["index"][step]
    pixels, labels = data["pixels"][index], data["labels"][index]
    inputs = pixels.shape[1]
    w1, b1, w2, b2 = jnp.split(params[0], np.cumsum([hidden * inputs, hidden, 10 * hidden]))
    out = jax.nn.sigmoid(pixels @ w1.reshape(hidden, inputs).T + b1)
    logits = jax.nn.log_softmax(out @ w2.reshape(10, hidden).T + b2)
    return -jnp.take_along_axis(logits, labels[:, None], axis=1).mean()[None]


def log_sign(grads: jax.Array, axis: int) -> jax.Array:
    """Turn gradients [coordinates] into features, stacked along `axis`."""
    magnitude = jnp.log(jnp.maximum(jnp.abs(grads), math.exp(-P))) / P
    return jnp.stack([magnitude, jnp.clip(grads * math.exp(P), -1, 1)], axis)


def lstm_rows(network: Tree, grads: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Compute the updates [coordinates] and the next state, with one row per coordinate, as most would write it."""
    x = log_sign(grads, -1)
    following = []
    for layer, (h, c) in enumerate(state):
        raw = jnp.concatenate([x, h], axis=1) @ network[f"weight{layer}"].T + network[f"bias{layer}"]
        i, f, o, candidate = jnp.split(raw, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(candidate)
        x = jax.nn.sigmoid(o) * jnp.tanh(c)
        following.append((x, c))
    return (x @ network["readout_weight"].T + network["readout_bias"]).ravel(), tuple(following)


def lstm_columns(network: Tree, grads: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Compute the same with one column per coordinate: each gate is one block of memory, which is faster in XLA."""
    x = log_sign(grads, 0)
    following = []
    for layer, (h, c) in enumerate(state):
        raw = network[f"weight{layer}"] @ jnp.concatenate([x, h]) + network[f"bias{layer}"][:, None]
        i, f, o, candidate = jnp.split(raw, 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(candidate)
        x = jax.nn.sigmoid(o) * jnp.tanh(c)
        following.append((x, c))
    return (network["readout_weight"] @ x + network["readout_bias"][:, None]).ravel(), tuple(following)


class Jax:
    """The window, compiled ahead of time for its shapes."""

    def __init__(self, network: Arrays, problem: Arrays, steps: int, columns: bool):
        kind, hidden = str(problem["kind"]), int(problem.get("hidden", 0))
        layers, units = sum(name.startswith("weight") for name in network), network["readout_weight"].shape[1]
        data = {name: jnp.asarray(array) for name, array in problem.items() if name not in ("kind", "hidden")}
        coordinates, lstm = problem["start"].size, lstm_columns if columns else lstm_rows
        first = {name: jnp.asarray(array) for name, array in network.items()}

        def meta_loss(network: Tree, data: Tree) -> tuple[jax.Array, jax.Array]:
            def value(params: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
                each = losses(kind, data, hidden, params, step)
                return each.sum(), each

            def body(carry: Any, step: jax.Array) -> tuple[Any, jax.Array]:
                params, state = carry
                (_, each), grads = jax.value_and_grad(value, has_aux=True)(params, step)
                update, state = lstm(network, lax.stop_gradient(grads).ravel(), state)
                return (params + OUTPUT_SCALE * update.reshape(params.shape), state), each

            zeros = jnp.zeros((units, coordinates) if columns else (coordinates, units), data["start"].dtype)
            state = tuple((zeros, zeros) for _ in range(layers))
            (params, _), met = lax.scan(body, (data["start"], state), jnp.arange(steps))
            last = losses(kind, data, hidden, params, steps)
            trajectory = jnp.concatenate([met[1:], last[None]])
            return trajectory.sum(0).mean(), trajectory

        def adam(network: Tree, moments: tuple[Tree, Tree, jax.Array], grads: Tree) -> tuple[Tree, Any]:
            means, squares, count = moments
            count = count + 1
            means = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, means, grads)
            squares = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, squares, grads)

            def moved(w: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
                return w - META_LR * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8)

            return jax.tree.map(moved, network, means, squares), (means, squares, count)

        def window(network: Tree, moments: Any, data: Tree) -> tuple[Any, ...]:
            (value, _), grads = jax.value_and_grad(meta_loss, has_aux=True)(network, data)
            return value, *adam(network, moments, grads)

        zeros = jax.tree.map(jnp.zeros_like, first)
        self.network, self.moments, self.data = first, (zeros, zeros, jnp.zeros((), jnp.float32)), data
        self.differentiate = jax.value_and_grad(meta_loss, has_aux=True)
        self.compiled = jax.jit(window).lower(self.network, self.moments, self.data).compile()

    def close(self) -> None:
        """Do nothing: no settings were changed."""

    def window(self) -> float:
        value, self.network, self.moments = jax.block_until_ready(self.compiled(self.network, self.moments, self.data))
        return float(value)

    def estimate(self) -> Estimate:
        (_, trajectory), grads = jax.jit(self.differentiate)(self.network, self.data)
        return Estimate(np.asarray(trajectory), {name: np.asarray(grad) for name, grad in grads.items()})
