"""A maze with a hidden reward, learned by a recurrent network with A2C.

The task is that of Miconi et al. 2019 ("Backpropamine", arXiv 2002.10585), also used by Flennerhag et al. 2020
("WarpGrad", arXiv 1909.00025). The maze is always the same. The place of the reward is drawn anew for each episode, and
an agent that has found it wakes up elsewhere and must find it again, so that memory pays off.

The loss is minus the return. The return depends on sampled actions, through which no derivative passes; the gradient of
`loss` is that of the advantage actor-critic (A2C, Mnih et al. 2016) for the same episodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.fields import at_least, between
from l2l_runner.layout import Layout, Params, Site
from l2l_runner.optimizees.base import Optimizee, Problem
from l2l_runner.runtime import Runtime

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Rows and columns of the actions: up, down, left, right."""

VIEW = 9  # walls in the 3×3 cells around the agent
OBSERVED = VIEW + 4 + len(MOVES)
"""The view; reward found, wall hit, a constant; the last action, zeros before the first; the time."""

CELL = "cell"
"""The site of the network: its recurrent cell."""

PIXELS = 16  # of a cell of a picture
START, REWARD, AWAKE, VISITED = (0.84, 0.1, 0.1), (0.0, 0.62, 0.45), (0.9, 0.6, 0.0), (0.94, 0.89, 0.6)
EARLY, LATE = (0.6, 0.8, 0.95), (0.0, 0.15, 0.45)  # of a path


@dataclass(frozen=True, kw_only=True)
class Maze(Optimizee):
    """Minus the return of a recurrent agent; its gradient is A2C's.

    The network is h' = tanh(W x + U h + b), with a linear policy and a linear critic that read h'. Episodes start in
    the middle of the maze. The agent reads its view of the cells around it, whether its last move has found the reward,
    whether it has hit a wall, the constant 1, its last action, and the elapsed fraction of the episode.

    Attributes:
        pillars: per direction, on every second cell; the maze has 2 · pillars + 3 cells per side, including walls, and
            no pillar in the middle.
        duration: steps per episode.
        minibatch: episodes per step of the optimizer.
        units: of the recurrent network.
        reward: for stepping onto the hidden cell, after which the agent wakes up on a random other cell.
        wall_penalty: for a move into a wall.
        discount: γ, per step.
        entropy: weight of the policy's entropy.
        critic: weight of the critic's squared error.
        metric_episodes: episodes over which the metric `return` is the mean.
    """

    pillars: int = at_least(1)
    duration: int = at_least(1)
    minibatch: int = at_least(1)
    units: int = at_least(1)
    reward: float
    wall_penalty: float = at_least(0)
    discount: float = between(0, 1)
    entropy: float = at_least(0)
    critic: float = at_least(0)
    metric_episodes: int = at_least(1)

    @property
    def gain(self) -> str:
        return "return"

    def layout(self) -> Layout:
        shapes: dict[str, tuple[int, ...]] = {
            "input": (OBSERVED, self.units),
            "hidden": (self.units, self.units),
            "bias": (self.units,),
            "policy.weight": (self.units, len(MOVES)),
            "policy.bias": (len(MOVES),),
            "critic.weight": (self.units, 1),
            "critic.bias": (1,),
        }
        return Layout(shapes, {CELL: Site(OBSERVED, dims=0, hidden=self.units)})

    def sample(self, seeds: Tensor, runtime: Runtime) -> Problem:
        return MazeProblem(self, seeds.to(runtime.device), runtime.dtype)


class Plan(NamedTuple):
    """A maze as tables over its n free cells, which are numbered row by row.

    Attributes:
        free: bool [side, side].
        moves: int64 [n, actions], the cell that an action leads to; at a wall, the same cell.
        views: [n, VIEW], 1 for a wall among the cells around, else 0.
        start: the cell in the middle.
        cells: row and column of each.
    """

    free: Tensor
    moves: Tensor
    views: Tensor
    start: int
    cells: list[tuple[int, int]]


def plan(pillars: int, device: torch.device, dtype: torch.dtype) -> Plan:
    """Return the maze with this number of pillars per direction."""
    side = 2 * pillars + 3
    free = torch.zeros(side, side, dtype=torch.bool)
    free[1:-1, 1:-1] = True
    free[2:-2:2, 2:-2:2] = False
    free[side // 2, side // 2] = True
    rows, columns = free.nonzero(as_tuple=True)
    number = torch.full((side, side), -1)
    number[rows, columns] = torch.arange(len(rows))
    reached = torch.stack([number[rows + down, columns + right] for down, right in MOVES], dim=1)
    moves = torch.where(reached < 0, number[rows, columns].unsqueeze(1), reached)
    around = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    views = torch.stack([~free[rows + down, columns + right] for down, right in around], dim=1)
    start, cells = int(number[side // 2, side // 2]), list(zip(rows.tolist(), columns.tolist(), strict=True))
    return Plan(free.to(device), moves.to(device), views.to(device, dtype), start, cells)


class Step(NamedTuple):
    """A step of a batch of episodes, each tensor [problems, episodes].

    Attributes:
        cell: of the agent, before the move.
        hidden: [problems, episodes, units], h' of the network.
        action: the move.
        target: the cell that it leads to, before a reward moves the agent elsewhere.
        reward: of the move.
    """

    cell: Tensor
    hidden: Tensor
    action: Tensor
    target: Tensor
    reward: Tensor


class MazeProblem(Problem):
    """Agents in mazes; a problem's episodes follow from its seed, the step, and its agent's parameters.

    Args:
        optimizee: the settings.
        seeds: int64 [problems].
        dtype: the precision.
        warp: gates the recurrent cell (see `warped`); None for no gates.
    """

    def __init__(self, optimizee: Maze, seeds: Tensor, dtype: torch.dtype, warp: nn.Module | None = None):
        self.optimizee, self.seeds, self.dtype, self.warp = optimizee, seeds, dtype, warp
        self.layout = optimizee.layout()
        self.plan = plan(optimizee.pillars, seeds.device, dtype)

    def init(self) -> Params:
        """Draw the start uniformly in ±1/√units, as PyTorch does for recurrent cells."""
        scale = self.optimizee.units**-0.5
        flat = (2 * streams.uniform(self.seeds, self.layout.size, "start") - 1) * scale
        return self.layout.views(flat.to(self.dtype))

    def warped(self, layers: Mapping[str, nn.Module]) -> Problem:
        """Gate the agents' recurrent cell: h' = tanh(c ⊙ W(a ⊙ x) + d ⊙ U(b ⊙ h) + e ⊙ bias).

        The layer is called with x [rows, OBSERVED], h [rows, units] and its own state, None at first. It returns the
        factors (a, b, c, d, e) as one tensor [rows, OBSERVED + 4 · units], and its next state.
        """
        return MazeProblem(self.optimizee, self.seeds, self.dtype, layers[CELL])

    def take(self, rows: Tensor) -> Problem:
        return MazeProblem(self.optimizee, self.seeds[rows], self.dtype, self.warp)

    def loss(self, params: Params, step: int) -> Tensor:
        """Return minus the mean return [problems] of this step's episodes, with the gradient of their A2C loss."""
        steps = list(self.play(params, "episodes", step, self.optimizee.minibatch))
        rewards, actions = (torch.stack(part, dim=1) for part in ([s.reward for s in steps], [s.action for s in steps]))
        surrogate = self.a2c(params, torch.stack([s.hidden for s in steps], dim=1), actions, rewards)
        return surrogate - surrogate.detach() - rewards.sum(1).mean(1)

    def a2c(self, params: Params, hidden: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
        """Return the mean over steps and episodes of −A log π(a) + critic · (R − V)² − entropy · H(π), [problems].

        R is the discounted sum of the rewards to come within the episode, and A = R − V is held constant.

        Args:
            params: named tensors [problems, *shape].
            hidden: [problems, duration, episodes, units].
            actions: [problems, duration, episodes].
            rewards: likewise.
        """
        settings = self.optimizee
        after = torch.arange(settings.duration, device=rewards.device)
        distance = after - after.unsqueeze(1)
        discounts = (settings.discount ** distance.clamp(min=0)).to(self.dtype).triu()
        returns = discounts @ rewards
        flat = hidden.flatten(1, 2)
        log_policy = F.log_softmax(_linear(params, "policy", flat), dim=-1)
        error = returns.flatten(1) - _linear(params, "critic", flat).squeeze(-1)
        taken = log_policy.gather(-1, actions.flatten(1).unsqueeze(-1)).squeeze(-1)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        loss = -error.detach() * taken + settings.critic * error.square() - settings.entropy * entropy
        return loss.mean(1)

    def play(self, params: Params, purpose: str, step: int, episodes: int) -> Iterator[Step]:
        """Play a batch of episodes, and yield it step by step; the hidden states keep their graph.

        Args:
            params: named tensors [problems, *shape].
            purpose: of the episodes; with the problems' seeds and the step, it fixes all randomness.
            step: of the optimizer.
            episodes: per problem.
        """
        settings, plan, problems = self.optimizee, self.plan, len(self.seeds)
        n, actions = plan.moves.shape

        def draw(what: str, count: int) -> Tensor:
            numbers = streams.uniform(self.seeds, count * episodes, f"{purpose}/{what}", step)
            return numbers.view(problems, count, episodes)

        place = self.goals(purpose, step, episodes)
        wake = (
            draw("wake", settings.duration) * (n - 1)
        ).long()  # any other cell: those from `place` on move up by one
        wake = wake + (wake >= place.unsqueeze(1))
        noise = draw("action", actions * settings.duration).view(problems, settings.duration, actions, episodes)
        gumbel = -(-noise.log()).log().to(self.dtype).transpose(2, 3)  # the largest of logits + gumbel: a sample
        sensed = _sensations(actions, self.dtype).to(place.device)
        cell = torch.full_like(place, plan.start)
        last = torch.full_like(place, len(sensed) - 1)
        hidden = torch.zeros(problems, episodes, settings.units, dtype=self.dtype, device=place.device)
        network = _Network(params, self.warp)
        for t in range(settings.duration):
            clock = torch.full((problems, episodes, 1), t / settings.duration, dtype=self.dtype, device=place.device)
            observed = torch.cat((plan.views[cell], sensed[last], clock), dim=-1)
            hidden = network(observed, hidden)
            with torch.no_grad():
                action = (_linear(params, "policy", hidden) + gumbel[:, t]).argmax(-1)
                target = plan.moves.take(cell * actions + action)
                found, hit = target == place, target == cell
                reward = settings.reward * found.to(self.dtype) - settings.wall_penalty * hit
                last = (action * 2 + found) * 2 + hit
            yield Step(cell, hidden, action, target, reward)
            cell = torch.where(found, wake[:, t], target)

    def goals(self, purpose: str, step: int, episodes: int) -> Tensor:
        """Return the cells of the rewards, [problems, episodes], which are never the start."""
        place = streams.integers(self.seeds, episodes, len(self.plan.moves) - 1, f"{purpose}/place", step)
        return place + (place >= self.plan.start)

    def metrics(self, params: Params) -> dict[str, Tensor]:
        """Return `return`: the mean sum of an episode's rewards, over a fixed set of separate episodes."""
        steps = self.play(params, "metric", 0, self.optimizee.metric_episodes)
        return {"return": sum((s.reward.mean(1) for s in steps), torch.zeros((), dtype=self.dtype))}

    def pictures(self, params: Params) -> Tensor:
        """Draw an episode of each problem: the agent's path, darker with time, cells visited, and where it woke up."""
        steps, places = list(self.play(params, "picture", 0, 1)), self.goals("picture", 0, 1)
        canvases = self._canvases()
        for canvas, cells in zip(canvases, torch.stack([step.cell for step in steps]).unbind(1), strict=True):
            visits = torch.bincount(cells.flatten(), minlength=len(self.plan.moves))
            for cell, share in enumerate((visits / visits.max()).tolist()):
                if share:
                    _paint(canvas, self._corner(cell), PIXELS, VISITED, 0.2 + 0.8 * share)
        marks = []
        for t, step in enumerate(steps):
            for row, canvas in enumerate(canvases):
                ends = [self._corner(int(cells[row, 0])) for cells in (step.cell, step.target)]
                (top, bottom), (left, right) = (sorted(pair) for pair in zip(*ends, strict=True))
                middle = PIXELS // 2
                line = canvas[:, top + middle - 1 : bottom + middle + 1, left + middle - 1 : right + middle + 1]
                line[:] = _blend(EARLY, LATE, t / len(steps)).to(canvas)[:, None, None]
                if t and steps[t - 1].target[row, 0] == places[row, 0]:
                    marks.append((canvas, ends[0]))
        for canvas, corner in marks:
            _paint(canvas, corner, 6, AWAKE)
        self._mark(canvases)
        return canvases

    def sources(self) -> dict[str, Tensor]:
        """Draw the mazes of the pictures: the start red, the reward green."""
        canvases = self._canvases()
        self._mark(canvases)
        return {"start red\nreward green\nwoken up orange": canvases}

    def _canvases(self) -> Tensor:
        """Draw an empty maze for each problem, [problems, 3, height, width]."""
        free = self.plan.free.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)
        return torch.where(free, 1.0, 0.25).to(self.dtype).expand(len(self.seeds), 3, -1, -1).clone()

    def _mark(self, canvases: Tensor) -> None:
        """Paint the start and the reward of the pictures' episode of each problem."""
        for canvas, place in zip(canvases, self.goals("picture", 0, 1).flatten().tolist(), strict=True):
            _paint(canvas, self._corner(self.plan.start), 8, START)
            _paint(canvas, self._corner(place), 12, REWARD)

    def _corner(self, cell: int) -> tuple[int, int]:
        """Return the upper left pixel of a cell."""
        row, column = self.plan.cells[cell]
        return row * PIXELS, column * PIXELS


class _Network:
    """The recurrent cell of each problem, with the state of its gates."""

    def __init__(self, params: Params, warp: nn.Module | None):
        self.params, self.warp, self.state = params, warp, None
        self.bias = params["bias"].unsqueeze(1)
        self.weight = torch.cat((params["input"], params["hidden"]), dim=1)

    def __call__(self, x: Tensor, hidden: Tensor) -> Tensor:
        if self.warp is None:
            return torch.tanh(torch.baddbmm(self.bias, torch.cat((x, hidden), dim=-1), self.weight))
        factors, self.state = self.warp(x.flatten(0, 1), hidden.flatten(0, 1), self.state)
        sizes = [x.shape[-1], *4 * [hidden.shape[-1]]]
        a, b, c, d, e = factors.view(*x.shape[:2], -1).split(sizes, dim=-1)
        products = c * torch.bmm(a * x, self.params["input"]) + d * torch.bmm(b * hidden, self.params["hidden"])
        return torch.tanh(products + e * self.bias)


def _linear(params: Params, name: str, x: Tensor) -> Tensor:
    """Pass rows [problems, rows, units] through a linear layer of each problem."""
    return torch.baddbmm(params[f"{name}.bias"].unsqueeze(1), x, params[f"{name}.weight"])


def _sensations(actions: int, dtype: torch.dtype) -> Tensor:
    """Tabulate [found, hit, 1, one-hot action] for each (action, found, hit), and in the last row before any action."""
    rows = [
        [float(found), float(hit), 1.0, *(float(other == action) for other in range(actions))]
        for action in range(actions)
        for found in (0, 1)
        for hit in (0, 1)
    ]
    return torch.tensor([*rows, [0.0, 0.0, 1.0, *actions * [0.0]]], dtype=dtype)


def _blend(one: tuple[float, ...], other: tuple[float, ...], share: float) -> Tensor:
    """Return a colour between two."""
    return torch.lerp(torch.tensor(one), torch.tensor(other), share)


def _paint(canvas: Tensor, corner: tuple[int, int], size: int, colour: tuple[float, ...], opacity: float = 1.0) -> None:
    """Paint a square of `size` pixels into the middle of a cell of a canvas [3, height, width]."""
    top, left = (edge + (PIXELS - size) // 2 for edge in corner)
    square = canvas[:, top : top + size, left : left + size]
    square.lerp_(torch.tensor(colour).to(canvas)[:, None, None].expand_as(square), opacity)
