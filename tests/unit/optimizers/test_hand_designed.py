"""The hand-designed optimizers against torch.optim, step for step, and the contract that all of them keep."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from l2l_runner.optimizers import HAND_DESIGNED, NAG, SGD, Adam, HandDesigned, Momentum, RMSprop
from l2l_runner.unroll import start as start_of
from l2l_runner.unroll import unroll
from problems import OPTIMIZER_FILES, parse_optimizer, problems

STEPS = 40


def curved(theta):
    """Not convex, badly scaled, and mixing the coordinates."""
    valley = ((1 - theta[:, :-1]) ** 2 + 5 * (theta[:, 1:] - theta[:, :-1] ** 2) ** 2).sum(1)
    return valley + torch.sin(3 * theta).sum(1) + 0.1 * (theta**2).sum(1)


def start():
    return torch.tensor([[-1.1, 0.7, 0.2, 1.3], [0.4, -0.6, 1.5, -0.9]], dtype=torch.float64)


def gradient(theta):
    leaf = theta.detach().clone().requires_grad_()
    return torch.autograd.grad(curved(leaf).sum(), leaf)[0]


def ours(optimizer):
    theta = start()
    state = optimizer.init(theta)
    trajectory = []
    for _ in range(STEPS):
        update, state = optimizer.update(gradient(theta), state, theta)
        theta = theta + update
        trajectory.append(theta)
    return torch.stack(trajectory)


def theirs(make):
    theta = start().requires_grad_()
    optimizer = make([theta])
    trajectory = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        curved(theta).sum().backward()
        optimizer.step()
        trajectory.append(theta.detach().clone())
    return torch.stack(trajectory)


def assert_same(optimizer, make):
    expected = theirs(make)
    assert expected.isfinite().all()
    assert (expected[-1] - start()).abs().max() > 1e-3  # something happened
    torch.testing.assert_close(ours(optimizer), expected, rtol=1e-9, atol=1e-11)


RATES = (0.001, 0.01)
DECAYS = (0.0, 0.1)


@pytest.mark.parametrize(("lr", "decay"), list(product(RATES, DECAYS)))
def test_sgd_is_torchs(lr, decay):
    assert_same(SGD(lr=lr, weight_decay=decay), lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay))


@pytest.mark.parametrize(("lr", "decay", "momentum"), list(product(RATES, DECAYS, (0.0, 0.5, 0.9))))
def test_momentum_is_torchs(lr, decay, momentum):
    assert_same(
        Momentum(lr=lr, weight_decay=decay, momentum=momentum),
        lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay, momentum=momentum),
    )


@pytest.mark.parametrize(("lr", "decay", "momentum"), list(product(RATES, DECAYS, (0.5, 0.9))))
def test_nag_is_torchs(lr, decay, momentum):
    assert_same(
        NAG(lr=lr, weight_decay=decay, momentum=momentum),
        lambda p: torch.optim.SGD(p, lr=lr, weight_decay=decay, momentum=momentum, nesterov=True),
    )


@pytest.mark.parametrize(
    ("lr", "decay", "alpha", "eps", "momentum"), list(product(RATES, DECAYS, (0.9, 0.99), (1e-8, 1e-2), (0.0, 0.9)))
)
def test_rmsprop_is_torchs(lr, decay, alpha, eps, momentum):
    assert_same(
        RMSprop(lr=lr, weight_decay=decay, alpha=alpha, eps=eps, momentum=momentum),
        lambda p: torch.optim.RMSprop(p, lr=lr, weight_decay=decay, alpha=alpha, eps=eps, momentum=momentum),
    )


@pytest.mark.parametrize(
    ("lr", "decay", "betas", "eps"), list(product(RATES, DECAYS, ((0.9, 0.999), (0.5, 0.9), (0.0, 0.99)), (1e-8, 1e-2)))
)
def test_adam_is_torchs(lr, decay, betas, eps):
    assert_same(
        Adam(lr=lr, weight_decay=decay, beta1=betas[0], beta2=betas[1], eps=eps),
        lambda p: torch.optim.Adam(p, lr=lr, weight_decay=decay, betas=betas, eps=eps),
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("sgd", torch.optim.SGD), ("rms", torch.optim.RMSprop), ("adam", torch.optim.Adam)],
    ids=["sgd", "rms", "adam"],
)
def test_files_hold_torchs_defaults(ours, theirs):
    defaults = theirs([torch.zeros(1)]).defaults
    defaults |= dict(zip(("beta1", "beta2"), defaults.get("betas", ()), strict=False))
    settings = {key: value for key, value in OPTIMIZER_FILES[ours].items() if key not in ("name", "lr")}
    assert settings == {key: defaults[key] for key in settings}


# What holds for every one of them

EVERY = [stem for stem, node in OPTIMIZER_FILES.items() if node["name"] in HAND_DESIGNED]


def from_file(stem: str, **changes) -> HandDesigned:
    return parse_optimizer({**OPTIMIZER_FILES[stem], **changes})


def test_every_hand_designed_optimizer_has_a_file():
    assert {OPTIMIZER_FILES[stem]["name"] for stem in EVERY} == set(HAND_DESIGNED)
    assert all(type(from_file(stem)) is HAND_DESIGNED[OPTIMIZER_FILES[stem]["name"]] for stem in EVERY)


@pytest.mark.parametrize("stem", EVERY)
def test_converges_on_easy_quadratics(stem):
    problem = problems("quadratic", 16, dim=3)
    # Well-conditioned: the identity and a little of the random matrix, with minima of 0 at a distance of about 1.
    problem.weight = torch.eye(3, dtype=torch.float64) + 0.1 * problem.weight
    optimizer = from_file(stem, lr=0.02)
    first = start_of(problem, optimizer)
    *_, (_, last) = unroll(problem, optimizer, first, 600)
    assert (last.loss < 1e-3 * first.loss).all()


@pytest.mark.parametrize("stem", EVERY)
def test_update_is_a_pure_function(stem):
    optimizer = from_file(stem, weight_decay=0.1)
    theta = start()
    _, state = optimizer.update(gradient(theta), optimizer.init(theta), theta)
    grads = gradient(theta + 0.1)
    inputs = [grads, theta, *state]
    before = [tensor.clone() for tensor in inputs]
    update, following = optimizer.update(grads, state, theta)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, before, strict=True))
    again, following_again = optimizer.update(grads, state, theta)
    assert torch.equal(again, update)
    assert all(torch.equal(a, b) for a, b in zip(following, following_again, strict=True))


@pytest.mark.parametrize("stem", EVERY)
def test_problems_do_not_see_each_other(stem):
    optimizer = from_file(stem, weight_decay=0.1)
    together = start()
    apart = [row.unsqueeze(0) for row in together]
    state, states = optimizer.init(together), [optimizer.init(row) for row in apart]
    for _ in range(5):
        update, state = optimizer.update(gradient(together), state, together)
        together = together + update
        for i, row in enumerate(apart):
            update, states[i] = optimizer.update(gradient(row), states[i], row)
            apart[i] = row + update
    torch.testing.assert_close(torch.cat(apart), together, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("stem", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_precision_is_that_of_the_parameters(stem, dtype):
    optimizer = from_file(stem, weight_decay=0.1)
    theta = start().to(dtype)
    state = optimizer.init(theta)
    for _ in range(3):
        update, state = optimizer.update(gradient(theta), state, theta)
        assert update.dtype == dtype
        assert all(tensor.dtype == dtype for tensor in state)


@pytest.mark.parametrize("stem", EVERY)
def test_a_gradient_of_zero_moves_nothing(stem):
    # No division of zero by zero, at the first step or after others.
    optimizer = from_file(stem)
    theta = start()
    update, _ = optimizer.update(torch.zeros_like(theta), optimizer.init(theta), theta)
    assert torch.equal(update, torch.zeros_like(theta))


@pytest.mark.parametrize("stem", ["rms", "adam"])
def test_second_derivatives_of_a_coordinate_without_a_gradient_are_finite(stem):
    """√v has an infinite derivative at v = 0; a coordinate that never moved must not make other derivatives NaN."""
    optimizer = from_file(stem, lr=0.1)
    params = torch.tensor([[0.7, -0.4]], dtype=torch.float64)
    scale = torch.tensor([[1.3, 0.0]], dtype=torch.float64)  # the second coordinate's gradient is 0

    def end(theta: torch.Tensor) -> torch.Tensor:
        state = optimizer.init(theta)
        for _ in range(3):
            update, state = optimizer.update(scale * theta**3, state, theta)
            theta = theta + update
        return theta.sum()

    (exact,) = torch.autograd.grad(end(params.requires_grad_()), params)
    assert torch.isfinite(exact).all()
    step = torch.tensor([[1e-6, 0.0]], dtype=torch.float64)
    difference = (end(params.detach() + step) - end(params.detach() - step)) / 2e-6
    assert exact[0, 0].item() == pytest.approx(difference.item(), rel=1e-6)
    assert exact[0, 1].item() == pytest.approx(1.0)
