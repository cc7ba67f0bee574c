"""Learning to reweight examples (Ren et al. 2018, arXiv 1803.09050): a loss whose examples are weighted at every step.

Each example is weighted by how much a step on it alone would lower the loss of a few clean examples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp

from l2l_runner.layout import Params
from l2l_runner.optimizees.wrapped import Wrapped


def example_weights(
    losses: Callable[[Params], Tensor], clean_loss: Callable[[Params], Tensor], params: Params
) -> Tensor:
    """Return the weights of examples: max(−∂L/∂ε, 0), normalised, with L the clean loss after an SGD step on Σ ε ℓ.

    The step is virtual, and the derivative is taken at ε = 0, where it leads to `params` themselves. So by the chain
    rule −∂L/∂ε_i = lr ⟨∇L, ∇ℓ_i⟩: one backward pass of the clean loss and one forward-mode derivative of the losses
    along its gradient, instead of a derivative through the step. The learning rate cancels in the normalisation.

    Args:
        losses: of the examples, [..., examples].
        clean_loss: of the clean examples, [...].
        params: where both are evaluated, as constants.

    Returns:
        [..., examples], of sum 1; all zero where no example's step would lower the clean loss.
    """
    return _losses_and_weights(losses, clean_loss, {name: value.detach() for name, value in params.items()})[1]


def _losses_and_weights(
    losses: Callable[[Params], Tensor], clean_loss: Callable[[Params], Tensor], params: Params
) -> tuple[Tensor, Tensor]:
    """Return the losses at `params`, with their graph, and the weights, from a single forward pass."""
    constant = {name: value.detach() for name, value in params.items()}
    uphill = grad(lambda at: clean_loss(at).sum())(constant)
    with warnings.catch_warnings():
        # Forward mode compiles some of its formulas with torch.jit.script, which PyTorch deprecates.
        warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
        values, alignment = jvp(losses, (params,), (uphill,))  # type: ignore[misc] # a third only with has_aux
    useful = alignment.detach().clamp(min=0)
    total = useful.sum(-1, keepdim=True)
    return values, useful / torch.where(total > 0, total, 1)


class Reweighted(Wrapped):
    """Problems with clean examples, whose other examples are weighted anew at every step.

    Derivatives of the loss take the weights for constants, so that any optimizer can take the step.
    """

    def loss(self, params: Params, step: int) -> Tensor:
        losses, weights = _losses_and_weights(
            lambda at: self.problem.example_losses(at, step), self.problem.clean_loss, params
        )
        return (weights * losses).sum(-1)
