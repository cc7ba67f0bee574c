"""Updates of a module's parameters that stay in the graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from l2l_runner.optim.transforms import ByPattern, Transform, make_transforms

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]


def replace_parameters(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors of any graph in the place of a module's parameters, in place.

    They count as parameters: `parameters()` has them, and the module can be copied (which takes their values) and has
    a state dict. Tied ones stay tied. `torch.func.functional_call` does the same for one call, and leaves the module
    as it was: prefer it where the code is yours.

    Args:
        module: whose parameters are replaced.
        tensors: by the names of `named_parameters()`; parameters that are not named stay.

    Raises:
        ValueError: a name or a shape is none of the module's.
    """
    named = dict(module.named_parameters())
    for name, tensor in tensors.items():
        if name not in named or named[name].shape != tensor.shape:
            has = f"{list(named[name].shape)}" if name in named else f"the parameters {', '.join(named)}"
            raise ValueError(f"{name} {list(tensor.shape)} fits no parameter: the module has {has}.")
    # nn.Parameter by type, and still what was computed: operations on it stay in its graph.
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
            gradients: of `module.parameters()`, in their order; their `.grad` where none are given. A parameter
                whose gradient is None stays.
        """
        named = dict(module.named_parameters())
        grads = [parameter.grad for parameter in named.values()] if gradients is None else gradients
        pairs = zip(named.items(), grads, strict=True)
        replace_parameters(module, {name: p - self.lr * grad for (name, p), grad in pairs if grad is not None})
        for parameter in module.parameters():
            if not parameter.is_leaf:
                parameter.retain_grad()  # so that backward fills .grad, as it does for any parameter


class ParameterUpdate(nn.Module):
    """`torch.autograd.grad` whose gradients pass through a learnable transform each.

    Args:
        parameters: what will be updated, or (name, parameter) pairs.
        transform: what makes a parameter's transform; a mapping of name patterns (`ByPattern`) needs names.
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
        """The updates T(∂loss/∂p), to be subtracted.

        Args:
            loss: a scalar.
            parameters: as many as were given to the constructor, in their order.
            create_graph: whether the updates can be differentiated with respect to the parameters; with respect to the
                transforms they always can.
            retain_graph: as in `torch.autograd.grad`; the value of `create_graph` unless given.
            allow_unused: a parameter that the loss doesn't depend on has the update None, instead of being an error.
            allow_nograd: likewise one that needs no gradient.

        Raises:
            ValueError: another number of parameters.
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
