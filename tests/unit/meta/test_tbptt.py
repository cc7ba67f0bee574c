"""Meta-gradients: the engines against each other, a plain re-implementation and finite differences."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from l2l_runner import streams
from l2l_runner.kernels.preprocessing import FEATURES
from l2l_runner.meta import TBPTT
from l2l_runner.meta.base import loss_weights
from l2l_runner.unroll import start, unroll
from problems import EVERY_OPTIMIZEE, RUNTIME, PlainLSTM, lstm, optimizee, problems

KINDS = ("constant", "linear", "final")


def weight(kind, t, steps):
    """The weight of f(θ_t) in a trajectory of that many steps."""
    return {"constant": 1.0, "linear": 2 * t / (steps + 1), "final": steps * float(t == steps)}[kind]


def plain_estimates(optimizer, name, count, tbptt, seed=0):
    """The meta-losses and meta-gradients of all windows, as slowly and plainly as can be: problem by problem."""
    windows = math.ceil(tbptt.steps / tbptt.length)
    meta_losses = [0.0] * windows
    meta_grads = [[torch.zeros_like(p) for p in optimizer.parameters()] for _ in range(windows)]
    for problem_seed in streams.seeds(seed, "train", 0, count):
        problem = optimizee(name).sample(problem_seed.view(1), RUNTIME)
        plain = PlainLSTM(optimizer)
        theta = problem.layout.flatten(problem.init())[0]
        for window in range(windows):
            theta, total = theta.detach(), theta.new_zeros(())
            plain.detach()
            for t in range(window * tbptt.length, min((window + 1) * tbptt.length, tbptt.steps)):
                at = theta if theta.requires_grad else theta.clone().requires_grad_()
                loss = problem.loss(problem.layout.views(at[None]), t)[0]
                (grads,) = torch.autograd.grad(loss, at, create_graph=tbptt.second_order, retain_graph=True)
                if window * tbptt.length == t:
                    grads = grads.detach()  # a window's first gradient is not the window's doing
                theta = theta + plain.update(grads)
                total = (
                    total
                    + weight(tbptt.weights, t + 1, tbptt.steps)
                    * (problem.loss(problem.layout.views(theta[None]), t + 1)[0])
                )
            meta_losses[window] += total.item() / count
            for sum_, grad in zip(meta_grads[window], torch.autograd.grad(total, plain.phi), strict=True):
                sum_ += grad / count
    return meta_losses, meta_grads


def flat(grads):
    return torch.cat([grad.flatten() for grad in grads])


def assert_close(ours, theirs, relative):
    """Compares whole gradients, relative to their largest component."""
    ours, theirs = flat(ours), flat(theirs)
    assert (ours - theirs).abs().max() <= relative * theirs.abs().max()


WINDOWS = [(5, 5), (3, 10), (1, 4), (20, 7)]
WINDOW_IDS = ["one-window", "odd-last-window", "windows-of-one", "window-longer-than-trajectory"]


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize(("length", "steps"), WINDOWS, ids=WINDOW_IDS)
@pytest.mark.parametrize("coordinatewise", [True, False], ids=["coordinatewise", "whole-problem"])
@pytest.mark.parametrize("preprocessing", FEATURES)
@pytest.mark.parametrize(("hidden", "layers"), [(1, 1), (4, 2)], ids=["1-unit", "2-layers-of-4"])
def test_replay_is_graph(hidden, layers, preprocessing, coordinatewise, length, steps, weights):
    optimizer = lstm(4, hidden=hidden, layers=layers, preprocessing=preprocessing, coordinatewise=coordinatewise)
    problem = problems("quadratic", 3)
    settings = {"length": length, "steps": steps, "weights": weights}
    replayed = list(TBPTT(**settings, engine="replay").estimates(optimizer, problem))
    differentiated = list(TBPTT(**settings, engine="graph").estimates(optimizer, problem))
    assert len(replayed) == len(differentiated) == math.ceil(steps / length)
    for one, other in zip(replayed, differentiated, strict=True):
        assert_close(one.grads, other.grads, 1e-12)
        assert [grad.shape for grad in one.grads] == [parameter.shape for parameter in optimizer.parameters()]
        torch.testing.assert_close(one.meta_loss, other.meta_loss, rtol=1e-13, atol=0)
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-13, atol=0)
    assert flat(replayed[-1].grads).abs().max() > 1e-6


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
def test_replay_is_graph_on_every_optimizee(name, count):
    problem = problems(name, count)
    optimizer = lstm(problem.layout.size)
    one, other = (
        list(TBPTT(length=3, steps=8, engine=engine).estimates(optimizer, problem)) for engine in ("replay", "graph")
    )
    assert len(one) == len(other) == 3
    for replayed, differentiated in zip(one, other, strict=True):
        assert_close(replayed.grads, differentiated.grads, 1e-12)
        assert flat(replayed.grads).abs().max() > 1e-6


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize(("length", "steps"), WINDOWS, ids=WINDOW_IDS)
@pytest.mark.parametrize(
    ("engine", "second_order"),
    [("replay", False), ("graph", False), ("graph", True)],
    ids=["replay", "graph", "graph-second-order"],
)
def test_estimates_are_those_of_a_plain_implementation(engine, second_order, length, steps, weights):
    optimizer = lstm(4)
    tbptt = TBPTT(length=length, steps=steps, weights=weights, engine=engine, second_order=second_order)
    meta_losses, meta_grads = plain_estimates(optimizer, "quadratic", 2, tbptt)
    estimates = list(tbptt.estimates(optimizer, problems("quadratic", 2)))
    assert [estimate.meta_loss.item() for estimate in estimates] == pytest.approx(meta_losses, rel=1e-11)
    for estimate, expected in zip(estimates, meta_grads, strict=True):
        assert_close(estimate.grads, expected, 1e-10)


@pytest.mark.parametrize("name", ["rosenbrock", "digits"])
@pytest.mark.parametrize("coordinatewise", [True, False], ids=["coordinatewise", "whole-problem"])
@pytest.mark.parametrize("second_order", [False, True], ids=["first-order", "second-order"])
def test_estimates_are_plain_on_curved_problems(name, coordinatewise, second_order):
    optimizer = lstm(optimizee(name).layout().size, coordinatewise=coordinatewise)
    tbptt = TBPTT(length=3, steps=5, engine="graph", second_order=second_order)
    _, meta_grads = plain_estimates(optimizer, name, 2, tbptt)
    for estimate, expected in zip(tbptt.estimates(optimizer, problems(name, 2)), meta_grads, strict=True):
        assert_close(estimate.grads, expected, 1e-10)


def meta_loss_of(optimizer, problem, steps, weights):
    """The meta-loss of a whole trajectory, without any graph."""
    total = 0.0
    for _, point in unroll(problem, optimizer, start(problem, optimizer), steps):
        total += weight(weights, point.step, steps) * point.loss.mean().item()
    return total


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("quadratic", {"preprocessing": "none"}),
        ("quadratic", {"preprocessing": "log_sign"}),
        ("quadratic", {"preprocessing": "log_sign", "coordinatewise": False}),
        ("rosenbrock", {"preprocessing": "log_sign"}),
        ("digits", {"preprocessing": "none", "layers": 1, "output_scale": 2.0}),
    ],
    ids=["quadratic-none", "quadratic-log-sign", "quadratic-whole-problem", "rosenbrock", "digits"],
)
@pytest.mark.parametrize("weights", ["linear", "final"])
def test_second_order_is_the_exact_derivative_of_the_meta_loss(name, changes, weights):
    # Finite differences in every one of the optimizer's parameters, over a full unroll.
    problem, steps, h = problems(name, 2), 3, 1e-6
    optimizer = lstm(problem.layout.size, **{"hidden": 2, **changes})
    tbptt = TBPTT(length=steps, steps=steps, weights=weights, second_order=True, engine="graph")
    (estimate,) = tbptt.estimates(optimizer, problem)
    differences = []
    with torch.no_grad():
        for parameter in optimizer.parameters():
            values = parameter.view(-1)
            for i, value in enumerate(values.tolist()):
                values[i] = value + h
                above = meta_loss_of(optimizer, problem, steps, weights)
                values[i] = value - h
                below = meta_loss_of(optimizer, problem, steps, weights)
                values[i] = value
                differences.append((above - below) / (2 * h))
    exact = torch.tensor(differences, dtype=torch.float64)
    assert (flat(estimate.grads) - exact).abs().max() <= 1e-7 * exact.abs().max()
    first_order = TBPTT(length=steps, steps=steps, weights=weights, engine="graph")
    (approximate,) = first_order.estimates(optimizer, problem)
    # What first order leaves out is small here, yet far above the tolerance.
    assert (flat(approximate.grads) - exact).abs().max() > 1e-4 * exact.abs().max()


@pytest.mark.parametrize(
    ("engine", "second_order"),
    [("replay", False), ("graph", False), ("graph", True)],
    ids=["replay", "graph", "graph-second-order"],
)
class TestEveryEngine:
    """What holds for all ways to estimate."""

    @pytest.fixture
    def optimizer(self):
        return lstm(4)

    @pytest.fixture
    def make(self, engine, second_order):
        def tbptt(**settings):
            return TBPTT(engine=engine, second_order=second_order, **settings)

        return tbptt

    @pytest.mark.parametrize("name", ["quadratic", "digits"])
    def test_windows_go_on_where_the_last_one_ended(self, name, make, optimizer):
        # θ, the optimizer's state and the minibatches carry over: the losses are those of one plain evaluation.
        problem = problems(name, 3)
        losses = torch.cat([estimate.losses for estimate in make(length=3, steps=11).estimates(optimizer, problem)])
        points = [point for _, point in unroll(problem, optimizer, start(problem, optimizer), 11)]
        assert losses.shape == (11, 3)
        torch.testing.assert_close(losses, torch.stack([point.loss for point in points]), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("weights", KINDS)
    def test_every_loss_is_counted_once(self, weights, make, optimizer):
        problem = problems("quadratic", 3)
        total = sum(e.meta_loss.item() for e in make(length=3, steps=11, weights=weights).estimates(optimizer, problem))
        assert total == pytest.approx(meta_loss_of(optimizer, problem, 11, weights), rel=1e-12)

    def test_estimates_leave_the_optimizer_alone(self, make, optimizer):
        before = copy.deepcopy(optimizer.state_dict())
        for estimate in make(length=3, steps=7).estimates(optimizer, problems("quadratic", 2)):
            assert not estimate.meta_loss.requires_grad
            assert not estimate.losses.requires_grad
            assert not any(grad.requires_grad for grad in estimate.grads)
        for name, parameter in optimizer.named_parameters():
            assert torch.equal(parameter, before[name])
            assert parameter.grad is None
            assert parameter.requires_grad

    def test_an_update_between_windows_counts_from_the_next_one(self, make, optimizer):
        problem = problems("quadratic", 2)
        point, losses = start(problem, optimizer), []
        for estimate in make(length=3, steps=9).estimates(optimizer, problem):
            points = [reached for _, reached in unroll(problem, optimizer, point, 3)]
            losses += [reached.loss for reached in points]
            point = points[-1]
            torch.testing.assert_close(estimate.losses, torch.stack(losses[-3:]), rtol=1e-12, atol=0)
            with torch.no_grad():
                for parameter, grad in zip(optimizer.parameters(), estimate.grads, strict=True):
                    parameter -= 0.05 * grad / (1e-12 + grad.norm())
        unmoved = meta_loss_of(lstm(4), problem, 9, "constant")
        assert sum(loss.mean().item() for loss in losses) != pytest.approx(unmoved, rel=1e-6)

    def test_a_batch_is_the_mean_of_its_problems(self, make, optimizer):
        (together,) = make(length=4, steps=4).estimates(optimizer, problems("quadratic", 3))
        alone = []
        for seed in streams.seeds(0, "train", 0, 3):
            alone += make(length=4, steps=4).estimates(optimizer, optimizee("quadratic").sample(seed.view(1), RUNTIME))
        assert together.meta_loss.item() == pytest.approx(sum(e.meta_loss.item() for e in alone) / 3, rel=1e-12)
        mean = [sum(grads) / 3 for grads in zip(*(e.grads for e in alone), strict=True)]
        assert_close(together.grads, mean, 1e-12)

    def test_estimates_are_repeatable(self, make, optimizer):
        one, other = (list(make(length=3, steps=7).estimates(optimizer, problems("digits", 2))) for _ in range(2))
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a.meta_loss, b.meta_loss)
            assert torch.equal(flat(a.grads), flat(b.grads))

    def test_what_is_not_finite_is_shown(self, make, optimizer):
        # The trainer skips it; an estimator that hid it would train on nonsense.
        problem = problems("quadratic", 2)
        problem.weight[0] *= 1e200
        (estimate,) = make(length=3, steps=3).estimates(optimizer, problem)
        assert not estimate.meta_loss.isfinite()
        assert not estimate.losses[:, 0].isfinite().any()
        assert estimate.losses[:, 1].isfinite().all()


def test_truncation_matters():
    # Otherwise the tests of windows above could pass with windows that are not truncated.
    optimizer, problem = lstm(4), problems("quadratic", 2)
    (whole,) = TBPTT(length=8, steps=8).estimates(optimizer, problem)
    windows = [flat(estimate.grads) for estimate in TBPTT(length=2, steps=8).estimates(optimizer, problem)]
    assert (sum(windows) - flat(whole.grads)).abs().max() > 1e-2 * flat(whole.grads).abs().max()


# A sample of the coordinates


def test_a_sample_of_all_coordinates_is_no_sample():
    optimizer, problem = lstm(4), problems("quadratic", 3)
    (whole,) = TBPTT(length=4, steps=4).estimates(optimizer, problem)
    for coordinates in (12, 1000):
        (sampled,) = TBPTT(length=4, steps=4, coordinates=coordinates).estimates(optimizer, problem)
        assert torch.equal(flat(sampled.grads), flat(whole.grads))


@pytest.mark.parametrize("name", ["quadratic", "digits"])
def test_a_sample_changes_nothing_but_the_gradients(name):
    problem = problems(name, 3)
    optimizer = lstm(problem.layout.size)
    whole = list(TBPTT(length=3, steps=8).estimates(optimizer, problem))
    sampled = list(TBPTT(length=3, steps=8, coordinates=5).estimates(optimizer, problem))
    for one, other in zip(sampled, whole, strict=True):
        torch.testing.assert_close(one.losses, other.losses, rtol=1e-12, atol=0)
        torch.testing.assert_close(one.meta_loss, other.meta_loss, rtol=1e-12, atol=0)
        assert not torch.allclose(flat(one.grads), flat(other.grads), rtol=1e-3)
    again = list(TBPTT(length=3, steps=8, coordinates=5).estimates(optimizer, problem))
    assert all(torch.equal(flat(a.grads), flat(b.grads)) for a, b in zip(sampled, again, strict=True))


@pytest.mark.parametrize("coordinates", [1, 5])
def test_a_sample_is_unbiased(coordinates, monkeypatch):
    # Systematic sampling has one random number, its offset: the mean over a fine grid of offsets is the expectation.
    optimizer, problem = lstm(4), problems("quadratic", 3)
    full, sampled = TBPTT(length=3, steps=6), TBPTT(length=3, steps=6, coordinates=coordinates)
    exact = [flat(estimate.grads) for estimate in full.estimates(optimizer, problem)]
    offsets, sums = 120, [0.0, 0.0]
    deviations = [0.0, 0.0]
    for i in range(offsets):
        offset = torch.tensor([[(i + 0.5) / offsets]], dtype=torch.float64)
        monkeypatch.setattr(streams, "uniform", lambda *args, offset=offset, **kwargs: offset)
        for window, estimate in enumerate(sampled.estimates(optimizer, problem)):
            sums[window] = sums[window] + flat(estimate.grads) / offsets
            deviations[window] = max(deviations[window], (flat(estimate.grads) - exact[window]).norm().item())
    for window in range(2):
        norm = exact[window].norm().item()
        assert deviations[window] > 0.05 * norm  # a single estimate is far from exact
        assert (sums[window] - exact[window]).norm().item() < 0.02 * norm


def test_a_sample_of_one_is_one_coordinates_part_of_the_sum(monkeypatch):
    # The meta-gradient is a sum over coordinates. Whichever is drawn, its part must come out exactly, scaled by the
    # inverse of how often it is drawn. In the second window, so that the state matters too.
    optimizer, problem, steps = lstm(4), problems("quadratic", 3), 3
    *_, (_, point) = unroll(problem, optimizer, start(problem, optimizer), steps)
    points = [reached for _, reached in unroll(problem, optimizer, point, steps)]
    updates, state = [], point.state
    for before in (point, *points[:-1]):
        update, state = optimizer.update(before.grads, state, before.params)
        updates.append(update)
    parts = []
    for c in range(12):
        effects = [sum(later.grads.flatten()[c] for later in points[t:]) / 3 for t in range(steps)]
        products = [update.flatten()[c] * effect for update, effect in zip(updates, effects, strict=True)]
        weighted = torch.stack(products).sum()
        parts.append(flat(torch.autograd.grad(weighted, list(optimizer.parameters()), retain_graph=True)))
    (_, whole) = TBPTT(length=steps, steps=2 * steps).estimates(optimizer, problem)
    torch.testing.assert_close(sum(parts), flat(whole.grads), rtol=1e-10, atol=1e-12)

    sampled, offsets = TBPTT(length=steps, steps=2 * steps, coordinates=1), 100
    factors, hits = [0.0] * 12, [0] * 12
    for i in range(offsets):
        offset = torch.tensor([[(i + 0.5) / offsets]], dtype=torch.float64)
        monkeypatch.setattr(streams, "uniform", lambda *args, offset=offset, **kwargs: offset)
        (_, estimate) = sampled.estimates(optimizer, problem)
        multiples = [(flat(estimate.grads) @ part / (part @ part)).item() for part in parts]
        misfits = [(flat(estimate.grads) - m * part).norm() for m, part in zip(multiples, parts, strict=True)]
        drawn = int(torch.stack(misfits).argmin())
        assert misfits[drawn] <= 1e-10 * flat(estimate.grads).norm()
        factors[drawn] = multiples[drawn]
        hits[drawn] += 1
    assert sum(count > 0 for count in hits) > 6
    for factor, count in zip(factors, hits, strict=True):
        assert count == 0 or count / offsets == pytest.approx(1 / factor, abs=1.001 / offsets)


# Weights


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_have_mean_one(kind, steps):
    weights = loss_weights(kind, steps)
    assert weights.shape == (steps,)
    assert weights.double().mean().item() == pytest.approx(1, rel=1e-12)
    assert (weights >= 0).all()
    assert weights.tolist() == pytest.approx([weight(kind, t, steps) for t in range(1, steps + 1)], rel=1e-12)
