"""Truncated back-propagation through time: the meta-gradient of Andrychowicz et al. 2016 (arXiv 1606.04474).

The meta-loss of a trajectory is Σ_{t=1}^{T} w_t f(θ_t), each loss counted once. A window of K steps from θ_s has the
losses f(θ_{s+1}) … f(θ_{s+K}), so that its last update gets a gradient too. θ and the optimizer's state pass to the
next window without their history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from l2l_runner import distributed, streams
from l2l_runner.meta.base import Estimate, MetaGradient, loss_weights, weighted_mean
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import LearnedRule, Recording, State
from l2l_runner.unroll import Graph, Point, start, unroll


@dataclass(frozen=True, kw_only=True)
class TBPTT(MetaGradient):
    """Truncated BPTT.

    Without second derivatives the gradients that the optimizer sees are constants, and no backward pass through the
    optimizee is needed (`engine="replay"`): θ_s = θ_0 + Σ_{t<s} u_t, so ∂L/∂u_t = Σ_{s>t} w_s ∇f(θ_s), a reverse
    cumulative sum of gradients that the forward pass computes anyway. `engine="graph"` differentiates the whole window,
    and is the reference.

    Attributes:
        length: steps of a window; the last window of a trajectory may be shorter.
        steps: steps of a trajectory.
        weights: constant, linear or final.
        second_order: keep the derivatives of the gradients with respect to the parameters.
        engine: replay or graph.
        coordinates: replay a random sample of so many coordinates of each part of the optimizer; None replays all. The
            meta-gradient of a coordinatewise rule is a sum over coordinates, which a sample estimates without bias at a
            fraction of the cost.
        chunk: coordinates to replay at once, which bounds memory; None takes the optimizer's own `chunk`.
    """

    shareable = True

    length: int
    steps: int
    weights: str = "constant"
    second_order: bool = False
    engine: str = "replay"
    coordinates: int | None = None
    chunk: int | None = None

    @property
    def description(self) -> str:
        return f"windows of {self.length}, engine {self.engine}"

    def _estimates(self, optimizer: LearnedRule, problem: Problem, seed: Tensor) -> Iterator[Estimate]:
        return (estimate for estimate, _ in self.windows(optimizer, problem, start(problem, optimizer), seed))

    def windows(
        self, optimizer: LearnedRule, problem: Problem, point: Point, seed: Tensor | None = None
    ) -> Iterator[tuple[Estimate, Point]]:
        """Yield the estimate of each window from `point` on, and the point where the window ends.

        Args:
            optimizer: what is meta-learned.
            problem: already adapted to the optimizer.
            point: where the first window begins.
            seed: as in `_estimates`; by default that of the first problem.
        """
        seed = problem.seeds[:1] if seed is None else seed
        all_weights = loss_weights(self.weights, self.steps).to(point.params)
        window = partial(self._replay, seed=seed) if self.engine == "replay" else self._differentiate
        while point.step < self.steps:
            weights = all_weights[point.step : point.step + self.length]
            estimate, point = window(optimizer, problem, point, weights)
            yield estimate, point

    def _replay(
        self, optimizer: LearnedRule, problem: Problem, point: Point, weights: Tensor, seed: Tensor
    ) -> tuple[Estimate, Point]:
        begun = point.state
        grads = point.grads.new_empty(len(weights) + 1, *point.grads.shape)
        losses = point.loss.new_empty(len(weights), len(point.loss))
        grads[0] = point.grads
        recording = self._recording(optimizer, point.params, len(weights))
        for step, (_, reached) in enumerate(unroll(problem, recording or optimizer, point, len(weights))):
            point, grads[step + 1], losses[step] = reached, reached.grads, reached.loss
        to_come = partial(_to_come, weights=weights / len(point.loss))
        if recording is not None:
            meta_grads = recording.backward(to_come(grads[1:]))
        else:
            meta_grads = self.replay(optimizer, seed, point.step, begun, grads[:-1], grads[1:], to_come)
        return Estimate(weighted_mean(losses, weights), meta_grads, losses), point

    def replay(
        self,
        optimizer: LearnedRule,
        seed: Tensor,
        step: int,
        state: State,
        grads: Tensor,
        effects: Tensor,
        cotangents: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Replay each part of the optimizer (`LearnedRule.replay`), on a sample of coordinates or in chunks of them.

        Args:
            optimizer: what to replay.
            seed: of the meta-step; with `step` it fixes the sample.
            step: of the trajectory, after the window.
            state: before the first step.
            grads: the gradients that the optimizer saw, [steps, problems, coordinates].
            effects: [steps, problems, coordinates], from which `cotangents` computes the cotangents.
            cotangents: a function of the effects of some coordinates, [steps, any, any].
        """
        meta_grads: tuple[Tensor, ...] = ()
        for rule, columns, own in optimizer.parts():
            seen, caused = columns.take(grads), columns.take(effects)
            if not rule.coordinatewise:
                meta_grads += rule.replay(seen, state[own], cotangents(caused))
            elif self._sampled(seen[0]):
                meta_grads += self._replay_sample(rule, seed, step, state[own], seen, cotangents(caused))
            else:
                meta_grads += self._replay_all(rule, state[own], seen, caused, cotangents)
        return meta_grads

    def _recording(self, optimizer: LearnedRule, params: Tensor, steps: int) -> Recording | None:
        """Return the optimizer as it records a window, if it can and no setting bounds memory; otherwise None."""
        # Not `_sampled`, which communicates: a process that records skips the replay, where the others would wait.
        bounded = self.coordinates is not None or params.numel() > (self.chunk or params.numel())
        return None if optimizer.coordinatewise and bounded else optimizer.recording(params, steps)

    def _sampled(self, params: Tensor) -> bool:
        return self.coordinates is not None and self.coordinates < distributed.sum_over_ranks(params.numel())

    def _replay_all(
        self,
        rule: LearnedRule,
        state: State,
        grads: Tensor,
        effects: Tensor,
        cotangents: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, ...]:
        """Replay all coordinates, chunk by chunk; the sum over chunks is taken in double precision."""
        grads, effects = (rows.flatten(1).unsqueeze(1) for rows in (grads, effects))
        size = self.chunk or rule.chunk or grads.shape[-1]
        parts = []
        for begin in range(0, grads.shape[-1], size):
            chunk = slice(begin, begin + size)
            parts.append(rule.replay(grads[..., chunk], rule.select(state, chunk), cotangents(effects[..., chunk])))
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.stack(same).sum(0, dtype=torch.float64).to(same[0]) for same in zip(*parts, strict=True))

    def _replay_sample(
        self, rule: LearnedRule, seed: Tensor, step: int, state: State, grads: Tensor, cotangents: Tensor
    ) -> tuple[Tensor, ...]:
        """Replay a sample of coordinates.

        Systematic sampling draws coordinates in proportion to their largest |∂(meta-loss)/∂u_t|, plus a tenth of its
        mean so that every coordinate can be drawn. Weights of the inverse keep the sum unbiased. Several processes draw
        one sample from the coordinates of all of them, and each replays its own share.
        """
        assert self.coordinates is not None
        problems = cotangents.shape[1]
        grads, cotangents = grads.flatten(1), cotangents.flatten(1)
        # The meta-loss is a mean over this process's problems; times their number, sizes compare between processes.
        size = cotangents.abs().amax(0).double() * problems
        sums = distributed.all_gather(torch.stack([size.sum(), torch.full_like(size[0], len(size))])).sum(0)
        share = size + 0.1 * sums[0] / sums[1] + torch.finfo(torch.float32).tiny
        cumulative = share.cumsum(0)
        ends = distributed.all_gather(cumulative[-1]).cumsum(0)  # of the processes' parts, one after the other
        offset = streams.uniform(seed, 1, "coordinates", step).squeeze()
        ticks = (torch.arange(self.coordinates, device=size.device) + offset) * (ends[-1] / self.coordinates)
        if len(ends) > 1:
            place = distributed.rank()
            own = torch.searchsorted(ends, ticks, right=True).clamp(max=len(ends) - 1) == place
            ticks = ticks[own] - (ends[place] - cumulative[-1])
            if not len(ticks):
                return tuple(torch.zeros_like(parameter) for parameter in rule.parameters())
        columns = torch.searchsorted(cumulative, ticks).clamp(max=len(size) - 1)
        scale = (ends[-1] / (self.coordinates * share[columns])).to(cotangents.dtype)
        seen, weighted = grads[:, columns].unsqueeze(1), (cotangents[:, columns] * scale).unsqueeze(1)
        return rule.replay(seen, rule.select(state, columns), weighted)

    def _differentiate(
        self, optimizer: LearnedRule, problem: Problem, point: Point, weights: Tensor
    ) -> tuple[Estimate, Point]:
        graph = Graph.SECOND_ORDER if self.second_order else Graph.FIRST_ORDER
        points = [point for _, point in unroll(problem, optimizer, point, len(weights), graph)]
        meta_loss = weighted_mean(torch.stack([point.loss for point in points]), weights)
        grads = torch.autograd.grad(meta_loss, list(optimizer.parameters()))
        losses = torch.stack([point.loss.detach() for point in points])
        return Estimate(meta_loss.detach(), grads, losses), points[-1].detach()


def _to_come(grads: Tensor, weights: Tensor) -> Tensor:
    """Return ∂(meta-loss)/∂u_t = Σ_{s>t} w_s ∇f(θ_s), [steps, problems, coordinates]; `weights` include 1/problems."""
    to_come = grads * weights.view(-1, 1, 1)
    for step in reversed(range(len(grads) - 1)):
        to_come[step] += to_come[step + 1]
    return to_come
