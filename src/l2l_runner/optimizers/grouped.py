"""Groups of parameters with an optimizer each, as the two LSTMs of Andrychowicz et al. 2016 (arXiv 1606.04474, 3.3).

In the paper one LSTM has the convolutional parameters and another the fully connected ones. Here any number of groups,
given by the names of their parameters, can have learned and hand-designed optimizers side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.fields import named, one_of
from l2l_runner.layout import Columns, Layout
from l2l_runner.optimizers.base import (
    RULES,
    UPDATES,
    LearnedConfig,
    LearnedRule,
    Optimizer,
    Part,
    RuleConfig,
    State,
    fits,
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """patterns: shell patterns of parameter names. optimizer: what updates the parameters that they fit."""

    patterns: tuple[str, ...]
    optimizer: RuleConfig = one_of(RULES)


@dataclass(frozen=True, kw_only=True)
class GroupsConfig(LearnedConfig):
    """The settings of groups of parameters.

    Attributes:
        groups: by name; null leaves a group out.
    """

    name: str = named("groups")
    groups: dict[str, Group | None]

    def __post_init__(self) -> None:
        """Refuse groups in groups, rules that change the problems, and groups with nothing to learn.

        Raises:
            ConfigError: a group's name is not an identifier, its rule is groups or learns more than updates, or no
                group has a learned rule.
        """
        for name, group in self.given.items():
            if not name.isidentifier():
                raise ConfigError(f"optimizer.groups has a group {name!r}; expected a name of letters, digits and _.")
            if group.optimizer.name == self.name:
                raise ConfigError(f"optimizer.groups.{name}.optimizer is groups again: list its groups here instead.")
            if not group.optimizer.learns <= {UPDATES}:
                raise ConfigError(
                    f"optimizer.groups.{name}.optimizer learns {' and '.join(sorted(group.optimizer.learns))}, but a "
                    "group takes rules that learn updates or nothing: give it another, such as lstm or sgd."
                )
        if not any(group.optimizer.learns for group in self.given.values()):
            found = f"in {', '.join(self.given)}" if self.given else "there is no group"
            raise ConfigError(
                f"optimizer.groups has nothing to learn ({found}): give one of its groups a learned optimizer, such as "
                "lstm."
            )

    @property
    def given(self) -> dict[str, Group]:
        """The groups that are not left out."""
        return {name: group for name, group in self.groups.items() if group is not None}

    @property
    def coordinatewise(self) -> bool:  # type: ignore[override]
        """Whether all learned rules are coordinatewise."""
        rules = [group.optimizer for group in self.given.values()]
        return all(rule.coordinatewise for rule in rules if rule.learns)

    def assign(self, layout: Layout) -> dict[str, list[str]]:
        """Return the names of each group's parameters, in the layout's order.

        Raises:
            ConfigError: a parameter is in no group, or in several.
        """
        assigned: dict[str, list[str]] = {name: [] for name in self.given}
        for parameter in layout.shapes:
            fitting = [name for name, group in self.given.items() if fits(parameter, group.patterns)]
            if len(fitting) != 1:
                patterns = "; ".join(f"{name}: {', '.join(group.patterns)}" for name, group in self.given.items())
                found = f"fits {' and '.join(fitting)}" if fitting else "fits none of them"
                raise ConfigError(
                    f"optimizer.groups has the patterns {patterns}; the parameter {parameter} {found}: change "
                    "optimizer.groups.NAME.patterns so that each parameter fits exactly one group."
                )
            assigned[fitting[0]].append(parameter)
        return assigned

    def build(self, layout: Layout, generator: torch.Generator) -> Grouped:
        """Build the rules of all groups.

        Raises:
            ConfigError: as `assign`; or a group or a pattern fits no parameter.
        """
        for name, group in self.given.items():
            odd = [pattern for pattern in group.patterns if not any(fits(n, (pattern,)) for n in layout.shapes)]
            if odd or not group.patterns:
                found = f"has {odd[0]}, which fits" if odd else "is empty, and fits"
                raise ConfigError(
                    f"optimizer.groups.{name}.patterns {found} none of the parameters {', '.join(layout.shapes)}; "
                    f"optimizer.groups.{name}=null does without the group."
                )
        rules: dict[str, Optimizer] = {}
        for name, own in self.assign(layout).items():
            rule = self.given[name].optimizer
            rules[name] = rule.build(layout.only(own), generator)
        return Grouped(self, rules, layout)


class _Member(NamedTuple):
    """The rule of a group, hand-designed or learned; otherwise as `Part`."""

    rule: Optimizer
    columns: Columns
    state: slice


class Grouped(LearnedRule):
    """Each group's rule updates the group's parameters, as if there were no others.

    Its state is the states of the groups, one after another.

    Attributes:
        rules: the learned rules, by the groups' names with a / before them.
        layout: of all parameters.
    """

    def __init__(self, config: GroupsConfig, rules: Mapping[str, Optimizer], layout: Layout):
        super().__init__()
        self.config, self.layout, self.coordinatewise = config, layout, config.coordinatewise
        # The / keeps names such as keys and values apart from the methods of nn.ModuleDict.
        self.rules = nn.ModuleDict({f"/{name}": rule for name, rule in rules.items() if isinstance(rule, nn.Module)})
        self._by_name = dict(rules)
        self._members: list[_Member] = []
        begin = 0
        for name, own in config.assign(layout).items():
            if own:  # on another optimizee than the one that it was built for, a group may have no parameters
                columns = layout.columns(own)
                end = begin + len(rules[name].init(torch.empty(1, layout.only(own).size, device="meta")))
                self._members.append(_Member(rules[name], columns, slice(begin, end)))
                begin = end

    def fitted(self, layout: Layout) -> Grouped:
        """Return the same rules for these parameters, which must all fit the patterns; a group may have none."""
        rules = {
            name: self._by_name[name].fitted(layout.only(own)) if own else self._by_name[name]
            for name, own in self.config.assign(layout).items()
        }
        return Grouped(self.config, rules, layout)

    def parts(self) -> Sequence[Part]:
        return [Part(part.rule, columns, own) for rule, columns, own in self._members for part in rule.parts()]

    def rule_of(self, name: str) -> Optimizer:
        if not name:
            raise ConfigError(
                "This optimizer has groups of parameters, by their names: give LearnedOptimizer "
                "model.named_parameters() instead of model.parameters()."
            )
        groups = self.config.assign(Layout({name: ()}))
        return next(self._by_name[group] for group, own in groups.items() if own)

    def use_kernel(self, name: str) -> None:
        for rule in self._by_name.values():
            rule.use_kernel(name)

    def rates(self) -> dict[str, Tensor]:
        return {name: rate for part in self.parts() for name, rate in part.rule.rates().items()}

    def init(self, params: Tensor) -> State:
        if params.shape[1] != self.layout.size:
            raise ConfigError(
                f"The groups of this optimizer cover {self.layout.size} coordinates, but the optimizee has "
                f"{params.shape[1]}: use fitted(layout), which returns it for another layout."
            )
        return tuple(tensor for rule, columns, _ in self._members for tensor in rule.init(columns.take(params)))

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        updates = torch.empty_like(grads)
        following: State = ()
        for rule, columns, own in self._members:
            update, reached = rule.update(columns.take(grads), state[own], columns.take(params))
            columns.put(update, updates)
            following += reached
        return updates, following

    def replay(self, grads: Tensor, state: State, cotangents: Tensor) -> tuple[Tensor, ...]:
        into: tuple[Tensor, ...] = ()
        for rule, columns, own in self.parts():
            into += rule.replay(columns.take(grads), state[own], columns.take(cotangents))
        return into
