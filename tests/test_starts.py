"""Learned starting points and warp layers: their estimators against formulas, brute force and finite differences."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout, Site
from l2l_runner.meta import FOMAML, MAML, Joint, Leap, Reptile, WarpGrad
from l2l_runner.meta.base import global_norm
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import Adaptation, AdaptationConfig
from l2l_runner.optimizers.transformed import MetaSGDConfig
from l2l_runner.optimizers.warp import WarpConfig
from l2l_runner.plots.style import look_of
from l2l_runner.training.meta_step import meta_update
from problems import ADAPTATIONS, problems
from running import assert_one_sentence, last, same_bits, train

WIDTH, TASKS, LR = 3, 3, 0.2
LAYOUT = Layout({"w": (WIDTH, WIDTH), "head.b": (WIDTH,)}, sites={"middle": Site(WIDTH, 0)}, tasks=TASKS)
WARP = WarpConfig(layers=2, residual=False, batch_norm=False)


class Regression(Problem):
    """‖tanh(warp(x W)) + b − y‖² on fresh inputs each step; the targets are a task's own."""

    def __init__(self, tasks: Tensor, warp: nn.Module | None = None):
        self.layout, self.tasks, self.seeds = LAYOUT, tasks, 1000 + tasks
        self.warp = warp or nn.Identity()

    def init(self):
        w = 0.5 * streams.normal(self.seeds, WIDTH * WIDTH, "w").view(-1, WIDTH, WIDTH)
        return {"w": w, "head.b": 0.1 * streams.normal(self.seeds, WIDTH, "b")}

    def loss(self, params, step):
        x = streams.normal(self.seeds, 4 * WIDTH, "x", step).view(-1, 4, WIDTH)
        target = streams.normal(self.seeds, WIDTH, "target").unsqueeze(1)
        y = torch.tanh(self.warp(x @ params["w"])) + params["head.b"].unsqueeze(1)
        return (y - target).square().mean((1, 2))

    def warped(self, layers):
        return Regression(self.tasks, layers["middle"])

    def take(self, rows):
        return Regression(self.tasks[rows], self.warp)


def adaptation(seed: int = 0, **changes) -> Adaptation:
    config = {"lr": LR, "start": "learned", "fresh": (), "own": False, "warp": None, "transform": "none"}
    built = AdaptationConfig(**{**config, **changes}).build(LAYOUT, torch.Generator().manual_seed(seed)).double()
    built.initialise_from(Regression(torch.tensor([5])))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in built.warp.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return built


def tasks(*given_: int) -> Regression:
    return Regression(torch.tensor(given_ or range(TASKS)))


def one(estimator, optimizer, problem):
    (estimate,) = estimator.estimates(optimizer, problem)
    return estimate


def flat(optimizer: Adaptation, grads) -> dict[str, Tensor | None]:
    return dict(zip((name for name, _ in optimizer.named_parameters()), grads, strict=True))


def trajectory(optimizer: Adaptation, task: int, steps: int):
    """Points, losses and gradients of one task, by plain descent without the inner loop."""
    problem = Regression(torch.tensor([task]), optimizer.warp["middle"] if optimizer.warp else None)
    begun = {**problem.init(), **{k[1:].replace("/", "."): v.unsqueeze(0) for k, v in optimizer.start.items()}}
    theta = LAYOUT.flatten(begun).detach()
    points, losses, slopes = [], [], []
    for step in range(steps + 1):
        leaf = theta.clone().requires_grad_()
        loss = problem.loss(LAYOUT.views(leaf), step).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        points.append(theta[0]), losses.append(loss.detach()), slopes.append(slope[0])
        theta = theta - optimizer.config.lr * slope
    return problem, torch.stack(points), torch.stack(losses), torch.stack(slopes)


def theta0(optimizer: Adaptation, grads) -> Tensor:
    """Gradients for the start, flat in the order of the layout."""
    named = flat(optimizer, grads)
    return torch.cat([named[f"start./{name.replace('.', '/')}"].flatten() for name in LAYOUT.shapes])


def final_loss(optimizer: Adaptation, steps: int) -> Tensor:
    """The mean loss that all tasks come to, by plain descent."""
    return torch.stack([trajectory(optimizer, task, steps)[2][-1] for task in range(TASKS)]).mean()


@pytest.mark.parametrize("warp", [None, WARP], ids=["plain", "warped"])
@pytest.mark.parametrize("transform", ["none", "metasgd"])
def test_maml_is_the_slope_of_the_loss_that_steps_lead_to(warp, transform):
    optimizer = adaptation(warp=warp, transform=transform)
    estimate = one(MAML(steps=3), optimizer, tasks())
    if transform == "none":
        torch.testing.assert_close(estimate.meta_loss, final_loss(optimizer, 3), rtol=1e-12, atol=0)
    for (name, parameter), grads in zip(optimizer.named_parameters(), estimate.grads, strict=True):
        for place in range(0, parameter.numel(), 2):
            values = []
            for shift in (1e-5, -1e-5):
                moved = copy.deepcopy(optimizer)
                with torch.no_grad():
                    dict(moved.named_parameters())[name].view(-1)[place] += shift
                values.append(one(MAML(steps=3), moved, tasks()).meta_loss)
            slope = (values[0] - values[1]) / 2e-5
            torch.testing.assert_close(grads.view(-1)[place], slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_first_order_maml_takes_the_last_slope_and_is_not_maml(steps):
    optimizer = adaptation()
    estimate = one(FOMAML(steps=steps), optimizer, tasks())
    expected = torch.stack([trajectory(optimizer, task, steps)[3][-1] for task in range(TASKS)]).mean(0)
    torch.testing.assert_close(theta0(optimizer, estimate.grads), expected, rtol=1e-12, atol=1e-15)
    exact = theta0(optimizer, one(MAML(steps=steps), optimizer, tasks()).grads)
    assert (exact - expected).norm() > 0.05 * exact.norm()


def test_without_steps_between_both_mamls_are_the_plain_gradient():
    optimizer = adaptation(lr=1e-12)
    torch.testing.assert_close(
        theta0(optimizer, one(FOMAML(steps=1), optimizer, tasks()).grads),
        theta0(optimizer, one(MAML(steps=1), optimizer, tasks()).grads),
        rtol=1e-9,
        atol=1e-12,
    )


def test_reptile_points_to_where_the_steps_end():
    optimizer = adaptation()
    ends = torch.stack([trajectory(optimizer, task, 5)[1] for task in range(TASKS)])
    estimate = one(Reptile(steps=5), optimizer, tasks())
    torch.testing.assert_close(
        theta0(optimizer, estimate.grads), (ends[:, 0] - ends[:, -1]).mean(0), rtol=1e-12, atol=1e-15
    )


def test_leap_is_its_formula():
    optimizer = adaptation(lr=0.9)  # large enough for losses to go up, too
    total, rose = torch.zeros(LAYOUT.size, dtype=torch.float64), 0
    for task in range(TASKS):
        _, points, losses, slopes = trajectory(optimizer, task, 6)
        for i in range(6):
            step, change = points[i + 1] - points[i], losses[i + 1] - losses[i]
            rose += int(change > 0)
            change = -change.abs()
            total += (-step - change * slopes[i]) / (step.square().sum() + change.square()).sqrt() / TASKS
    assert 0 < rose < 6 * TASKS
    estimate = one(Leap(steps=6), optimizer, tasks())
    torch.testing.assert_close(theta0(optimizer, estimate.grads), total, rtol=1e-12, atol=1e-15)


def test_leap_shortens_the_path():
    optimizer = adaptation(lr=0.05)
    before = _length(optimizer)
    grads = one(Leap(steps=5), optimizer, tasks()).grads
    with torch.no_grad():
        for parameter, grad in zip(optimizer.parameters(), grads, strict=True):
            parameter -= 0.02 * grad
    assert _length(optimizer) < before


def _length(optimizer: Adaptation) -> float:
    total = 0.0
    for task in range(TASKS):
        _, points, losses, _ = trajectory(optimizer, task, 5)
        steps, changes = points.diff(dim=0), losses.diff()
        total += (steps.square().sum(1) + changes.square()).sqrt().sum().item()
    return total


def warpgrad(**changes) -> WarpGrad:
    settings_ = {"steps": 4, "algorithm": "offline", "approximate": False, "batch": 1, "epochs": 1, "shuffle": False}
    return WarpGrad(**{**settings_, "every": 1, "memory": 1 << 20, "leap": False, **changes})


def direct(optimizer: Adaptation, task: int, point: Tensor, number: int, steps: int, approximate: bool):
    """ℓ(θ − α∇ℓ(θ; φ); φ) at one point, and its gradient for φ, written out."""
    problem = Regression(torch.tensor([task]), optimizer.warp["middle"])
    first = steps + 1 + 2 * number
    leaf = point.unsqueeze(0).clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.loss(LAYOUT.views(leaf), first).sum(), leaf, create_graph=True)
    stepped = point - optimizer.config.lr * (slope.detach() if approximate else slope)
    meta_loss = problem.loss(LAYOUT.views(stepped), first + 1).sum()
    return meta_loss.detach(), torch.autograd.grad(meta_loss, list(optimizer.warp.parameters()))


@pytest.mark.parametrize("approximate", [False, True])
def test_warpgrad_online_is_the_mean_over_the_points_of_all_trajectories(approximate):
    optimizer = adaptation(warp=WARP, start="random")
    estimate = one(warpgrad(algorithm="online", approximate=approximate), optimizer, tasks())
    losses, grads = [], []
    for task in range(TASKS):
        points = trajectory(optimizer, task, 4)[1]
        for step in range(4):
            loss, found = direct(optimizer, task, points[step], step, 4, approximate)
            losses.append(loss), grads.append(found)
    torch.testing.assert_close(estimate.meta_loss, torch.stack(losses).mean(), rtol=1e-12, atol=0)
    for grad, *expected in zip(estimate.grads, *grads, strict=True):
        torch.testing.assert_close(grad, torch.stack(expected).mean(0), rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("approximate", [False, True])
def test_warpgrad_offline_with_single_points_goes_trajectory_by_trajectory(approximate):
    """While φ moves between one point and the next, the points stay those of the φ before."""
    optimizer = adaptation(warp=WARP, start="random")
    mine, begun = copy.deepcopy(optimizer), copy.deepcopy(optimizer)
    points = [trajectory(begun, task, 4)[1] for task in range(TASKS)]
    expected = [(task, points[task][step]) for task in range(TASKS) for step in range(4)]
    problem = optimizer.adapt(tasks())
    found = warpgrad(approximate=approximate).estimates(optimizer, problem)
    for number, (estimate, (task, point)) in enumerate(zip(found, expected, strict=True)):
        loss, grads = direct(mine, task, point, number, 4, approximate)
        torch.testing.assert_close(estimate.meta_loss, loss, rtol=1e-12, atol=0)
        with torch.no_grad():
            for one_, other, a, b in zip(optimizer.parameters(), mine.parameters(), estimate.grads, grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)
                one_ -= 0.1 * a
                other -= 0.1 * b


@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 13), epochs=st.integers(1, 3), shuffle=st.booleans())
def test_every_stored_point_is_replayed_once_an_epoch(batch, epochs, shuffle):
    estimator = warpgrad(batch=batch, epochs=epochs, shuffle=shuffle)
    orders = [estimator._order(tasks(), 4, epoch) for epoch in range(epochs)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(4 * TASKS))
    assert shuffle == (epochs > 1 and not torch.equal(orders[0], orders[-1])) or epochs == 1
    optimizer = adaptation(warp=WARP, start="random")
    count = len(list(estimator.estimates(optimizer, tasks())))
    assert count == epochs * -(-4 * TASKS // batch)


def test_warpgrad_in_one_batch_is_the_mean_of_its_points():
    optimizer = adaptation(warp=WARP, start="random")
    (whole,) = warpgrad(batch=100).estimates(optimizer, tasks())
    points = [trajectory(optimizer, task, 4)[1] for task in range(TASKS)]
    found = [direct(optimizer, task, points[task][step], 0, 4, False) for task in range(TASKS) for step in range(4)]
    torch.testing.assert_close(whole.meta_loss, torch.stack([loss for loss, _ in found]).mean(), rtol=1e-12, atol=0)


def test_warp_leap_learns_the_start_as_leap_does():
    optimizer = adaptation(warp=WARP)
    *replayed, last = warpgrad(leap=True).estimates(optimizer, tasks())
    leap = one(Leap(steps=4), optimizer, tasks())
    for (name, _), warped, alone, *others in zip(
        optimizer.named_parameters(), last.grads, leap.grads, *(estimate.grads for estimate in replayed), strict=True
    ):
        if name.startswith("start"):
            assert torch.equal(warped, alone)
            assert all(other is None for other in others)
        else:
            assert warped is None
            assert all(other is not None for other in others)
    online = one(warpgrad(leap=True, algorithm="online"), optimizer, tasks())
    assert all(grad is not None for grad in online.grads)
    assert torch.equal(theta0(optimizer, online.grads), theta0(optimizer, leap.grads))


def test_long_trajectories_are_thinned_to_the_memory():
    problem = tasks()
    single, double = torch.float32, torch.float64
    size = 4 * LAYOUT.size * TASKS
    for points, stored in [(10, range(10)), (5, range(0, 10, 2)), (4, range(0, 10, 3)), (1, range(0, 10, 10))]:
        assert list(warpgrad(steps=10, memory=points * size).stored(LAYOUT, TASKS, single)) == list(stored)
    assert list(warpgrad(steps=10, every=4).stored(LAYOUT, TASKS, single)) == [0, 4, 8]
    assert list(warpgrad(steps=10, every=4, memory=2 * size).stored(LAYOUT, TASKS, single)) == [0, 5]
    assert list(warpgrad(steps=10, every=4, memory=4 * size).stored(LAYOUT, TASKS, double)) == [0, 5]
    for dtype, size_said in [(single, "0.000687 MB"), (double, "0.00137 MB")]:
        said = warpgrad(steps=10, every=2).stores(LAYOUT, TASKS, dtype)
        assert said == f"5 points of each of 3 trajectories, {size_said}"
    optimizer = adaptation(warp=WARP, start="random")
    estimates = list(warpgrad(memory=4 * size).estimates(optimizer, problem))
    assert len(estimates) == 2 * TASKS


def test_warp_layers_stay_as_they_are_while_tasks_are_learned():
    optimizer = adaptation(warp=WARP)
    before = copy.deepcopy(optimizer.state_dict())
    for estimator in (MAML(steps=3), warpgrad(leap=True)):
        for estimate in estimator.estimates(optimizer, tasks()):
            assert not any(grad is not None and grad.requires_grad for grad in estimate.grads)
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state_dict().items())


@pytest.mark.parametrize("site", [Site(4, 2), Site(4, 0)], ids=["images", "vectors"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("residual", [False, True])
def test_new_warp_layers_change_nothing(site, layers, residual):
    layer = WarpConfig(layers=layers, residual=residual, batch_norm=False).build(site).double()
    x = F.relu(torch.randn(2, 4, *([5, 5] if site.dims else []), dtype=torch.float64))
    torch.testing.assert_close(layer(x), x, rtol=0, atol=0)
    linear = sum(parameter.numel() for parameter in layer.parameters())
    assert linear == layers * (4 * 4 * (9 if site.dims else 1) + 4)


def test_batch_norm_in_warp_layers_takes_the_statistics_of_what_comes_in():
    layer = WarpConfig(layers=1, residual=False, batch_norm=True).build(Site(4, 2)).double()
    x = 5 + 3 * torch.randn(6, 4, 5, 5, dtype=torch.float64)
    y = layer.eval()(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert not list(layer.buffers())


def test_fresh_parameters_start_as_the_problem_says():
    optimizer = adaptation(fresh=("head.*",))
    problem = optimizer.adapt(tasks())
    assert torch.equal(problem.init()["head.b"], tasks().init()["head.b"])
    assert torch.equal(problem.init()["w"], Regression(torch.tensor([5])).init()["w"].expand(TASKS, -1, -1))
    assert [name for name, _ in optimizer.named_parameters()] == ["start./w"]


def test_joint_training_learns_the_body_with_all_tasks_and_a_head_with_each():
    optimizer = adaptation(fresh=("head.*",), own=True)
    assert optimizer.heads["/head/b"].shape == (TASKS, WIDTH)
    mine = copy.deepcopy(optimizer)
    problem = tasks(0, 2)
    for step, estimate in enumerate(Joint(steps=3).estimates(optimizer, problem)):
        loss = torch.zeros((), dtype=torch.float64)
        for task in (0, 2):
            params = {"w": mine.start["/w"].unsqueeze(0), "head.b": mine.heads["/head/b"][task].unsqueeze(0)}
            loss = loss + Regression(torch.tensor([task])).loss(params, step).sum() / 2
        expected = torch.autograd.grad(loss, list(mine.parameters()))
        torch.testing.assert_close(estimate.meta_loss, loss.detach(), rtol=1e-12, atol=0)
        assert (expected[1][1] == 0).all()  # the head of the task that isn't there
        with torch.no_grad():
            for a, b, grad, reference in zip(
                optimizer.parameters(), mine.parameters(), estimate.grads, expected, strict=True
            ):
                torch.testing.assert_close(grad, reference, rtol=1e-11, atol=1e-15)
                a -= 0.1 * grad
                b -= 0.1 * reference
    # A task that it has been trained on has its head, another one a new one.
    heads = optimizer.adapt(tasks(1, TASKS + 4)).init()["head.b"]
    assert torch.equal(heads[0], optimizer.heads["/head/b"][1])
    assert torch.equal(heads[1], tasks(TASKS + 4).init()["head.b"][0])


ESTIMATORS = {
    "maml": MAML(steps=3),
    "fomaml": FOMAML(steps=3),
    "reptile": Reptile(steps=3),
    "leap": Leap(steps=3),
    "offline": warpgrad(leap=True, batch=5),
    "online": warpgrad(leap=True, algorithm="online"),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_tasks_together_are_tasks_one_by_one(name):
    """A batch's estimate is the mean of its tasks'; offline, of those in a batch of points."""
    estimator = ESTIMATORS[name]
    if name == "offline":
        estimator = replace(estimator, batch=100)
    optimizer = adaptation(warp=WARP if "line" in name else None)
    together = list(estimator.estimates(optimizer, tasks()))
    alone = [list(estimator.estimates(optimizer, tasks(task))) for task in range(TASKS)]
    for estimate, *singles in zip(together, *alone, strict=True):
        for grad, *others in zip(estimate.grads, *(single.grads for single in singles), strict=True):
            assert all((other is None) == (grad is None) for other in others)
            if grad is not None:
                torch.testing.assert_close(grad, torch.stack(others).mean(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_of_a_meta_step_is_left_behind(name):
    """No graph survives: the number of living tensors is the same after two meta-steps and after fifty."""
    optimizer = adaptation(warp=WARP if "line" in name else None)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())

    counts = []
    for step in range(50):
        for estimate in ESTIMATORS[name].estimates(optimizer, tasks()):
            for parameter, grad in zip(optimizer.parameters(), estimate.grads, strict=True):
                parameter.grad = grad
        if step in (1, 49):
            counts.append(living())
    assert counts[0] == counts[1]


@pytest.mark.parametrize("changes", [{"own": True, "fresh": ("theta",)}, {"warp": WARP}])
def test_what_an_optimizee_cannot_give_is_refused(changes):
    config = {"lr": LR, "start": "learned", "fresh": (), "own": False, "warp": None, "transform": "none", **changes}
    with pytest.raises(ConfigError, match="optimizee"):
        AdaptationConfig(**config).build(problems("quadratic", 1).layout, torch.Generator())


def test_an_optimizer_without_anything_to_learn_is_refused():
    with pytest.raises(ConfigError, match="nothing to learn"):
        adaptation(start="random")


def test_another_network_is_refused():
    optimizer = adaptation(warp=WARP)
    optimizer.fitted(replace(LAYOUT, tasks=None))
    with pytest.raises(ConfigError, match="network that it was trained on"):
        optimizer.fitted(Layout({"w": (WIDTH, 2)}))
    with pytest.raises(ConfigError, match="network that it was trained on"):
        optimizer.fitted(replace(LAYOUT, sites={}))
    adaptation().fitted(replace(LAYOUT, sites={}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer=maml", "meta=tbptt"], ["meta=tbptt", "a starting point", "leave meta out"]),
        (["optimizer=leap", "meta=pes"], ["meta=pes", "a starting point"]),
        (["optimizer=leap", "meta=online", "unroll=online"], ["meta=online", "a starting point"]),
        (["optimizer=lstm", "meta=maml"], ["meta=maml", "optimizer=lstm", "a starting point"]),
        (["optimizer=leap", "meta=warpgrad"], ["meta=warpgrad", "optimizer=leap", "warp layers"]),
        (["optimizer=leap", "optimizer.transform=metasgd"], ["meta=leap", "a starting point and updates"]),
        (["optimizer=leap", "meta.inner_steps=5", "meta.curriculum=[10]"], ["meta.inner_steps=5", "meta.curriculum"]),
        (["optimizer=leap", "optimizer.fresh=[body.*]"], ["optimizer.fresh", "body.*", "theta"]),
        (["optimizer=leap", "optimizer.fresh=[*]"], ["optimizer.fresh=['*']", "no part of the start"]),
        (["optimizer=leap", "optimizer.own=true"], ["optimizer.own=true", "optimizer.fresh"]),
        (["optimizer=warp", "optimizer.fresh=[head.*]"], ["optimizer.start=random", "optimizer.fresh"]),
        (
            ["optimizer=warp", "optimizer.transform=metasgd", "meta.approximate=true"],
            ["meta.approximate=true", "optimizer.transform"],
        ),
        (
            ["optimizer=groups", "optimizer@optimizer.groups.linear.optimizer=leap"],
            ["optimizer.groups.linear.optimizer", "a starting point"],
        ),
        (["optimizer=maml", "kernel=cpp"], ["kernel=cpp", "kernel=auto"]),
    ],
    ids=lambda value: " ".join(value) if value and "=" in value[0] else "",
)
def test_what_makes_no_sense_is_refused(tmp_path, arguments, words):
    ended = train(tmp_path / "run", *arguments, "evaluate=false", "device=cpu")
    assert_one_sentence(ended, *words)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("name", ["maml", "leap"])
def test_a_run_that_is_resumed_is_one_that_was_not_stopped(tmp_path, name):
    few = ["optimizee.batch=2", "optimizee.validation_problems=2", "unroll.steps=5", "meta.validate_every=2"]
    few += [f"optimizer={name}", "evaluate=false", "device=cpu", "device.threads=1", "device.dtype=float64"]
    assert train(tmp_path / "whole", *few, "meta.steps=4").code == 0
    assert train(tmp_path / "parts", *few, "meta.steps=2").code == 0
    assert train(None, *few, "meta.steps=4", f"resume={tmp_path / 'parts'}").code == 0
    whole, parts = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert same_bits(whole["optimizer"], parts["optimizer"])
    assert whole["optimizer"]["start./theta"].abs().sum() > 0


def test_sgd_as_meta_optimizer_takes_plain_steps(tmp_path):
    few = ["optimizee.batch=2", "optimizee.validation_problems=2", "unroll.steps=3", "meta.validate_every=1"]
    few += ["optimizer=reptile", "meta.lr=1", "evaluate=false", "device=cpu", "device.threads=1"]
    assert train(tmp_path / "run", *few, "meta.steps=1", "optimizer.lr=0.01").code == 0
    # Reptile at a rate of 1 goes to the mean of where the tasks end.
    problem = problems("quadratic", 2, dim=10, batch=2)
    theta = problem.layout.flatten(problem.init())[:1].expand(2, -1)
    for step in range(3):
        leaf = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(problem.loss(problem.layout.views(leaf), step).sum(), leaf)
        theta = theta - 0.01 * slope
    found = last(tmp_path / "run")["optimizer"]["start./theta"].double()
    torch.testing.assert_close(found, theta.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_meta_updates_take_gradients_in_whatever_order_of_memory(kind):
    """As those of convolutions under vmap are; PyTorch's own fused optimizers take them for contiguous."""
    generator = torch.Generator().manual_seed(0)
    layers, reference = (nn.Conv2d(3, 4, 3) for _ in range(2))
    reference.load_state_dict(layers.state_dict())
    fused, plain = kind(layers.parameters(), lr=0.1, fused=True), kind(reference.parameters(), lr=0.1)
    for _ in range(3):
        weight = torch.randn(3, 3, 4, 3, generator=generator).permute(2, 3, 0, 1)
        bias = torch.randn(8, generator=generator)[::2]
        reference.weight.grad, reference.bias.grad = weight.contiguous(), bias.contiguous()
        plain.step()
        meta_update(fused, layers, (weight, bias), global_norm((weight, bias)), torch.ones(()), None)
    torch.testing.assert_close(layers.weight, reference.weight)
    torch.testing.assert_close(layers.bias, reference.bias)


def test_methods_and_the_baselines_beside_them_can_be_told_apart():
    names = [*ADAPTATIONS, "none", "lstm", "sgd", "nag", "rms", "adam"]
    assert len({look_of(name, names).colour for name in names}) == len(names)


def test_a_transform_fits_whatever_number_of_tasks_there_is():
    transform = MetaSGDConfig(lr=0.1, patterns=None).build(LAYOUT, torch.Generator())
    transform.fitted(replace(LAYOUT, tasks=None, sites={}))
    with pytest.raises(ConfigError, match="trained on"):
        transform.fitted(Layout({"w": (WIDTH, 2)}))
