"""An optimizer that learns while it optimizes: one-step hypergradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from l2l_runner.optim.transforms import ByPattern, Transform, make_transforms


class LearnableOptimizer(nn.Module):
    """p ← p − lr · T(g), where the next backward pass gives T its gradient −lr · g' · ∂T(g).

    g is the gradient at the step, and g' the next gradient, at the parameters after the step. An ordinary optimizer of
    this module's parameters learns T::

        learnable = LearnableOptimizer(model, MetaSGD, lr=0.01)
        meta_optimizer = torch.optim.Adam(learnable.parameters(), lr=1e-3)
        for images, labels in data:
            learnable.zero_grad()
            meta_optimizer.zero_grad()
            loss(model(images), labels).backward()  # gradients for the model, and for the transforms
            meta_optimizer.step()
            learnable.step()

    The model's parameters stay leaves and are updated in place. The model and this module can be copied or pickled
    together. Between steps only the last gradients are kept: T(g) is computed again once g' is known. `state_dict()`
    holds only the transforms; copies and pickles hold the last gradients too.

    Every gradient of the model's parameters counts as g', from `torch.autograd.grad` as well as from `backward`. Zero
    the transforms' gradients after one that should not count.

    Args:
        model: the model to optimize. It does not become a submodule of this module.
        transform: makes a parameter's transform, or a mapping of name patterns (`ByPattern`).
        lr: constant factor.
    """

    def __init__(
        self,
        model: nn.Module,
        transform: Transform | ByPattern | Mapping[str, Transform | None],
        lr: float = 1.0,
    ):
        super().__init__()
        made = make_transforms(model.named_parameters(), transform)
        self.transforms = nn.ModuleList(nn.Identity() if module is None else module for module in made)
        self.lr = lr
        self.info = {"model": model}  # in a dictionary, so that it is no submodule
        self._shapes = [parameter.shape for parameter in model.parameters()]
        self._last: list[Tensor | None] = [None] * len(made)
        self._last_lr = lr
        self._heard: list[Tensor | None] = []
        self._handles: list[RemovableHandle] = []
        self._listen()

    def _listen(self) -> None:
        """Listen to the gradients of the model's parameters, including any replaced or unfrozen since the last call."""
        present: list[Tensor | None] = [
            parameter if parameter.requires_grad else None for parameter in self.info["model"].parameters()
        ]
        if len(self._heard) == len(present) and all(a is b for a, b in zip(present, self._heard, strict=True)):
            return
        for handle in self._handles:
            handle.remove()
        self._heard = present
        self._handles = [
            parameter.register_hook(self._hear(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(present)
            if parameter is not None
        ]

    def _hear(self, index: int) -> Callable[[Tensor], None]:
        own = weakref.ref(self)  # a strong reference in a hook would keep this module alive as long as the model

        def hear(grad: Tensor) -> None:
            self = own()
            if self is None:
                return
            parameters = [p for p in self.transforms[index].parameters() if p.requires_grad]
            if not parameters:
                return
            last = self._last[index]
            # Before the first step nothing depends on T: its gradient is zero, so that its optimizer can step.
            found: tuple[Tensor | None, ...] = (None,) * len(parameters)
            if last is not None:
                with torch.enable_grad():
                    update = self.transforms[index](last)
                    found = torch.autograd.grad(update, parameters, -self._last_lr * grad.detach(), allow_unused=True)
            for parameter, part in zip(parameters, found, strict=True):
                if part is None:
                    part = torch.zeros_like(parameter)
                parameter.grad = part if parameter.grad is None else parameter.grad + part

        return hear

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the model's parameters that have gradients.

        Args:
            closure: computes the loss and its gradients first.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: the model's parameters have changed in number or shape since this module was made.
        """
        parameters = list(self.info["model"].parameters())
        if (found := [parameter.shape for parameter in parameters]) != self._shapes:
            raise RuntimeError(
                f"The model has parameters of the shapes {[*map(list, found)]}, and had {[*map(list, self._shapes)]} "
                "when its LearnableOptimizer was made: make another one after a change of the model."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._listen()
        self._last_lr = self.lr
        self._last = [None if parameter.grad is None else parameter.grad.detach().clone() for parameter in parameters]
        pairs = list(zip(self.transforms, self._last, strict=True))
        updates = [None if grad is None else transform(grad) for transform, grad in pairs]  # all of them, or an error
        for parameter, update in zip(parameters, updates, strict=True):
            if update is not None:
                parameter.sub_(update, alpha=self.lr)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Zero the model's gradients; those of the transforms are left to their own optimizer."""
        self.info["model"].zero_grad(set_to_none)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": [], "_heard": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._listen()
