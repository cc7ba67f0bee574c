"""The stages of a reproduction: each is one run of `train` or `eval`, as a user would type it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from l2l_runner.errors import ConfigError
from l2l_runner.fields import did_you_mean
from l2l_runner.pages.reproduction.settings import Budget, ReproduceConfig

_REFERENCE = re.compile(r"<([\w-]+)>")


@dataclass(frozen=True)
class Stage:
    """One run.

    Attributes:
        name: unique among the stages.
        figures: the figures that show its result.
        command: train or eval.
        arguments: of the command; <name> in them stands for the folder of the stage of that name.
    """

    name: str
    figures: tuple[str, ...]
    command: str
    arguments: tuple[str, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """The stages whose folders the arguments name."""
        return tuple(name for argument in self.arguments for name in _REFERENCE.findall(argument))

    def resolved(self, folders: Mapping[str, str]) -> list[str]:
        """Return the arguments with the folders of the stages that they name."""
        return [_REFERENCE.sub(lambda found: folders[found[1]], argument) for argument in self.arguments]


def folder_name(stage: Stage, arguments: Sequence[str]) -> str:
    """Return the name of a stage's folder, which is another one for other arguments."""
    digest = hashlib.sha256("\0".join([stage.command, *arguments]).encode()).hexdigest()
    return f"{stage.name}-{digest[:8]}"


def stages_of(config: ReproduceConfig) -> list[Stage]:
    """Return the stages of the configured figures with all that they need, each after those that it needs.

    Raises:
        ConfigError: the budget has settings for an unknown stage.
    """
    table = [_with_budget(stage, config) for stage in _table(config)]
    names = [stage.name for stage in table]
    for pattern in config.budget.settings:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names)
            raise ConfigError(
                f"budget.settings.{pattern} matches none of the stages {known}.{did_you_mean(pattern, names)}"
            )
    by_name = {stage.name: stage for stage in table}
    wanted = [stage.name for stage in table if set(stage.figures) & set(config.figures)]
    needed = set(wanted)
    while wanted:
        more = {name for name in by_name[wanted.pop()].needs if name not in needed}
        needed |= more
        wanted += sorted(more)
    return [stage for stage in table if stage.name in needed]


def grid(budget: Budget) -> dict[tuple[int, int], str]:
    """Return the stages of figure 6, by (layers, hidden units)."""
    return {(layers, hidden): f"mnist-{layers}x{hidden}" for layers in budget.layers for hidden in budget.hidden}


def _table(config: ReproduceConfig) -> list[Stage]:
    """Return all stages, without the settings of the budget."""
    mnist, art = "checkpoint=<mnist>", ("checkpoint=<art>", "optimizee.part=test")
    first = "init=<mnist-14x14>"
    others = [f"others.{name}=<{stage}>" for name, stage in _VARIANTS.items()]
    sub = ("checkpoint=<cifar>", "others.LSTM-sub=<cifar-sub>")
    files = {"content": config.art.content, "style": config.art.style, "weights": config.art.weights}
    pictures = [f"optimizee.{key}={path}" for key, path in files.items() if path is not None]
    new_style = f"optimizee.style={config.art.new_style}"
    return [
        Stage("quadratic-uniform", ("4",), "train", ("experiment=paper_quadratic",)),
        Stage("quadratic-gaussian", ("4",), "train", ("optimizee=quadratic",)),
        # First on images averaged to 14×14, where a meta-step takes a quarter of the time.
        Stage("mnist-14x14", (), "train", ("optimizee=mnist", "optimizee.pool=2", "evaluate=false")),
        Stage("mnist", ("4",), "train", ("experiment=paper_mnist", first)),
        Stage("mnist-200", ("4",), "eval", (mnist, "steps=200")),
        Stage("mnist-40-units", ("5",), "eval", (mnist, "optimizee.hidden=[40]")),
        Stage("mnist-2-layers", ("5",), "eval", (mnist, "optimizee.hidden=[20,20]")),
        Stage("mnist-relu", ("5",), "eval", (mnist, "optimizee.activation=relu")),
        *(
            Stage(name, ("6",), "eval", (mnist, f"optimizee.hidden=[{','.join([str(hidden)] * layers)}]"))
            for (layers, hidden), name in grid(config.budget).items()
        ),
        Stage("cifar", (), "train", ("experiment=paper_cifar", "evaluate=false")),
        Stage("cifar-sub", (), "train", ("experiment=cifar_sub", "evaluate=false")),
        Stage("cifar-10", ("7",), "eval", ("checkpoint=<cifar>",)),
        Stage("cifar-5", ("7",), "eval", (*sub, "optimizee.labels=[0,1,2,3,4]", "optimizee.model.classes=5")),
        Stage("cifar-2", ("7",), "eval", (*sub, "optimizee.labels=[0,1]", "optimizee.model.classes=2")),
        Stage("art", ("8",), "train", ("experiment=paper_art", *pictures, "evaluate=false")),
        Stage("art-128", ("8", "9"), "eval", (*art, "optimizee.size=128", new_style)),
        Stage("art-test", ("8", "9"), "eval", art),
        Stage("rnnprop", (), "train", ("experiment=mnist_rnnprop", "evaluate=false")),
        Stage("scaling", (), "train", ("experiment=mnist_scaling", "evaluate=false", first)),
        Stage("curriculum", (), "train", ("experiment=mnist_curriculum", "evaluate=false", first)),
        Stage("imitation", (), "train", ("experiment=mnist_imitation", "evaluate=false", first)),
        Stage("pes", (), "train", ("experiment=mnist_pes", "evaluate=false", "init=<mnist>")),
        Stage("long", ("long",), "eval", ("checkpoint=<rnnprop>", *others)),
        Stage("long-relu", ("long",), "eval", ("checkpoint=<rnnprop>", *others, "optimizee.activation=relu")),
    ]


_VARIANTS = {
    "LSTM": "mnist",
    "scaling": "scaling",
    "curriculum": "curriculum",
    "imitation": "imitation",
    "PES": "pes",
}


def _with_budget(stage: Stage, config: ReproduceConfig) -> Stage:
    """Return the stage with the budget's settings for its command and its name; the last setting of a key counts."""
    more = list(config.budget.train if stage.command == "train" else config.budget.eval)
    for pattern, settings in config.budget.settings.items():
        if fnmatchcase(stage.name, pattern):
            more += settings
    seed = [f"seed={config.seed}"] if stage.command == "train" else []
    arguments = {argument.partition("=")[0]: argument for argument in (*stage.arguments, *more, *seed)}
    return Stage(stage.name, stage.figures, stage.command, tuple(arguments.values()))
