"""Settings of meta=reweight: the weights of the examples are learned, not the optimizer."""

from __future__ import annotations

from dataclasses import dataclass

from l2l_runner.errors import ConfigError
from l2l_runner.fields import at_least, between, choice
from l2l_runner.meta.base import MetaConfig
from l2l_runner.optimizees import Optimizee


@dataclass(frozen=True, kw_only=True)
class ReweightConfig(MetaConfig):
    """A hand-designed optimizer trains an imbalanced optimizee, with and without weights of its examples.

    Attributes:
        proportions: of the frequent class, each in place of the optimizee's own.
        runs: independent runs of each proportion, on a problem each.
        read_every: steps between readings of the accuracy, which save the checkpoint.
    """

    name: str = choice("reweight")
    proportions: tuple[float, ...] = between(0.5, 1)
    runs: int = at_least(1)
    read_every: int = at_least(1)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset()

    @property
    def ignored_keys(self) -> tuple[str, ...]:
        return ("evaluate", "meta_batch", "score")

    def check_optimizee(self, optimizee: Optimizee) -> None:
        if not optimizee.has_clean_examples:
            raise ConfigError(
                f"meta={self.name} weights examples by clean ones, and optimizee={optimizee.name} has no clean ones: "
                "use optimizee=imbalance."
            )
        if not self.proportions or len(set(self.proportions)) < len(self.proportions):
            raise ConfigError(f"meta.proportions is {list(self.proportions)}; expected one or more, all different.")
        for proportion in self.proportions:
            optimizee.at_proportion(proportion)  # which refuses those that it cannot have
