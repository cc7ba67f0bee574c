"""A learned optimizer as a torch.optim.Optimizer, for anybody's training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from l2l_runner.errors import ConfigError
from l2l_runner.optimizers.base import LearnedRule as Rule
from l2l_runner.runs import checkpoint
from l2l_runner.weights import pretrained


class LearnedOptimizer(torch.optim.Optimizer):
    """θ ← θ + lr · u, where u is the update that a trained coordinatewise optimizer makes of the gradient::

        optimizer = l2l_runner.LearnedOptimizer(model.parameters(), "mnist")
        for images, labels in data:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()

    It works wherever `torch.optim.Adam` does. A learned LSTM has a state of 2 × layers × hidden numbers per coordinate
    (320 bytes with the usual 2 × 20 units), in single precision or better, whatever the precision of the parameters.

    Args:
        params: parameters, or groups of them as dictionaries, as in torch.optim. Where the optimizer has groups of its
            own (optimizer=groups), they need names: pass `model.named_parameters()`.
        optimizer: the name of a pretrained one (`l2l_runner.pretrained()` lists them), a checkpoint or the folder of
            its run, or a learned optimizer itself.
        lr: factor of the updates. A group may have its own, and a scheduler may change it; schedulers that also cycle
            momentum need cycle_momentum=False.
        kernel: auto, torch, cpp or triton.

    Raises:
        CheckpointError: there is no such optimizer.
        ConfigError: the optimizer is not coordinatewise, or the kernel is not available; or the optimizer has groups,
            and a parameter has no name, or a name that fits none of them.
        TypeError: `optimizer` is none of the above.
        ValueError: lr is negative.
    """

    def __init__(self, params: ParamsT, optimizer: str | Path | Rule, lr: float = 1.0, kernel: str = "auto"):
        if isinstance(optimizer, (str, Path)):
            source = Path(optimizer).expanduser()
            self.rule = checkpoint.restore_rule(checkpoint.load(source), source)
        elif isinstance(optimizer, Rule):
            self.rule = copy.deepcopy(optimizer).cpu()
        else:
            raise TypeError(
                f"optimizer is {optimizer!r}; expected the name of a pretrained one ({', '.join(pretrained())}), a "
                "checkpoint, the folder of its run, or a learned optimizer."
            )
        if not self.rule.coordinatewise:
            raise ConfigError(
                "This optimizer was trained for problems of one size: give LearnedOptimizer a coordinatewise one, such "
                "as an LSTM trained with optimizer.coordinatewise=true."
            )
        self.rule.requires_grad_(False)
        self.rule.use_kernel(kernel)  # fails here rather than in the first step
        self.kernel = kernel
        self._rules: dict[tuple[torch.device, torch.dtype], Rule] = {}
        super().__init__(params, {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch.optim.

        Raises:
            ConfigError: a parameter is in none of the optimizer's groups.
            ValueError: the group's lr is negative.
        """
        lr = param_group.get("lr", self.defaults["lr"])
        if not lr >= 0:
            raise ValueError(f"lr is {lr}; expected a factor of the updates that is ≥ 0.")
        super().add_param_group(param_group)
        try:
            for _, name in _named(self.param_groups[-1]):
                self.rule.rule_of(name)
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have gradients.

        Args:
            closure: computes the loss and its gradients first.

        Returns:
            What the closure returned.

        Raises:
            RuntimeError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param, name in _named(group):
                if param.grad is not None:
                    self._update(param, name, group["lr"])
        return loss

    def _update(self, param: Tensor, name: str, lr: float | Tensor) -> None:
        grad = param.grad
        assert grad is not None
        if grad.layout != torch.strided or grad.is_complex():
            kind = "complex" if grad.is_complex() else str(grad.layout).removeprefix("torch.").replace("_", " ")
            raise RuntimeError(
                f"A parameter of shape {list(param.shape)} has a {kind} gradient; LearnedOptimizer takes dense real "
                "gradients (of nn.Embedding, with sparse=False)."
            )
        # Half precision is too coarse for the state and for small gradients.
        dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
        rule = self._rule_for(param.device, dtype).rule_of(name)
        row = grad.to(dtype).reshape(1, -1)
        state = self.state[param]
        values = tuple(value.to(row) for value in _in_order(state)) if state else rule.init(row)
        update, following = rule.update(row, values, param.to(dtype).reshape(1, -1))
        state.update({f"state_{index}": value for index, value in enumerate(following)})
        param.add_((lr * update).reshape(param.shape))

    def _rule_for(self, device: torch.device, dtype: torch.dtype) -> Rule:
        """Return the rule on a parameter's device and in the precision for it."""
        rule = self._rules.get((device, dtype))
        if rule is None:
            rule = copy.deepcopy(self.rule).to(device, dtype)
            rule.use_kernel(self.kernel)
            self._rules[device, dtype] = rule
        return rule

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of `state_dict()`, which does not hold the learned optimizer itself.

        Raises:
            ValueError: the state is that of an optimizer of another architecture, or of other parameters.
        """
        named = [pair for group in self.param_groups for pair in _named(group)]
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        states = {name: state_dict["state"][name] for name in names if name in state_dict["state"]}
        for (param, own_name), name in zip(named, names, strict=False):
            blank = self.rule.rule_of(own_name).init(torch.empty(1, param.numel(), device="meta"))
            expected = [list(value.shape) for value in blank]
            found = [list(value.shape) for value in _in_order(states[name])] if name in states else expected
            if found != expected:
                raise ValueError(
                    f"The state of a parameter of shape {list(param.shape)} has the shapes {found}; this learned "
                    f"optimizer has {expected}: load it into an optimizer like the one that saved it."
                )
        super().load_state_dict(dict(state_dict))
        # PyTorch casts states to the type of their parameters, which may be less precise.
        for (param, _), name in zip(named, names, strict=True):
            if name in states:
                self.state[param] = {
                    key: value.detach().clone().to(param.device) for key, value in states[name].items()
                }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "kernel": self.kernel}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rules = {}


def _named(group: dict[str, Any]) -> Iterator[tuple[Tensor, str]]:
    """Return the parameters of a group with their names, which are empty where none were given."""
    return zip(group["params"], group.get("param_names", repeat("")), strict=False)


def _in_order(state: Mapping[str, Tensor]) -> list[Tensor]:
    return [state[f"state_{index}"] for index in range(len(state))]
