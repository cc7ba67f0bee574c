"""The Warp-RNN: its gates against a plain LSTM, and its gradients against truncated back-propagation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from composing import built, refusal
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout, Site
from l2l_runner.meta import TBPTT, Direct
from l2l_runner.optimizers import Adam
from problems import (
    WARP_HIDDEN,
    WARP_RNN,
    optimizee,
    problems,
    scattered,
    warp_rnn,
)

# The Warp-RNN


def test_gates_are_those_of_a_plain_lstm():
    optimizer = warp_rnn(Layout({"w": (1,)}, {"cell": Site(5, dims=0, hidden=4)}), 1.0)
    gates = optimizer.gates["cell"]
    named = {name: value.detach() for name, value in gates.named_parameters()}
    generator = torch.Generator().manual_seed(2)
    memory, (m, c) = None, (torch.zeros(3, WARP_HIDDEN, dtype=torch.float64),) * 2
    for _ in range(4):
        x, hidden = (torch.randn(3, size, generator=generator).double() for size in (5, 4))
        factors, memory = gates(x, hidden, memory)
        weights = torch.cat((named["lstm.weight_ih"], named["lstm.weight_hh"]), 1)
        sums = torch.cat((x, hidden, m), 1) @ weights.T + named["lstm.bias_ih"] + named["lstm.bias_hh"]
        i, f, g, o = sums.chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        m = torch.sigmoid(o) * torch.tanh(c)
        expected = 1 + torch.tanh(m @ named["squash.weight"].T) @ named["project.weight"].T
        torch.testing.assert_close(factors.detach(), expected, rtol=1e-12, atol=1e-14)
    assert factors.shape == (3, 5 + 4 * 4)


def test_open_gates_are_the_plain_rnn():
    problem = problems("maze", 3)
    optimizer = warp_rnn(problem.layout)
    assert all(gate.open for gate in optimizer.gates.values())
    warped, flat = optimizer.adapt(problem), scattered(problem).requires_grad_()
    assert warped is not problem
    for step in (0, 4):
        one, other = (each.loss(problem.layout.views(flat), step) for each in (warped, problem))
        assert torch.equal(one, other)
        mine, theirs = (torch.autograd.grad(loss.sum(), flat)[0] for loss in (one, other))
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)
    assert optimizer.requires_grad_(False).adapt(problem) is problem  # nothing to be learned, nothing to be gated
    gated: Any = warp_rnn(problem.layout, 1.0).requires_grad_(False).adapt(problem)
    one, other = (next(each.play(problem.init(), "episodes", 0, 2)).hidden for each in (gated, problem))
    assert not torch.isclose(one, other).any()


@pytest.mark.parametrize("rows", [[1], [2, 0, 2]])
def test_some_of_the_problems_are_those_problems(rows):
    problem = problems("maze", 3)
    warped, views = warp_rnn(problem.layout, 1.0).adapt(problem), problem.init()
    for whole in (problem, warped):
        some = whole.take(torch.tensor(rows))
        expected = whole.loss(views, 2)[rows]
        torch.testing.assert_close(some.loss({name: value[rows] for name, value in views.items()}, 2), expected)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize(("length", "steps"), [(1, 3), (3, 7)])
def test_direct_gradients_are_those_of_truncated_back_propagation(length, steps, scale):
    # Adam's updates don't depend on the gates, so that all of a first-order meta-gradient is the direct one.
    problem = problems("maze", 2)
    optimizer = warp_rnn(problem.layout, scale)
    settings = {"length": length, "steps": steps}
    ours = list(Direct(**settings).estimates(optimizer, problem))
    theirs = list(TBPTT(**settings, engine="graph").estimates(optimizer, problem))
    assert len(ours) == len(theirs) == math.ceil(steps / length)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.losses, other.losses)
        torch.testing.assert_close(one.meta_loss, other.meta_loss)
        torch.testing.assert_close(one.grads, other.grads, rtol=1e-9, atol=1e-12)
        assert max(grad.abs().max() for grad in one.grads) > 1e-6
        assert not any(tensor.requires_grad for tensor in (one.meta_loss, one.losses, *one.grads))


@pytest.mark.parametrize("clip", [None, 1.5])
def test_its_updates_are_adams(clip):
    problem = problems("maze", 2)
    optimizer = warp_rnn(problem.layout, 1.0, clip=clip)
    adam = Adam(lr=WARP_RNN["lr"], weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(2, 5, generator=generator)
    one, other = optimizer.init(params), adam.init(params)
    for size in (0.1, 1.0, 10.0):
        grads = size * torch.randn(2, 5, generator=generator)
        norms = [row.norm().item() for row in grads]
        clipped = [row * min(1, (clip or math.inf) / norm) for row, norm in zip(grads, norms, strict=True)]
        mine, one = optimizer.update(grads, one, params)
        theirs, other = adam.update(torch.stack(clipped), other, params)
        torch.testing.assert_close(mine, theirs)
    replayed = optimizer.replay(grads.expand(3, 2, 5), optimizer.init(params), torch.ones(3, 2, 5))
    assert [tuple(grad.shape) for grad in replayed] == [tuple(p.shape) for p in optimizer.parameters()]
    assert not any(grad.any() for grad in replayed)


def test_it_fits_only_cells_of_its_size():
    layout = problems("maze", 1).layout
    optimizer = warp_rnn(layout)
    optimizer.fitted(layout)
    with pytest.raises(ConfigError, match="cell 17 → 4"):
        optimizer.fitted(optimizee("maze", units=5).layout())
    with pytest.raises(ConfigError, match="kernel=cpp"):
        optimizer.use_kernel("cpp")
    with pytest.raises(ConfigError, match="optimizee=maze"):
        warp_rnn(optimizee("quadratic").layout())


def test_it_learns_online_and_in_recurrent_cells_alone() -> None:
    sentence = refusal(["optimizee=maze", "optimizer=warp_rnn", "meta=tbptt"])
    for words in ("meta=tbptt learns updates", "optimizer=warp_rnn", "learns gates"):
        assert words in sentence
    sentence = refusal(["optimizee=quadratic", "optimizer=warp_rnn"], built)
    for words in ("optimizer=warp_rnn gates recurrent cells", "optimizee=maze"):
        assert words in sentence
