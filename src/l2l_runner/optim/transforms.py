"""Learnable transforms T of a parameter's gradient: modules from a gradient to an update of the same shape.

A `Transform` makes such a module from a parameter, of which only shape, type and device matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn

Transform = Callable[[Tensor], nn.Module | None]
"""A function from a parameter to its transform; None leaves the parameter's gradients unchanged."""


class MetaSGD(nn.Module):
    """T(g) = α ∘ g with learned rates α (Li et al. 2017, arXiv 1707.09835).

    Args:
        param: the parameter, of any shape.
        lr: the rates at the start.
        per: `element`: α has the parameter's shape; `tensor`: one rate for all of it.
    """

    def __init__(self, param: Tensor, lr: float = 1.0, per: str = "element"):
        super().__init__()
        if per not in ("element", "tensor"):
            raise ValueError(f"per is {per!r}; expected element or tensor.")
        self.rate = nn.Parameter(param.new_full(param.shape if per == "element" else (), lr))

    def forward(self, grad: Tensor) -> Tensor:
        return self.rate * grad


class MetaCurvatureTransform(nn.Module):
    """T(g) = lr · M_in · g · M_out, the identity at the start (Park & Oliva 2019, arXiv 1902.03356).

    A scalar or a bias has one factor per element. A matrix [n, m] has factors [n, n] and [m, m]. The weights of a
    convolution, [n, m, *kernel], have a third factor for all positions of the kernel together.

    Args:
        param: the parameter.
        lr: constant factor.
    """

    def __init__(self, param: Tensor, lr: float = 1.0):
        super().__init__()
        self.lr = lr
        shape = param.shape
        if len(shape) < 2:
            self.mc = nn.Parameter(param.new_ones(shape))
            return
        self.mc_in = nn.Parameter(_eye(shape[0], param))
        self.mc_out = nn.Parameter(_eye(shape[1], param))
        if len(shape) > 2:
            self.mc_f = nn.Parameter(_eye(prod(shape[2:]), param))

    def forward(self, grad: Tensor) -> Tensor:
        if grad.dim() < 2:
            return self.lr * self.mc * grad
        if grad.dim() == 2:
            return self.lr * (self.mc_in @ grad @ self.mc_out)
        n, m = grad.shape[:2]
        inner = torch.einsum("iaf,gf->iag", grad.reshape(n, m, -1), self.mc_f)
        whole = torch.einsum("ji,iag,ab->jbg", self.mc_in, inner, self.mc_out)
        return self.lr * whole.reshape(grad.shape)


class KroneckerLinear(nn.Module):
    """x ↦ L x R + b on matrices [..., n, m], the identity at the start; with `psd`, x ↦ Lᵀ L x Rᵀ R + b.

    On vec(x) it is the matrix Rᵀ ⊗ L, at the cost of n² + m² numbers instead of n² m² (Arnold et al. 2019,
    arXiv 1910.13603).

    Args:
        n: rows.
        m: columns.
        bias: whether to learn b.
        psd: whether to keep that matrix positive semi-definite.
        device: of the parameters.
    """

    def __init__(self, n: int, m: int, bias: bool = True, psd: bool = False, device: torch.device | None = None):
        super().__init__()
        self.left = nn.Parameter(torch.eye(n, device=device))
        self.right = nn.Parameter(torch.eye(m, device=device))
        self.bias = nn.Parameter(torch.zeros(n, m, device=device)) if bias else None
        self.psd = psd

    def forward(self, x: Tensor) -> Tensor:
        """Map matrices [..., n, m], or a vector [n m] that holds a matrix column by column, to the same shape.

        Raises:
            ValueError: x has another shape.
        """
        n, m = len(self.left), len(self.right)
        if x.dim() == 1 and len(x) == n * m:
            return self._map(x.reshape(m, n).T).T.reshape(-1)
        if x.shape[-2:] != (n, m):
            raise ValueError(f"The input's shape is {tuple(x.shape)}; expected (..., {n}, {m}) or ({n * m},).")
        return self._map(x)

    def _map(self, x: Tensor) -> Tensor:
        left: Tensor = self.left
        right: Tensor = self.right
        if self.psd:
            left, right = left.T @ left, right.T @ right
        y = left @ x @ right
        return y if self.bias is None else y + self.bias


class ReshapedTransform(nn.Module):
    """A module applied to the gradient in another shape.

    Args:
        transform: the module.
        shape: of the module's input; one size may be -1.
    """

    def __init__(self, transform: nn.Module, shape: Sequence[int]):
        super().__init__()
        self.transform = transform
        self.in_shape = tuple(shape)

    def forward(self, grad: Tensor) -> Tensor:
        update: Tensor = self.transform(grad.reshape(self.in_shape))
        return update.reshape(grad.shape)


class ModuleTransform:
    """A `Transform` from any class of modules that map vectors to vectors.

    Args:
        module_cls: called as module_cls(numel, numel); the module maps [1, numel] to [1, numel].
    """

    def __init__(self, module_cls: Callable[[int, int], nn.Module]):
        self.module_cls = module_cls

    def __call__(self, param: Tensor) -> nn.Module:
        numel = param.numel()
        return ReshapedTransform(_like(self.module_cls(numel, numel), param), (1, numel))


class KroneckerTransform:
    """A `Transform` whose modules factor over a gradient's rows and columns (Arnold et al. 2019, arXiv 1910.13603).

    A bias counts as a column, and the weights of a convolution as one matrix of input channels × positions for each
    output channel.

    Args:
        kronecker_cls: called as kronecker_cls(n=…, m=…, bias=…, psd=…), such as `KroneckerLinear`.
        bias: passed to `kronecker_cls`.
        psd: passed to `kronecker_cls`.
    """

    def __init__(self, kronecker_cls: Callable[..., nn.Module], bias: bool = False, psd: bool = True):
        self.kronecker_cls = kronecker_cls
        self.bias = bias
        self.psd = psd

    def __call__(self, param: Tensor) -> nn.Module:
        shape = (*param.shape, 1, 1)[:2] if param.dim() < 3 else (param.shape[1], prod(param.shape[2:]))
        transform = self.kronecker_cls(n=shape[0], m=shape[1], bias=self.bias, psd=self.psd)
        return ReshapedTransform(_like(transform, param), (-1, *shape))


class TransformDictionary:
    """A transform for each of some modules or parameters; all other parameters keep their gradients.

    Args:
        transforms: by module, for all of its parameters, or by parameter.

    Raises:
        ValueError: a key is neither a module nor a parameter.
    """

    def __init__(self, transforms: Mapping[nn.Module | nn.Parameter, Transform]):
        self._transforms: dict[int, Transform] = {}
        self._keys = list(transforms)  # keeps them alive, so that no other object gets their id
        for key, transform in transforms.items():
            if not isinstance(key, (nn.Module, nn.Parameter)):
                raise ValueError(f"A key is {type(key).__name__}; expected an nn.Module or an nn.Parameter.")
            for parameter in key.parameters() if isinstance(key, nn.Module) else [key]:
                self._transforms[id(parameter)] = transform

    def __call__(self, param: Tensor) -> nn.Module | None:
        transform = self._transforms.get(id(param))
        return None if transform is None else transform(param)


class ByPattern:
    """A transform for each parameter, by the first pattern that fits its name.

    Args:
        transforms: by shell patterns, as in {"*.bias": None, "head.*": MetaSGD, "*": MetaCurvatureTransform}.
    """

    def __init__(self, transforms: Mapping[str, Transform | None]):
        self.transforms = dict(transforms)

    def make(self, name: str, param: Tensor) -> nn.Module | None:
        """Make the transform of the parameter of this name.

        Raises:
            ValueError: no pattern fits the name.
        """
        for pattern, transform in self.transforms.items():
            if fnmatchcase(name, pattern):
                return None if transform is None else transform(param)
        raise ValueError(f'No pattern fits parameter {name}: there are {", ".join(self.transforms)}; "*" fits all.')


def make_transforms(
    named: Iterable[tuple[str, Tensor]], transform: Transform | ByPattern | Mapping[str, Transform | None]
) -> list[nn.Module | None]:
    """Make the transform of each parameter.

    Raises:
        ValueError: a transform is not a module, or no pattern fits a name.
    """
    if isinstance(transform, Mapping):
        transform = ByPattern(transform)
    made = [transform.make(*pair) if isinstance(transform, ByPattern) else transform(pair[1]) for pair in named]
    for one in made:
        if not (one is None or isinstance(one, nn.Module)):
            raise ValueError(f"A transform is {type(one).__name__}; expected an nn.Module, or None for the identity.")
    return made


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _like(module: nn.Module, param: Tensor) -> nn.Module:
    return module.to(param.device, param.dtype)
