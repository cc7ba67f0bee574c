"""Differentiable updates of a module's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from l2l_runner.optim.transforms import ByPattern, Transform, make_transforms

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def replace_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Replace a module's parameters, in place, by tensors that keep their graph.

    The tensors count as parameters: `parameters()` and `state_dict()` have them, and a copy of the module takes their
    values. Tied parameters stay tied. `torch.func.functional_call` does the same for a single call and leaves the
    module unchanged: prefer it in your own code.

    Args:
        module: the module whose parameters are replaced.
        tensors: by the names of `named_parameters()`; the other parameters stay.

    Raises:
        ValueError: the module has no parameter of such a name and shape.
    """
    named = dict(module.named_parameters())
    for name, tensor in tensors.items():
        if name not in named or named[name].shape != tensor.shape:
            has = f"{list(named[name].shape)}" if name in named else f"the parameters {', '.join(named)}"
            raise ValueError(f"{name} {list(tensor.shape)} fits no parameter: the module has {has}.")
    # `as_subclass` makes it an nn.Parameter by type, and keeps its graph.
    new = {
        id(parameter): tensors[name].as_subclass(nn.Parameter) for name, parameter in named.items() if name in tensors
    }
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in new:
                part._parameters[name] = new[id(parameter)]


class DifferentiableSGD(nn.Module):
    """p ← p − lr · g, in the graph.

    Args:
        lr: learning rate.
    """

    def __init__(self, lr: float):
        super().__init__()
        self.lr = lr

    def forward(self, module: nn.Module, gradients: Sequence[Tensor | None] | None = None) -> None:
        """Update a module's parameters in place.

        Args:
            module: its parameters are replaced (`replace_parameters`).
            gradients: of `module.parameters()`, in their order; by default their `.grad`. A parameter whose gradient is
                None stays.
        """
        named = dict(module.named_parameters())
        grads = [parameter.grad for parameter in named.values()] if gradients is None else gradients
        pairs = zip(named.items(), grads, strict=True)
        replace_parameters(module, {name: p - self.lr * grad for (name, p), grad in pairs if grad is not None})
        for parameter in module.parameters():
            if not parameter.is_leaf:
                parameter.retain_grad()  # so that backward fills .grad, as it does for any parameter


class ParameterUpdate(nn.Module):
    """`torch.autograd.grad`, with a learnable transform of each gradient.

    Args:
        parameters: the parameters to update, or (name, parameter) pairs.
        transform: makes a parameter's transform; a mapping of name patterns (`ByPattern`) needs names.
    """

    def __init__(self, parameters: Parameters, transform: Transform | ByPattern | Mapping[str, Transform | None]):
        super().__init__()
        pairs = [item if isinstance(item, tuple) else (str(i), item) for i, item in enumerate(parameters)]
        made = make_transforms(pairs, transform)
        self.count = len(made)
        self.transforms = nn.ModuleDict({str(i): module for i, module in enumerate(made) if module is not None})

    def forward(
        self,
        loss: Tensor,
        parameters: Iterable[Tensor],
        create_graph: bool = False,
        retain_graph: bool | None = None,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> list[Tensor | None]:
        """Return the updates T(∂loss/∂p), to be subtracted from the parameters.

        Args:
            loss: a scalar.
            parameters: as many as were given to the constructor, in their order.
            create_graph: whether the updates can be differentiated with respect to the parameters; with respect to the
                transforms they always can.
            retain_graph: as in `torch.autograd.grad`; by default the value of `create_graph`.
            allow_unused: a parameter that the loss does not depend on has the update None, instead of an error.
            allow_nograd: likewise for a parameter that requires no gradient.

        Raises:
            ValueError: the number of parameters differs from that of the constructor.
        """
        parameters = list(parameters)
        if len(parameters) != self.count:
            raise ValueError(f"There are {len(parameters)} parameters; expected {self.count}, as were given at first.")
        wanted = [parameter for parameter in parameters if parameter.requires_grad or not allow_nograd]
        keep = create_graph if retain_graph is None else retain_graph
        grads = torch.autograd.grad(loss, wanted, None, keep, create_graph, allow_unused=allow_unused) if wanted else ()
        found = iter(grads)
        updates: list[Tensor | None] = []
        for index, parameter in enumerate(parameters):
            grad = next(found) if parameter.requires_grad or not allow_nograd else None
            known = str(index) in self.transforms and grad is not None
            updates.append(self.transforms[str(index)](grad) if known else grad)
        return updates
