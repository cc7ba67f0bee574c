"""A small regression whose network has sites for warp layers, and what learns on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l2l_runner import streams
from l2l_runner.layout import Layout, Site
from l2l_runner.meta import WarpGrad
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import Adaptation, AdaptationConfig
from l2l_runner.optimizers.warp import WarpConfig

WIDTH, TASKS, LR = 3, 3, 0.2
LAYOUT = Layout({"w": (WIDTH, WIDTH), "head.b": (WIDTH,)}, sites={"middle": Site(WIDTH, 0)}, tasks=TASKS)
WARP = WarpConfig(layers=2, residual=False, batch_norm=False)


class Regression(Problem):
    """‖tanh(warp(x W)) + b − y‖² on fresh inputs each step; the targets are a task's own."""

    tasks: Tensor

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


def warpgrad(**changes) -> WarpGrad:
    settings_ = {"steps": 4, "algorithm": "offline", "approximate": False, "batch": 1, "epochs": 1, "shuffle": False}
    return WarpGrad(**{**settings_, "every": 1, "memory": 1 << 20, "leap": False, **changes})
