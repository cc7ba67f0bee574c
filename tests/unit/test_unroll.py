"""The inner loop: its trajectories, what of them can be differentiated, and what a step costs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from l2l_runner import streams
from l2l_runner.evaluation.curves import run
from l2l_runner.meta import TBPTT
from l2l_runner.optimizers import NAG, SGD, Adam, Momentum, RMSprop
from l2l_runner.runtime import Runtime
from l2l_runner.unroll import Graph, start, unroll
from problems import EVERY_OPTIMIZEE, UPDATE_RULES, Operations, any_optimizer, lstm, optimizee, problems

# Trajectories


def gradient(problem, flat, step):
    leaf = flat.detach().clone().requires_grad_()
    loss = problem.loss(problem.layout.views(leaf), step)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("graph", Graph, ids=lambda graph: graph.name.lower())
@pytest.mark.parametrize("stem", UPDATE_RULES)
@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_trajectory_is_that_of_a_naive_loop(name, stem, graph):
    problem = problems(name, 3)
    optimizer = any_optimizer(stem, problem.layout)
    theta = problem.layout.flatten(problem.init())
    state = optimizer.init(theta)
    first = start(problem, optimizer)
    assert first.step == 0
    loss, grads = gradient(problem, theta, 0)
    assert torch.equal(first.params, theta)
    assert torch.equal(first.loss, loss)
    assert torch.equal(first.grads, grads)
    points = list(unroll(problem, optimizer, first, 7, graph))
    assert len(points) == 7
    for step, (update, point) in enumerate(points, start=1):
        with torch.no_grad():
            expected, state = optimizer.update(grads, state, theta)
        theta = theta + expected
        loss, grads = gradient(problem, theta, step)
        assert point.step == step
        close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
        close(update.detach(), expected)
        close(point.params.detach(), theta)
        close(point.loss.detach(), loss)
        close(point.grads.detach(), grads)
        for ours, theirs in zip(point.state, state, strict=True):
            close(ours.detach(), theirs)


TORCH = {
    "sgd": (SGD(lr=0.002, weight_decay=0.1), partial(torch.optim.SGD, lr=0.002, weight_decay=0.1)),
    "momentum": (
        Momentum(lr=0.001, weight_decay=0, momentum=0.9),
        partial(torch.optim.SGD, lr=0.001, momentum=0.9),
    ),
    "nag": (
        NAG(lr=0.001, weight_decay=0, momentum=0.9),
        partial(torch.optim.SGD, lr=0.001, momentum=0.9, nesterov=True),
    ),
    "rms": (
        RMSprop(lr=0.02, weight_decay=0, alpha=0.9, eps=1e-8, momentum=0),
        partial(torch.optim.RMSprop, lr=0.02, alpha=0.9),
    ),
    "adam": (
        Adam(lr=0.02, weight_decay=0, beta1=0.9, beta2=0.99, eps=1e-8),
        partial(torch.optim.Adam, lr=0.02, betas=(0.9, 0.99)),
    ),
}


@pytest.mark.parametrize(("optimizer", "make"), list(TORCH.values()), ids=list(TORCH))
@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
def test_trajectory_is_torch_optims(name, optimizer, make):
    # Minibatches included: step t's gradient is taken on the minibatch of step t.
    problem = problems(name, 2)
    theta = problem.layout.flatten(problem.init()).requires_grad_()
    theirs = make([theta])
    for step, (_, point) in enumerate(unroll(problem, optimizer, start(problem, optimizer), 6)):
        theirs.zero_grad()
        problem.loss(problem.layout.views(theta), step).sum().backward()
        theirs.step()
        # Biases before a batch norm have gradients that are nothing but rounding, to which Adam gives weight.
        rounding = 1e-5 if name == "omniglot" else 1e-10
        torch.testing.assert_close(point.params, theta.detach(), rtol=1e-8, atol=rounding)
    assert point.loss.isfinite().all()


def test_a_trajectory_goes_on_where_it_stands():
    problem, optimizer = problems("digits", 2), lstm()
    whole = [point for _, point in unroll(problem, optimizer, start(problem, optimizer), 9)]
    half = [point for _, point in unroll(problem, optimizer, start(problem, optimizer), 4)]
    rest = [point for _, point in unroll(problem, optimizer, half[-1], 5)]
    for one, other in zip(whole, half + rest, strict=True):
        assert one.step == other.step
        assert torch.equal(one.params, other.params)
        assert torch.equal(one.loss, other.loss)


# Graphs


@pytest.mark.parametrize(
    ("graph", "update", "params", "loss", "grads"),
    [
        (Graph.NONE, False, False, False, False),
        (Graph.FIRST_ORDER, True, True, True, False),
        (Graph.SECOND_ORDER, True, True, True, True),
    ],
    ids=[graph.name.lower() for graph in Graph],
)
@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_a_graph_holds_what_it_says(name, graph, update, params, loss, grads):
    problem, optimizer = problems(name, 2), lstm()
    for made, point in unroll(problem, optimizer, start(problem, optimizer), 3, graph):
        assert made.requires_grad == update
        assert all(tensor.requires_grad == update for tensor in point.state)
        assert point.params.requires_grad == params
        assert point.loss.requires_grad == loss
        assert point.grads.requires_grad == grads
        bare = point.detach()
        assert bare.step == point.step
        assert not any(tensor.requires_grad for tensor in (bare.params, bare.loss, bare.grads, *bare.state))
        assert torch.equal(bare.params, point.params)


@pytest.mark.parametrize("graph", Graph, ids=lambda graph: graph.name.lower())
@pytest.mark.parametrize("outside", [True, False], ids=["grad-enabled", "no-grad"])
def test_the_callers_gradient_mode_is_neither_used_nor_changed(graph, outside):
    # A generator that yielded inside `with torch.no_grad()` would switch its caller's gradients off.
    problem, optimizer = problems("quadratic", 2), lstm()
    with torch.set_grad_enabled(outside):
        first = start(problem, optimizer)
        assert first.grads.abs().max() > 0
        for update, point in unroll(problem, optimizer, first, 3, graph):
            assert torch.is_grad_enabled() == outside
            assert update.requires_grad == (graph is not Graph.NONE)
            assert point.grads.abs().max() > 0


# What a step costs


@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
@pytest.mark.parametrize("graph", Graph, ids=lambda graph: graph.name.lower())
def test_a_step_costs_the_same_at_the_end_as_at_the_beginning(name, graph):
    problem, optimizer = problems(name, 2), lstm()
    costs = []
    with Operations() as operations:
        point = start(problem, optimizer)
        operations.take()
        for _ in unroll(problem, optimizer, point, 8, graph):
            costs.append(operations.take())
    assert costs[0].total() > 20
    assert all(cost == costs[0] for cost in costs)


@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
@pytest.mark.parametrize(
    ("engine", "second_order"),
    [("replay", False), ("graph", False), ("graph", True)],
    ids=["replay", "graph", "graph-second-order"],
)
def test_a_window_costs_the_same_at_the_end_as_at_the_beginning(name, engine, second_order):
    # The backward passes included: a θ or a state that kept its history would make them longer and longer.
    problem, optimizer = problems(name, 2), lstm()
    steps = 30 if name == "quadratic" else 8
    tbptt = TBPTT(length=2, steps=steps, engine=engine, second_order=second_order)
    costs = []
    with Operations() as operations:
        estimates = tbptt.estimates(optimizer, problem)
        next(estimates)  # the first also pays for the start
        operations.take()
        for _ in estimates:
            costs.append(operations.take())
    assert len(costs) == steps // 2 - 1
    assert costs[0].total() > 40
    assert all(cost == costs[0] for cost in costs)


@pytest.mark.parametrize("stem", UPDATE_RULES)
def test_a_step_of_an_evaluation_costs_the_same_at_the_end_as_at_the_beginning(stem):
    optimizer = any_optimizer(stem, optimizee("quadratic").layout(), torch.float32)
    costs = []
    with Operations() as operations:
        run(
            optimizer,
            optimizee("quadratic"),
            streams.seeds(0, "test", 0, 3),
            steps=60,
            runtime=Runtime(),
            chunk=10**6,
            on_step=lambda: costs.append(operations.take()),
        )
    costs = costs[1:]  # the first also pays for the start
    assert len(costs) == 59
    assert costs[0].total() > 5
    assert all(cost == costs[0] for cost in costs)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and still exist, those that only a graph holds too."""

    def __init__(self):
        super().__init__()
        self.storages = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                self.storages[reference.cdata] = (reference, storage.nbytes())
        return out

    def bytes(self):
        return sum(nbytes for reference, nbytes in self.storages.values() if not reference.expired())


@pytest.mark.parametrize(
    ("name", "stem", "steps"),
    [*(("quadratic", stem, 100) for stem in UPDATE_RULES), ("digits", "lstm", 50)],
)
def test_memory_of_an_evaluation_does_not_grow_with_its_steps(name, stem, steps):
    optimizer = any_optimizer(stem, optimizee(name).layout(), torch.float32)
    bytes_at = {}
    taken = 0
    with LiveBytes() as live:

        def on_step():
            nonlocal taken
            taken += 1
            if taken in (10, steps):
                bytes_at[taken] = live.bytes()

        seeds = streams.seeds(0, "test", 0, 2)
        run(optimizer, optimizee(name), seeds, steps, Runtime(), chunk=10**6, on_step=on_step)
    assert bytes_at[10] > 0
    assert bytes_at[steps] == bytes_at[10]


def test_memory_of_a_training_graph_does_grow():
    # Shows that the measure of the test above sees what autograd keeps.
    problem, optimizer = problems("quadratic", 2), lstm()
    bytes_at = []
    with LiveBytes() as live:
        for _ in unroll(problem, optimizer, start(problem, optimizer), 50, Graph.FIRST_ORDER):
            bytes_at.append(live.bytes())
    assert bytes_at[49] > 3 * bytes_at[9]


@pytest.mark.parametrize(
    ("engine", "second_order"),
    [("replay", False), ("graph", False), ("graph", True)],
    ids=["replay", "graph", "graph-second-order"],
)
def test_memory_of_training_does_not_grow_with_the_trajectory(engine, second_order):
    problem, optimizer = problems("quadratic", 2), lstm()
    tbptt = TBPTT(length=2, steps=60, engine=engine, second_order=second_order)
    bytes_at = []
    with LiveBytes() as live:
        for _ in tbptt.estimates(optimizer, problem):
            bytes_at.append(live.bytes())
    assert bytes_at[-1] == bytes_at[2]
