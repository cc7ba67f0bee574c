"""A learned optimizer as a torch.optim.Optimizer, for anybody's training loop."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import count, repeat, takewhile
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from l2l_runner import sharding
from l2l_runner.errors import ConfigError
from l2l_runner.optimizers.base import LearnedRule as Rule
from l2l_runner.runs import checkpoint
from l2l_runner.weights import pretrained

OPTIONS = ("lr", "weight_decay", "maximize", "skip_zero_grad")
"""What a group of parameters can have of its own."""

_OTHER_KEYS = {"params", "param_names", "fingerprint", "name", "initial_lr", "max_lr", "min_lr", "swa_lr"}
"""Keys of a group beside its options: parameters, the fingerprint, a label, and what schedulers keep there."""


class LearnedOptimizer(torch.optim.Optimizer):
    """θ ← (1 − lr · weight_decay) θ + lr · u, where u is the update of a trained coordinatewise optimizer::

        optimizer = l2l_runner.LearnedOptimizer(model.parameters(), "mnist")
        for images, labels in data:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()

    It works wherever `torch.optim.Adam` does, under FSDP2 and tensor parallelism too: each process updates its own
    shard. The state of a learned LSTM is 2 × layers × hidden numbers per coordinate (320 bytes with the usual 2 × 20
    units), in single precision or better, whatever the precision of the parameters. Its tensors are
    [hidden, *parameter.shape].

    A gradient of zero is an input like any other: a learned LSTM can move a coordinate that never had another gradient,
    such as the row of an embedding whose word does not occur (with `mnist` by −.35 in 100 steps). `skip_zero_grad=True`
    leaves such coordinates as they are.

    Args:
        params: parameters, or groups of them as dictionaries, as in torch.optim. Where the optimizer has groups of its
            own (optimizer=groups), they need names: pass `model.named_parameters()`.
        optimizer: the name of a pretrained one (`l2l_runner.pretrained()` lists them), a checkpoint or the folder of
            its run, or a learned optimizer itself.
        lr: factor of the updates. Schedulers that also cycle momentum need cycle_momentum=False.
        kernel: auto, torch, cpp or triton.
        weight_decay: decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).
        maximize: ascend instead of descend.
        skip_zero_grad: a coordinate whose gradient is exactly zero neither moves nor changes its state.

    A group may have its own lr, weight_decay, maximize and skip_zero_grad.

    Raises:
        CheckpointError: there is no such optimizer.
        ConfigError: the optimizer is not coordinatewise, or the kernel is not available; or the optimizer has groups,
            and a parameter has no name, or a name that fits none of them.
        TypeError: `optimizer` is none of the above.
        ValueError: lr or weight_decay is negative, not finite or not one number; or a group has another option.
    """

    def __init__(
        self,
        params: ParamsT,
        optimizer: str | Path | Rule,
        lr: float | Tensor = 1.0,
        kernel: str = "auto",
        *,
        weight_decay: float = 0.0,
        maximize: bool = False,
        skip_zero_grad: bool = False,
    ):
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
        self._arguments: dict[str, Any] = {"optimizer": optimizer, "kernel": kernel}
        self._rules: dict[tuple[torch.device, torch.dtype], Rule] = {}
        options = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "skip_zero_grad": skip_zero_grad}
        super().__init__(params, options | {"fingerprint": _fingerprint(self.rule)})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch.optim.

        Raises:
            ConfigError: a parameter is in none of the optimizer's groups.
            ValueError: an option of the group is unknown, or its lr or weight_decay is not a finite number ≥ 0.
        """
        for key in sorted(param_group.keys() - _OTHER_KEYS - {*OPTIONS}):
            # ZeroRedundancyOptimizer repeats the constructor's arguments in each group.
            if key not in self._arguments or self._arguments[key] != param_group[key]:
                raise ValueError(f"A parameter group has the option {key}; LearnedOptimizer has {', '.join(OPTIONS)}.")
        _check_factor("lr", param_group.get("lr", self.defaults["lr"]), "of the updates ")
        _check_factor("weight_decay", param_group.get("weight_decay", self.defaults["weight_decay"]))
        super().add_param_group({**param_group, "fingerprint": self.defaults["fingerprint"]})
        try:
            for param, name in _named(self.param_groups[-1]):
                self._rule_for(param.device, _precision(param)).rule_of(name)  # torch.compile cannot copy a rule later
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
            RuntimeError: a gradient is sparse or complex; no parameter has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        todo = [
            (param, name, group)
            for group in self.param_groups
            for param, name in _named(group)
            if param.grad is not None
        ]
        for param, _, _ in todo:
            _check_gradient(param)
        for param, name, group in todo:
            with _without_autocast(param.device.type):
                self._update(param, name, group)
        return loss

    def _update(self, param: Tensor, name: str, group: Mapping[str, Any]) -> None:
        own, grad = sharding.local(param), sharding.local_grad(param)
        # Half precision is too coarse for the state and for small gradients.
        dtype = _precision(grad)
        rule = self._rule_for(own.device, dtype).rule_of(name)
        row, params = (tensor.to(dtype).reshape(1, -1) for tensor in (grad, own))
        if group["maximize"]:
            row = -row
        state = self.state[param]
        kept = [sharding.local(value) for value in _in_order(state)]
        values = tuple(_shaped(value, row.shape[1:]).to(row) for value in kept) if kept else rule.init(row)
        update, following = rule.update(row, values, params)
        change = group["lr"] * update
        if group["weight_decay"]:
            change = change - group["lr"] * group["weight_decay"] * params
        if group["skip_zero_grad"]:
            moves = row != 0
            change = torch.where(moves, change, 0)
            following = tuple(
                torch.where(moves if new.dim() else moves.any(), new, old)
                for new, old in zip(following, values, strict=True)
            )
        for index, value in enumerate(following):
            state[f"state_{index}"] = sharding.sharded_like(param, _shaped(value, own.shape))
        own.add_(change.reshape(own.shape))

    def _rule_for(self, device: torch.device, dtype: torch.dtype) -> Rule:
        """Return the rule on a parameter's device and in the precision for it."""
        rule = self._rules.get((device, dtype))
        if rule is None:
            rule = copy.deepcopy(self.rule).to(device, dtype)
            rule.use_kernel(self.kernel)
            self._rules[device, dtype] = rule
        return rule

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of `state_dict()`, which does not hold the learned optimizer itself, but its fingerprint.

        Hooks see and change the state dict as in torch.optim.

        Raises:
            ValueError: the state is that of another optimizer, or of other parameters; nothing has changed.
        """
        loaded: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, changed: dict[str, Any]) -> None:
            self._check_loadable(changed)
            loaded.update(changed)

        def restore(_: torch.optim.Optimizer) -> None:
            # PyTorch casts states to the type of their parameters, which may be less precise.
            for param, _name, values in self._loadable(loaded):
                exact = {f"state_{index}": value.detach().clone() for index, value in enumerate(_in_order(values))}
                self.state[param].update({key: value.to(param.device) for key, value in exact.items()})

        # After the caller's hooks that change the state dict, and before those that change what was loaded.
        handles = [
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        ]
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            for handle in handles:
                handle.remove()

    def _loadable(self, state_dict: Mapping[str, Any]) -> Iterator[tuple[Tensor, str, Mapping[str, Any]]]:
        """Return each parameter that has a state in the dictionary, its name and that state."""
        named = (pair for group in self.param_groups for pair in _named(group))
        keys = (key for group in state_dict["param_groups"] for key in group["params"])
        for (param, name), key in zip(named, keys, strict=False):
            if key in state_dict["state"]:
                yield param, name, state_dict["state"][key]

    def _check_loadable(self, state_dict: Mapping[str, Any]) -> None:
        own = self.defaults["fingerprint"]
        for group in state_dict.get("param_groups", [{}]):
            if "fingerprint" not in group:
                raise ValueError(
                    f"The state dict is not of a LearnedOptimizer (it has {', '.join(group) or 'no groups'}): load "
                    "what LearnedOptimizer.state_dict() returned."
                )
            if group["fingerprint"] != own:
                raise ValueError(
                    f"The state dict is of the learned optimizer with the fingerprint {group['fingerprint']}; this one "
                    f"has {own}: load it into the learned optimizer that saved it."
                )
        for param, name, state in self._loadable(state_dict):
            blank = self.rule.rule_of(name).init(torch.empty(1, param.numel(), device="meta"))
            expected = [[len(value), *param.shape] if value.dim() else [] for value in blank]
            values = _in_order(state)
            if (found := [list(value.shape) for value in values]) != expected:
                raise ValueError(
                    f"The state of a parameter of shape {list(param.shape)} has the shapes {found}; this learned "
                    f"optimizer has {expected}: load it into an optimizer of the same parameters."
                )
            if any(value.dim() and not sharding.alike(param, value) for value in values):
                raise ValueError(
                    f"The state of a parameter of shape {list(param.shape)} is not sharded as the parameter is: load "
                    "it with torch.distributed.checkpoint.state_dict.set_optimizer_state_dict."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "kernel": self.kernel}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._rules = {}
        self.__dict__.setdefault("_arguments", {})


def _fingerprint(rule: Rule) -> str:
    """Return a hash of what a rule has learned, whatever its precision."""
    digest = hashlib.sha256()
    for name, value in rule.state_dict().items():
        digest.update(f"{name} {list(value.shape)} ".encode())
        digest.update(repr(value.detach().cpu().double().flatten().tolist()).encode())
    return digest.hexdigest()[:16]


def _check_factor(name: str, value: Any, of: str = "") -> None:
    one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
    if not (one and 0 <= float(value) < math.inf):
        raise ValueError(f"{name} is {value}; expected a finite factor {of}that is ≥ 0.")


def _check_gradient(param: Tensor) -> None:
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided or grad.is_complex():
        kind = "complex" if grad.is_complex() else str(grad.layout).removeprefix("torch.").replace("_", " ")
        raise RuntimeError(
            f"A parameter of shape {list(param.shape)} has a {kind} gradient; LearnedOptimizer takes dense real "
            "gradients (of nn.Embedding, with sparse=False)."
        )


def _precision(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known and torch.is_autocast_enabled(device) else nullcontext()


def _named(group: Mapping[str, Any]) -> Iterator[tuple[Tensor, str]]:
    """Return the parameters of a group with their names, which are empty where none were given."""
    return zip(group["params"], group.get("param_names", repeat("")), strict=False)


def _in_order(state: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of the rule's own state; others may keep theirs beside them."""
    return [state[key] for key in takewhile(state.__contains__, map("state_{}".format, count()))]


def _shaped(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a tensor of the state as [rows, *shape]; a scalar stays one."""
    return value.reshape(len(value), *shape) if value.dim() else value
