"""The maze against a plain-Python one, and its A2C loss against finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.evaluation.comparison import Comparison, table
from l2l_runner.evaluation.curves import Curves
from l2l_runner.optimizees.maze import MOVES, PIXELS, REWARD, plan
from l2l_runner.optimizers import Adam
from l2l_runner.plots.curves import draw_curves
from l2l_runner.plots.style import new_axes
from l2l_runner.unroll import start, unroll
from problems import (
    optimizee,
    problems,
    scattered,
    warp_rnn,
)

CPU = torch.device("cpu")

# The maze


def test_the_maze_has_walls_around_and_pillars_but_in_the_middle():
    drawing = [
        "#######",
        "#     #",
        "# # # #",
        "#     #",
        "# # # #",
        "#     #",
        "#######",
    ]
    assert plan(2, CPU, torch.float64).free.tolist() == [[cell == " " for cell in row] for row in drawing]
    free = plan(5, CPU, torch.float64).free
    assert free.shape == (13, 13)
    assert free[6, 6]  # no pillar in the middle
    assert free.sum() == 11 * 11 - 25 + 1


@pytest.mark.parametrize("pillars", [1, 2, 5])
def test_moves_and_views_are_those_of_the_grid(pillars):
    grid = plan(pillars, CPU, torch.float64)
    cells = grid.free.nonzero().tolist()
    assert cells[grid.start] == [pillars + 1, pillars + 1]
    for number, (row, column) in enumerate(cells):
        for action, (down, right) in enumerate(MOVES):
            there = [row + down, column + right]
            assert cells[grid.moves[number, action]] == (there if grid.free[tuple(there)] else [row, column])
        around = [0.0 if grid.free[row + i, column + j] else 1.0 for i in (-1, 0, 1) for j in (-1, 0, 1)]
        assert grid.views[number].tolist() == around


class PlainMaze:
    """One episode in plain Python: lists, a step at a time, its randomness in the order of its tensors."""

    def __init__(self, problem, row, episode, episodes, step):
        settings, seed = problem.optimizee, problem.seeds[row : row + 1]
        self.settings, self.free = settings, problem.plan.free.tolist()
        cells = [(i, j) for i, line in enumerate(self.free) for j, free in enumerate(line) if free]
        middle = (settings.pillars + 1, settings.pillars + 1)

        def numbers(what, count):
            return streams.uniform(seed, count * episodes, f"episodes/{what}", step)[0, episode::episodes].tolist()

        elsewhere = [cell for cell in cells if cell != middle]
        self.place = elsewhere[int(numbers("place", 1)[0] * len(elsewhere))]
        others = [cell for cell in cells if cell != self.place]
        self.wakes = [others[int(u * len(others))] for u in numbers("wake", settings.duration)]
        noise = numbers("action", 4 * settings.duration)
        self.gumbel = [[-math.log(-math.log(u)) for u in noise[4 * t : 4 * t + 4]] for t in range(settings.duration)]
        self.at, self.t, self.felt = middle, 0, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]

    def observation(self):
        row, column = self.at
        view = [0.0 if self.free[row + i][column + j] else 1.0 for i in (-1, 0, 1) for j in (-1, 0, 1)]
        return [*view, *self.felt, self.t / self.settings.duration]

    def act(self, action):
        row, column = self.at
        down, right = [(-1, 0), (1, 0), (0, -1), (0, 1)][action]
        hit = not self.free[row + down][column + right]
        target = self.at if hit else (row + down, column + right)
        found = target == self.place
        self.felt = [float(found), float(hit), 1.0, *(float(a == action) for a in range(4))]
        self.at = self.wakes[self.t] if found else target
        self.t += 1
        return self.settings.reward * found - self.settings.wall_penalty * hit


def plain_network(params, row, x, hidden, factors=None):
    """The next hidden state of an agent, unit by unit."""
    n = len(hidden)
    one = [1.0] * (len(x) + 4 * n) if factors is None else factors
    a, (b, c, d, e) = one[: len(x)], (one[len(x) + k * n : len(x) + (k + 1) * n] for k in range(4))
    weight, recurrent, bias = (params[name][row].tolist() for name in ("input", "hidden", "bias"))
    return [
        math.tanh(
            c[u] * sum(a[i] * x[i] * weight[i][u] for i in range(len(x)))
            + d[u] * sum(b[i] * hidden[i] * recurrent[i][u] for i in range(n))
            + e[u] * bias[u]
        )
        for u in range(n)
    ]


@pytest.mark.parametrize("gated", [False, True])
def test_episodes_are_those_of_plain_python(gated):
    problem = problems("maze", 2, duration=40, wall_penalty=0.5, pillars=1)
    views = problem.layout.views(scattered(problem))
    layer = warp_rnn(problem.layout, 1.0).gates["cell"]
    played = problem.warped({"cell": layer}) if gated else problem
    episodes = problem.optimizee.minibatch
    with torch.no_grad():
        steps = list(played.play(views, "episodes", 3, episodes))
    found = 0
    cells = problem.plan.free.nonzero().tolist()
    for row in range(2):
        for episode in range(episodes):
            maze, hidden, memory = PlainMaze(problem, row, episode, episodes, 3), [0.0] * problem.optimizee.units, None
            for step in steps:
                assert cells[step.cell[row, episode]] == list(maze.at)
                x, factors = maze.observation(), None
                assert len(x) == 17
                if gated:
                    pair = (torch.tensor([part], dtype=torch.float64) for part in (x, hidden))
                    with torch.no_grad():
                        gates, memory = layer(*pair, memory)
                    factors = gates[0].tolist()
                hidden = plain_network(views, row, x, hidden, factors)
                assert step.hidden[row, episode].tolist() == pytest.approx(hidden, abs=1e-9)
                weight, bias = (views[f"policy.{part}"][row].tolist() for part in ("weight", "bias"))
                logits = [sum(h * weight[u][a] for u, h in enumerate(hidden)) + bias[a] for a in range(4)]
                noisy = [logit + g for logit, g in zip(logits, maze.gumbel[maze.t], strict=True)]
                action = noisy.index(max(noisy))
                assert step.action[row, episode] == action
                reward = maze.act(action)
                assert step.reward[row, episode] == reward
                found += reward == problem.optimizee.reward
    assert found > 10
    value = problem.loss(views, 3) if not gated else played.loss(views, 3)
    torch.testing.assert_close(value, -sum(step.reward for step in steps).mean(1))


def test_actions_follow_the_policy():
    problem = problems("maze", 1, duration=500, minibatch=20)
    views = {name: torch.zeros_like(value) for name, value in problem.init().items()}
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    views["policy.bias"] = probabilities.log().unsqueeze(0)
    actions = torch.stack([step.action for step in problem.play(views, "episodes", 0, 20)])
    shares = actions.flatten().bincount(minlength=4) / actions.numel()
    torch.testing.assert_close(shares.double(), probabilities, rtol=0, atol=4 * 0.5 / math.sqrt(actions.numel()))


def test_rewards_lie_and_agents_wake_everywhere_but_where_they_must_not():
    problem = problems("maze", 1, pillars=1, duration=300, minibatch=200)
    steps = list(problem.play(problem.init(), "episodes", 0, 200))
    hits = torch.stack([step.reward[0] for step in steps]) > 0
    targets = torch.stack([step.target[0] for step in steps])
    places = targets[hits]
    wakes = torch.stack([step.cell[0] for step in steps])[1:][hits[:-1]]
    everywhere = set(range(problem.plan.moves.shape[0]))
    assert set(places.tolist()) == everywhere - {problem.plan.start}
    assert set(wakes.tolist()) == everywhere
    assert (targets[:-1][hits[:-1]] != wakes).all()
    for episode in range(200):
        assert len(targets[:, episode][hits[:, episode]].unique()) <= 1  # the place stays
    shares = torch.bincount(wakes).double() / len(wakes)
    assert (shares - 1 / len(everywhere)).abs().max() < 0.02


def test_other_steps_are_other_episodes_and_readings_are_always_the_same():
    problem = problems("maze", 2, duration=60)
    views = problem.init()
    assert torch.equal(problem.loss(views, 1), problem.loss(views, 1))
    assert len({tuple(problem.loss(views, step).tolist()) for step in range(5)}) > 1
    metrics = problem.metrics(views)
    assert torch.equal(metrics["return"], problem.metrics(views)["return"])
    steps = problem.play(views, "metric", 0, problem.optimizee.metric_episodes)
    torch.testing.assert_close(metrics["return"], torch.stack([step.reward for step in steps]).sum(0).mean(1))


# Learning


def test_the_numbers_of_parameters_are_published_ones():
    layout = optimizee("maze", units=100).layout()
    assert layout.size == 12_305
    optimizer = warp_rnn(layout, hidden=100)
    assert sum(parameter.numel() for parameter in optimizer.parameters()) == 139_300


def test_the_gradient_is_that_of_a2c_by_finite_differences():
    # With actions, rewards and advantages held, as a policy gradient has it.
    problem = problems("maze", 2, duration=30, wall_penalty=0.5, pillars=1)
    settings, flat = problem.optimizee, scattered(problem)
    steps = list(problem.play(problem.layout.views(flat), "episodes", 2, settings.minibatch))
    rewards, actions = (torch.stack(part) for part in ([s.reward for s in steps], [s.action for s in steps]))
    returns = torch.zeros_like(rewards)
    to_come = torch.zeros_like(rewards[0])
    for t in reversed(range(settings.duration)):
        to_come = returns[t] = rewards[t] + settings.discount * to_come
    assert (rewards > 0).any()

    def heads(at):
        """Log-probabilities [steps, problems, episodes, 4] and values [steps, problems, episodes]."""
        views = problem.layout.views(at)
        replayed = list(problem.play(views, "episodes", 2, settings.minibatch))
        assert torch.equal(torch.stack([s.action for s in replayed]), actions)  # steps are too small to change one
        hidden = torch.stack([s.hidden for s in replayed])
        logits = torch.einsum("tpeu,pua->tpea", hidden, views["policy.weight"]) + views["policy.bias"][:, None]
        values = torch.einsum("tpeu,pu->tpe", hidden, views["critic.weight"][..., 0]) + views["critic.bias"]
        return F.log_softmax(logits, -1), values

    advantages = returns - heads(flat)[1]

    def plain(at):
        log_policy, values = heads(at)
        taken = log_policy.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        entropy = -(log_policy.exp() * log_policy).sum(-1)
        terms = -advantages * taken + settings.critic * (returns - values) ** 2 - settings.entropy * entropy
        return terms.mean((0, 2))

    leaf = flat.clone().requires_grad_()
    loss = problem.loss(problem.layout.views(leaf), 2)
    (grads,) = torch.autograd.grad(loss.sum(), leaf)
    assert torch.equal(loss.detach(), -rewards.sum(0).mean(1))
    generator, h = torch.Generator().manual_seed(1), 1e-5
    for _ in range(4):
        direction = torch.randn(flat.shape, dtype=flat.dtype, generator=generator)
        difference = (plain(flat + h * direction) - plain(flat - h * direction)) / (2 * h)
        torch.testing.assert_close((grads * direction).sum(1), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_adam_learns_to_find_the_reward():
    problem = problems("maze", 2, duration=40, minibatch=20, units=20, metric_episodes=200, discount=0.8)
    adam = Adam(lr=0.01, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
    point = start(problem, adam)
    before = problem.metrics(problem.layout.views(point.params))["return"]
    for _, reached in unroll(problem, adam, point, 90):
        point = reached
    after = problem.metrics(problem.layout.views(point.params))["return"]
    assert (after > 1.5 * before).all()


# What is shown


def test_returns_are_shown_instead_of_losses():
    losses = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, -4.0, -9.0]], dtype=torch.float64).T
    curves = Curves(losses, {"return": torch.tensor([3.0, 9.0], dtype=torch.float64)})
    summary = Comparison("maze", {"adam": curves}, {"adam": 0.1}, gain="return").summary()
    assert summary.optimizers["adam"].final.mean == -6
    _, heads, row = table(summary).split("\n")
    assert heads.split("  ")[-1] == "return"
    assert "sum of returns" in heads
    assert "final return" in heads
    assert [part for part in row.split("  ") if part][2].startswith("4.5 ±")  # (1 + 2 + 2 + 4) / 2
    assert " 6 ±" in row
    assert "-" not in row
    for sign in (-1, 1):
        axes = new_axes(Figure(), 111, "step", "", "")
        draw_curves(axes, summary.optimizers, sign=sign)
        assert axes.get_yscale() == "linear"
        (line,) = axes.get_lines()
        assert np.asarray(line.get_ydata()).tolist() == [sign * loss for loss in (-1.5, -3.0, -6.0)]


def test_pictures_show_the_episode():
    problem = problems("maze", 2, duration=60)
    params = problem.init()
    pictures = problem.pictures(params)
    (sources,) = problem.sources().values()
    assert pictures.shape == sources.shape == (2, 3, 7 * PIXELS, 7 * PIXELS)
    assert ((pictures >= 0) & (pictures <= 1)).all()
    assert torch.equal(pictures, problem.pictures(params))
    centres = slice(PIXELS // 2, None, PIXELS)
    seen = pictures[:, :, centres, centres]
    steps = list(problem.play(params, "picture", 0, 1))
    places = problem.goals("picture", 0, 1)
    for row in range(2):
        assert (seen[row, :, ~problem.plan.free] == 0.25).all()
        was = {int(step.cell[row, 0]) for step in steps} | {int(step.target[row, 0]) for step in steps}
        for number, (i, j) in enumerate(problem.plan.cells):
            touched = number in was or number == places[row, 0]
            assert bool((seen[row, :, i, j] < 1).any()) == touched
        i, j = problem.plan.cells[places[row, 0]]
        torch.testing.assert_close(seen[row, :, i, j], torch.tensor(REWARD).double())
        torch.testing.assert_close(sources[row, :, centres, centres][:, i, j], torch.tensor(REWARD).double())
