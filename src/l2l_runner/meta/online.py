"""Settings of meta=online: the optimizer learns while it trains the optimizee."""

from __future__ import annotations

from dataclasses import dataclass

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, choice
from l2l_runner.meta.base import MetaConfig, Unroll
from l2l_runner.meta.direct import Direct
from l2l_runner.meta.tbptt import TBPTT
from l2l_runner.optimizers.base import GATES, UPDATES, RuleConfig


@dataclass(frozen=True, kw_only=True)
class OnlineConfig(MetaConfig):
    """The optimizer learns while it trains the optimizee, beside a copy of it that does not learn.

    Attributes:
        lr: learning rate of the meta-optimizer, which is Adam.
        clip: largest global norm of a meta-gradient; null for none.
        runs: independent runs, on a problem each.
        read_every: steps between readings, which refresh the picture and save the checkpoint.
    """

    name: str = choice("online")
    lr: float = above(0)
    clip: float | None = above(0)
    runs: int = at_least(1)
    read_every: int = at_least(1)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({UPDATES, GATES})

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        return ("evaluate", "meta_batch")

    def check_unroll(self, unroll: Unroll, rule: RuleConfig) -> None:
        self.estimator(unroll, rule)

    def estimator(self, unroll: Unroll, rule: RuleConfig) -> TBPTT | Direct:
        """Return the estimator: with windows of one step, one-step hypergradients.

        Where the losses run through what is learned, its direct gradients are gathered over the window.

        Raises:
            ConfigError: the only window is the whole trajectory, so that nothing learned would be used.
        """
        if unroll.length >= unroll.steps:
            raise ConfigError(
                f"meta=online learns after each window, but unroll.length={unroll.length} is the whole trajectory of "
                f"unroll.steps={unroll.steps}: use unroll=online or a shorter unroll.length."
            )
        kind = Direct if GATES in rule.learns else TBPTT
        return kind(length=unroll.length, steps=unroll.steps)
