"""One meta-step: an update of the rule after each window of a batch of trajectories."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2l_runner import distributed
from l2l_runner.meta.base import Estimate, Grads, MetaGradient, global_norm
from l2l_runner.optimizees import Problem
from l2l_runner.optimizers import LearnedRule


@dataclass(frozen=True)
class MetaStep:
    """What a meta-step came to.

    Attributes:
        loss: mean meta-loss per step, or, where it `imitates`, mean distance per window; NaN where one was skipped.
        final_loss: mean loss at the end of the last window.
        grad_norm: mean norm of the meta-gradients that were used; NaN where none was.
        skipped: whether a window, and with it the rest of its trajectory, was skipped because its meta-loss or
            meta-gradient was not finite.
        all_skipped: whether all windows were.
        imitates: whether an expert took the steps (see meta/imitation.py).
    """

    loss: float
    final_loss: float
    grad_norm: float
    skipped: bool
    all_skipped: bool
    imitates: bool


def meta_step(
    rule: LearnedRule,
    meta_optimizer: torch.optim.Optimizer,
    estimator: MetaGradient,
    problem: Problem,
    clip: float | None,
    share: float = 1.0,
) -> MetaStep:
    """Update a rule after each window of the trajectories of one batch of problems.

    Args:
        rule: what is meta-trained.
        meta_optimizer: what updates it, a fused one.
        estimator: of the meta-gradient.
        problem: this rank's problems.
        clip: the largest norm of a meta-gradient; None for any.
        share: their share of the problems of all ranks.
    """
    # What isn't finite never reaches the parameters, and the rest of that trajectory is lost with it. All of that is
    # decided on the device; the host waits for it once, at the end.
    usable = torch.ones((), device=problem.seeds.device)
    figures: list[Tensor] = []
    imitates, covered = False, 0
    for estimate in estimator.estimates(rule, problem):
        meta_loss, final, grads = _over_ranks(estimate, share)
        norm = global_norm(grads)
        usable = usable * (torch.isfinite(meta_loss) & torch.isfinite(norm))
        meta_update(meta_optimizer, rule, grads, norm, usable, clip)
        imitates = estimate.imitates
        covered += len(estimate.losses)
        figures.append(torch.stack([meta_loss, final, norm, usable.to(norm)]))
    windows = torch.stack(figures).tolist()
    norms = [norm for _, _, norm, used in windows if used]
    skipped = len(norms) < len(windows)
    # A distance is relative already; a meta-loss is a sum over the trajectory.
    per = len(windows) if imitates else covered
    return MetaStep(
        loss=math.nan if skipped else sum(window[0] for window in windows) / per,
        final_loss=windows[-1][1],
        grad_norm=sum(norms) / len(norms) if norms else math.nan,
        skipped=skipped,
        all_skipped=not norms,
        imitates=imitates,
    )


def meta_update(
    meta_optimizer: torch.optim.Optimizer,
    optimizer: LearnedRule,
    grads: Grads,
    norm: Tensor,
    usable: Tensor,
    clip: float | None,
) -> None:
    """Take a step of the meta-optimizer, a fused one, without waiting for the device.

    Args:
        meta_optimizer: what takes the step.
        optimizer: what it learns.
        grads: the meta-gradient; parameters without one stay as they are.
        norm: its global norm, a scalar.
        usable: a scalar: 1, or 0 to leave everything as it is.
        clip: the largest norm; None for any.
    """
    scale = 1.0 if clip is None else (clip / (norm + 1e-12)).clamp(max=1)
    for parameter, grad in zip(optimizer.parameters(), grads, strict=True):
        # Fused optimizers take a gradient's numbers in the order of memory, which vmap's convolutions may have changed.
        parameter.grad = None if grad is None else torch.empty_like(parameter).copy_(grad * scale)
    # Where it is 1, a fused optimizer leaves everything as it is.
    meta_optimizer.found_inf = 1 - usable  # type: ignore[attr-defined]
    meta_optimizer.step()


def _over_ranks(estimate: Estimate, share: float) -> tuple[Tensor, Tensor, Grads]:
    """Return meta-loss, mean final loss and gradients for the problems of all ranks, of which this one has a share."""
    given = [grad for grad in estimate.grads if grad is not None]
    meta_loss, final, *grads = distributed.all_reduce([estimate.meta_loss, estimate.losses[-1].mean(), *given], share)
    reduced = iter(grads)
    return meta_loss, final, tuple(None if grad is None else next(reduced) for grad in estimate.grads)
