"""The configuration, typed: what a composed YAML must hold, checked as a whole before anything is run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, ClassVar

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, between, choice, did_you_mean, filled, parse, path, within
from l2l_runner.kernels import KERNELS
from l2l_runner.meta import FOMAML, MAML, PES, TBPTT, Direct, Imitation, Joint, Leap, MetaGradient, Reptile, WarpGrad
from l2l_runner.optimizees import OPTIMIZEES, Imbalance, Optimizee, Problem, Scaled
from l2l_runner.optimizers import (
    HAND_DESIGNED,
    LEARNED,
    Adam,
    AdaptationConfig,
    Group,
    GroupsConfig,
    HandDesigned,
    LearnedConfig,
)

SCORES = ("final", "sum")
FIGURES = ("4", "5", "6", "7", "8", "9", "long")
"""Figures of the paper, and the one that goes on where the paper's optimizer fails."""


@dataclass(frozen=True, kw_only=True)
class Unroll:
    """How long windows and trajectories are.

    Attributes:
        length: steps of a truncation window.
        steps: steps of a trajectory.
    """

    length: int = at_least(1)
    steps: int = at_least(1)


@dataclass(frozen=True, kw_only=True)
class Meta(ABC):
    """How an optimizer is meta-trained, with whatever estimator of the meta-gradient.

    Attributes:
        name: the estimator.
        steps: meta-steps; each trains through one whole trajectory of one batch of problems.
        validate_every: meta-steps between validations, which refresh the pictures and save the checkpoints.
        optimizer: the meta-optimizer, adam or sgd.
        lr: its learning rate, at its highest.
        schedule: constant, or cosine decay to zero over `steps`.
        warmup: fraction of `steps` in which the rate rises linearly.
        clip: largest global norm of a meta-gradient; null for none.
        curriculum: horizons, in steps, that come before unroll.steps: trajectories in training and validation grow from
            one to the next; null trains on whole ones from the start.
        advance: validations at a horizon without a better score after which the next one comes.
        max_skipped: stop after so many non-finite meta-gradients in a row.
        patience: stop after so many validations without a better score at the last horizon; null for never.
    """

    name: str
    steps: int = at_least(0)
    validate_every: int = at_least(1)
    optimizer: str = choice("adam", "sgd")
    lr: float = above(0)
    schedule: str = choice("constant", "cosine")
    warmup: float = between(0, 1)
    clip: float | None = above(0)
    curriculum: tuple[int, ...] | None = at_least(1)
    advance: int = at_least(1)
    max_skipped: int = at_least(1)
    patience: int | None = at_least(1)

    def horizons(self, unroll: Unroll) -> tuple[int, ...]:
        """The lengths of trajectories that training goes through, of which the last is unroll.steps.

        Raises:
            ConfigError: they don't grow.
        """
        given = self.curriculum or ()
        horizons = given if given[-1:] == (unroll.steps,) else (*given, unroll.steps)
        if any(following <= horizon for horizon, following in pairwise(horizons)):
            raise ConfigError(
                f"meta.curriculum is {list(given)}; expected horizons that grow from one to the next, up to "
                f"unroll.steps={unroll.steps}."
            )
        return horizons

    @abstractmethod
    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> MetaGradient:
        """The estimator that these settings name.

        Raises:
            ConfigError: a combination that makes no sense.
        """

    def training_problem(self, problem: Problem) -> Problem:
        """What is trained on in the place of a problem; mostly itself."""
        return problem


@dataclass(frozen=True, kw_only=True)
class UnrolledMeta(Meta):
    """Meta-training of an update rule by the losses along a trajectory.

    Attributes:
        weights: of these losses: constant, linear or final.
        scaling: training problems have each coordinate scaled by e^{U(−scaling, scaling)}; 0 leaves them as they are.
    """

    weights: str = choice("constant", "linear", "final")
    scaling: float = between(0, 80)  # beyond, e^scaling is no float32

    def training_problem(self, problem: Problem) -> Problem:
        return Scaled(problem, self.scaling) if self.scaling else problem


def _refuse_start(meta: str, optimizer: LearnedConfig) -> None:
    """Refuse an optimizer that learns a start or warp layers where updates alone are learned."""
    if isinstance(optimizer, AdaptationConfig):
        raise ConfigError(
            f"meta={meta} learns updates, and this optimizer learns where to start or warp layers: use one of meta="
            f"{', '.join(STARTS)} or warpgrad, as conf/optimizer names it (leave meta out), or another optimizer."
        )


@dataclass(frozen=True, kw_only=True)
class TBPTTConfig(UnrolledMeta):
    """Meta-training by truncated back-propagation through time.

    Attributes:
        imitation: fraction of the meta-steps that train on the distance to Adam's updates instead of on the meta-loss.
        expert_lr: that Adam's learning rate.
        second_order: keep the derivatives of the optimizee's gradients.
        engine: replay or graph (see meta/tbptt.py); auto takes replay where it holds.
        coordinates: replay a random sample of so many coordinates a window (unbiased), of groups so many of each; null
            for all.
        chunk: coordinates replayed at once, which bounds memory; null for as many as suit the kernel.
    """

    name: str = choice("tbptt")
    imitation: float = within(0, 1)
    expert_lr: float = above(0)
    second_order: bool
    engine: str = choice("auto", "replay", "graph")
    coordinates: int | None = at_least(1)
    chunk: int | None = at_least(1)

    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> TBPTT | Imitation:
        _refuse_start(self.name, optimizer)
        if self.second_order and self.engine == "replay":
            raise ConfigError(
                "meta.engine=replay cannot be had with meta.second_order=true, because the replay holds gradients "
                "constant: use meta.engine=auto or meta.engine=graph."
            )
        if self.weights == "final" and unroll.length < unroll.steps:
            raise ConfigError(
                f"meta.weights=final leaves every window but the last without a gradient (unroll.length="
                f"{unroll.length} of unroll.steps={unroll.steps}): use unroll=full, or meta.weights=linear."
            )
        replays = not self.second_order and self.engine != "graph"
        if self.coordinates is not None and not (replays and optimizer.coordinatewise):
            raise ConfigError(
                f"meta.coordinates={self.coordinates} samples the coordinates of a replay, which needs "
                "meta.second_order=false, meta.engine=auto or replay, and a coordinatewise optimizer: change these, "
                "or use meta.coordinates=null."
            )
        engine = ("graph" if self.second_order else "replay") if self.engine == "auto" else self.engine
        tbptt = TBPTT(
            length=unroll.length,
            steps=unroll.steps,
            weights=self.weights,
            second_order=self.second_order,
            engine=engine,
            coordinates=self.coordinates,
            chunk=self.chunk,
        )
        adam = Adam(lr=self.expert_lr, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
        return Imitation(tbptt=tbptt, expert=adam, fraction=self.imitation) if self.imitation else tbptt


@dataclass(frozen=True, kw_only=True)
class PESConfig(UnrolledMeta):
    """Meta-training by persistent evolution strategies.

    Attributes:
        pairs: antithetic pairs of trajectories with perturbed parameters.
        sigma: standard deviation of the perturbations.
    """

    name: str = choice("pes")
    pairs: int = at_least(1)
    sigma: float = above(0)

    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> PES:
        _refuse_start(self.name, optimizer)
        return PES(length=unroll.length, steps=unroll.steps, weights=self.weights, pairs=self.pairs, sigma=self.sigma)


STARTS: dict[str, Callable[..., MetaGradient]] = {
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": Reptile,
    "leap": Leap,
    "joint": Joint,
}


@dataclass(frozen=True, kw_only=True)
class StartConfig(Meta):
    """Meta-training of a starting point.

    Attributes:
        inner_steps: steps of the trajectories that it learns from; null for unroll.steps, which validation takes.
    """

    name: str = choice(*STARTS)
    inner_steps: int | None = at_least(1)

    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> MetaGradient:
        if not (isinstance(optimizer, AdaptationConfig) and optimizer.learns_start):
            raise ConfigError(
                f"meta={self.name} learns where to start, and this optimizer has no learned start: use one that has "
                "(maml, fomaml, reptile, leap, finetune), or the meta of the optimizer."
            )
        if self.name != "maml" and (optimizer.warp is not None or optimizer.transform != "none"):
            raise ConfigError(
                f"meta={self.name} learns a start alone, and not optimizer.warp or optimizer.transform: use "
                "meta=warpgrad or meta=maml, or leave these out (null and none)."
            )
        if self.inner_steps is not None and self.curriculum is not None:
            raise ConfigError(
                f"meta.inner_steps={self.inner_steps} fixes the trajectories that meta.curriculum would lengthen: set "
                "one of them to null."
            )
        return STARTS[self.name](steps=self.inner_steps or unroll.steps)


@dataclass(frozen=True, kw_only=True)
class WarpGradConfig(Meta):
    """Meta-training of warp layers, and of the start by Leap where the optimizer learns one.

    Attributes:
        algorithm: online accumulates a meta-gradient along the trajectories, offline replays their points.
        approximate: leave out the second derivatives.
        batch: points of a replayed minibatch, each of which gives a meta-update.
        epochs: times that all points are replayed.
        shuffle: replay in random order; otherwise trajectory by trajectory.
        every: points of a trajectory that are stored for it: each (1), every second (2), …
        memory: megabytes that they may take; where they take more, fewer are stored, evenly spaced.
    """

    name: str = choice("warpgrad")
    algorithm: str = choice("online", "offline")
    approximate: bool
    batch: int = at_least(1)
    epochs: int = at_least(1)
    shuffle: bool
    every: int = at_least(1)
    memory: int = at_least(1)

    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> WarpGrad:
        if not (isinstance(optimizer, AdaptationConfig) and optimizer.warp is not None):
            raise ConfigError(
                "meta=warpgrad learns warp layers, and this optimizer has none: use optimizer=warp or warp_leap, or "
                "the meta of the optimizer."
            )
        if self.approximate and optimizer.transform != "none":
            raise ConfigError(
                "meta.approximate=true takes steps for constants, from which optimizer.transform="
                f"{optimizer.transform} could learn nothing: use meta.approximate=false, or optimizer.transform=none."
            )
        return WarpGrad(
            steps=unroll.steps,
            algorithm=self.algorithm,
            approximate=self.approximate,
            batch=self.batch,
            epochs=self.epochs,
            shuffle=self.shuffle,
            every=self.every,
            memory=self.memory << 20,
            leap=optimizer.learns_start,
        )


@dataclass(frozen=True, kw_only=True)
class Online:
    """The optimizer learns while it trains the optimizee, beside one that stays as it is.

    Attributes:
        name: online.
        lr: the meta-optimizer's (Adam's) learning rate.
        clip: largest global norm of a meta-gradient; null for none.
        runs: independent runs, on a problem each.
        read_every: steps between readings, which refresh the picture and save the checkpoint.
    """

    name: str = choice("online")
    lr: float = above(0)
    clip: float | None = above(0)
    runs: int = at_least(1)
    read_every: int = at_least(1)

    def estimator(self, unroll: Unroll, optimizer: LearnedConfig) -> TBPTT | Direct:
        """What estimates the meta-gradients: with windows of one step, one-step hypergradients.

        Where the losses run through what is learned, its direct gradients are gathered over the window.

        Raises:
            ConfigError: the only window is the whole trajectory, after which there is nothing to be better at.
        """
        _refuse_start(self.name, optimizer)
        if unroll.length >= unroll.steps:
            raise ConfigError(
                f"meta=online learns after each window, but unroll.length={unroll.length} is the whole trajectory of "
                f"unroll.steps={unroll.steps}: use unroll=online or a shorter unroll.length."
            )
        kind = Direct if optimizer.direct else TBPTT
        return kind(length=unroll.length, steps=unroll.steps)


@dataclass(frozen=True, kw_only=True)
class Reweight:
    """A hand-designed optimizer trains an imbalanced optimizee, with and without weights of its examples.

    Attributes:
        name: reweight.
        proportions: of the frequent class, each in the place of the optimizee's own.
        runs: independent runs of each proportion, on a problem each.
        read_every: steps between readings of the accuracy, which save the checkpoint.
    """

    name: str = choice("reweight")
    proportions: tuple[float, ...] = between(0.5, 1)
    runs: int = at_least(1)
    read_every: int = at_least(1)

    def check(self, optimizee: Optimizee, optimizer: HandDesigned | LearnedConfig) -> None:
        """Refuse what has no examples to be weighted, or takes no steps of its own.

        Raises:
            ConfigError: the combination makes no sense.
        """
        if not isinstance(optimizer, HandDesigned):
            raise ConfigError(
                f"meta={self.name} takes its steps with a hand-designed optimizer, not with a learned one: use one of "
                f"{', '.join(HAND_DESIGNED)}."
            )
        if not isinstance(optimizee, Imbalance):
            raise ConfigError(
                f"meta={self.name} weights examples by clean ones, and optimizee={optimizee.name} has no clean ones: "
                "use optimizee=imbalance."
            )
        if not self.proportions or len(set(self.proportions)) < len(self.proportions):
            raise ConfigError(f"meta.proportions is {list(self.proportions)}; expected one or more, all different.")
        for proportion in self.proportions:
            replace(optimizee, proportion=proportion).check()


METAS: dict[str, type[Meta] | type[Online] | type[Reweight]] = {
    "tbptt": TBPTTConfig,
    "pes": PESConfig,
    **dict.fromkeys(STARTS, StartConfig),
    "warpgrad": WarpGradConfig,
    "online": Online,
    "reweight": Reweight,
}


IGNORED_KEYS = {"online": ("evaluate", "meta_batch"), "reweight": ("evaluate", "meta_batch", "score")}
"""Keys that all configurations have, though some kinds of runs have no use for them."""

OFFLINE_ONLY_KEYS = ("meta.batch", "meta.epochs", "meta.every", "meta.memory", "meta.shuffle")
"""Keys of WarpGrad that only meta.algorithm=offline has a use for."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where to compute.

    Attributes:
        name: cpu, cuda, or auto, the GPU where there is one.
        dtype: the precision.
        threads: CPU threads; null leaves PyTorch's choice.
    """

    name: str = choice("auto", "cpu", "cuda")
    dtype: str = choice("float32", "float64")
    threads: int | None = at_least(1)


@dataclass(frozen=True, kw_only=True)
class Data:
    """Where the data sets are.

    Attributes:
        root: their folder, in torchvision's layout.
        download: fetch what is missing.
    """

    root: str = path()
    download: bool


@dataclass(frozen=True, kw_only=True)
class Logger:
    """Where a run is shown while it goes on, beside its folder.

    Attributes:
        name: of the logger.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    name: str = choice("none")

    def check(self) -> None:
        """Refuse what isn't installed.

        Raises:
            ConfigError: a package is missing.
        """
        # A folder of that name in the working directory is no package: it has no origin.
        missing = [name for name in self.needs if getattr(find_spec(name), "origin", None) is None]
        if missing:
            raise ConfigError(
                f"logger={self.name} needs {', '.join(missing)}, not installed here: pip install "
                f"'l2l_runner[{self.name}]', or use logger=none."
            )


@dataclass(frozen=True, kw_only=True)
class TensorBoardLogger(Logger):
    """TensorBoard's event files, in the run's folder."""

    needs: ClassVar[tuple[str, ...]] = ("tensorboard",)
    name: str = choice("tensorboard")


@dataclass(frozen=True, kw_only=True)
class MLflowLogger(Logger):
    """A run in an MLflow store on this machine, which many runs can share.

    Attributes:
        store: the store's folder.
        experiment: what MLflow lists the run under.
    """

    needs: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")
    name: str = choice("mlflow")
    store: str = path()
    experiment: str = filled()


LOGGERS: dict[str, type[Logger]] = {"none": Logger, "tensorboard": TensorBoardLogger, "mlflow": MLflowLogger}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a baseline's learning rate is found.

    Attributes:
        enabled: False takes each baseline's `lr` as it stands.
        problems: validation problems to tune on; null for the optimizee's `validation_problems`.
        low: lowest learning rate tried.
        high: highest learning rate tried.
        per_decade: rates tried in each factor of 10.
        refinements: times that the grid is halved around the best.
    """

    enabled: bool
    problems: int | None = at_least(1)
    low: float = above(0)
    high: float = above(0)
    per_decade: int = at_least(1)
    refinements: int = at_least(0)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The comparison on held-out problems.

    Attributes:
        baselines: hand-designed optimizers, by name.
        steps: steps of a trajectory; null for as many as were trained for.
        problems: held-out problems; null for the optimizee's `test_problems`.
        tune: how learning rates are found.
        chunk: coordinates computed at once, which bounds memory.
    """

    baselines: dict[str, HandDesigned]
    steps: int | None = at_least(1)
    problems: int | None = at_least(2)
    tune: Tuning
    chunk: int = at_least(1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All of `train`.

    Attributes:
        seed: of everything that is random.
        optimizee: the distribution over problems.
        optimizer: a hand-designed optimizer to be run, or the settings of a learned one to be meta-trained.
        unroll: lengths of windows and trajectories.
        meta: how to meta-train.
        meta_batch: problems of a meta-step, computed together.
        score: what every selection minimises on the validation problems: the `final` loss or the `sum` of losses.
        evaluate: tune the baselines first, and compare with them at the end.
        evaluation: how to compare.
        device: where to compute.
        kernel: what computes the LSTM: torch, cpp (the fused one), or auto, the fastest that can serve.
        data: where the data sets are.
        logger: where the run is shown while it goes on, beside its folder.
        init: the checkpoint whose parameters are the start; null draws them at random.
        resume: the folder of the run to go on with; null starts a new one.
    """

    seed: int = at_least(0)
    optimizee: Optimizee
    optimizer: HandDesigned | LearnedConfig
    unroll: Unroll
    meta: Meta | Online | Reweight
    meta_batch: int = at_least(1)
    score: str = choice(*SCORES)
    evaluate: bool
    evaluation: Evaluation
    device: Device
    kernel: str = choice(*KERNELS)
    data: Data
    logger: Logger
    init: str | None = path()
    resume: str | None

    def check_processes(self, processes: int) -> None:
        """Refuse what so many processes can't share.

        Raises:
            ConfigError: it is no meta-training on many problems, or its estimates are none that can be shared.
        """
        if processes == 1:
            return
        if not isinstance(self.meta, Meta) or isinstance(self.optimizer, HandDesigned):
            raise ConfigError(
                f"{processes} processes share the problems of a meta-training, and here there is none (meta="
                f"{self.meta.name}, with this optimizer): start one process, without torchrun."
            )
        if not self.meta.estimator(self.unroll, self.optimizer).shareable:
            raise ConfigError(
                f"The estimates of meta={self.meta.name} need all problems of a meta-step together, which {processes} "
                "processes can't share: start one process, without torchrun."
            )
        if self.meta_batch < processes:
            raise ConfigError(
                f"meta_batch={self.meta_batch} leaves some of the {processes} processes without a problem: use at most "
                f"--nproc-per-node={self.meta_batch}, or a larger meta_batch."
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """All of `eval`.

    Attributes:
        checkpoint: the trained optimizer: a checkpoint, the folder of its run, or the name of a pretrained one.
        others: more of them for the same comparison, by name.
        seed: of the problems; null for the run's own, whose test problems were never trained on.
        optimizee: what they are tried on; left out, what the first was trained on.
        score: what tuning minimises: the `final` loss or the `sum` of losses.
        evaluation: how to compare; on the command line its keys stand at the top.
        device: where to compute.
        kernel: as in `train`.
        data: where the data sets are.
        logger: as in `train`.
    """

    checkpoint: str
    others: dict[str, str]
    seed: int | None = at_least(0)
    optimizee: Optimizee
    score: str = choice(*SCORES)
    evaluation: Evaluation
    device: Device
    kernel: str = choice(*KERNELS)
    data: Data
    logger: Logger


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much of the paper's protocol is computed.

    Attributes:
        name: the configuration's name for it.
        hidden: hidden units a layer of the nets of figure 6.
        layers: hidden layers of the nets of figure 6.
        train: settings of all meta-trainings.
        eval: settings of all evaluations.
        settings: more of them, by shell patterns of the stages' names; where two say something, the last counts.
    """

    name: str
    hidden: tuple[int, ...] = at_least(1)
    layers: tuple[int, ...] = at_least(1)
    train: tuple[str, ...]
    eval: tuple[str, ...]
    settings: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class ArtFiles:
    """Files for neural art.

    Attributes:
        content: a folder of photographs.
        style: a painting, whose style is trained with.
        new_style: a painting, whose style is tested with.
        weights: of the network that sees them; null for torchvision's.
    """

    content: str = path()
    style: str = path()
    new_style: str = path()
    weights: str | None = path()


@dataclass(frozen=True, kw_only=True)
class ReproduceConfig:
    """All of `reproduce`.

    Attributes:
        figures: those to be made.
        seed: of all runs.
        jobs: runs at once.
        folder: of the results and the page.
        art: what figures 8 and 9 are made of.
        against: a report whose claims must still hold.
        keep: a folder that gets a copy of the figures, the page and the report.
        budget: how much is computed.
        device: where to compute.
        data: where the data sets are.
    """

    figures: tuple[str, ...]
    seed: int = at_least(0)
    jobs: int = at_least(1)
    folder: str = path()
    art: ArtFiles
    against: str | None = path()
    keep: str | None = path()
    budget: Budget
    device: Device
    data: Data


def _named(node: Any, path: str, options: Mapping[str, type[Any]]) -> type[Any]:
    name = node.get("name") if isinstance(node, Mapping) else None
    if name not in options:
        raise ConfigError(
            f"{path}.name is {name!r}; expected one of {', '.join(options)}.{did_you_mean(str(name), list(options))}"
        )
    return options[str(name)]


def parse_optimizee(node: Any) -> Optimizee:
    """The optimizee that a composed `optimizee` group describes."""
    optimizee: Optimizee = parse(_named(node, "optimizee", OPTIMIZEES), node, "optimizee")
    return optimizee


def parse_optimizer(node: Any, path: str = "optimizer") -> Any:
    """A `HandDesigned` optimizer, or the configuration of a learned one."""
    cls = _named(node, path, {**HAND_DESIGNED, **LEARNED})
    settings = {key: value for key, value in node.items() if key != "name"}
    if cls is GroupsConfig and isinstance(settings.get("groups"), Mapping):
        groups = settings["groups"].items()
        settings["groups"] = {name: _parse_group(group, f"{path}.groups.{name}") for name, group in groups}
    return parse(cls, settings, path)


def _parse_group(node: Any, path: str) -> Group | None:
    if isinstance(node, Mapping) and "optimizer" in node:
        node = {**node, "optimizer": parse_optimizer(node["optimizer"], f"{path}.optimizer")}
    return None if node is None else parse(Group, node, path)


def _parse_logger(node: Any) -> Logger:
    logger: Logger = parse(_named(node, "logger", LOGGERS), node, "logger")
    logger.check()
    return logger


def _parse_evaluation(node: Any, path: str) -> Any:
    if not isinstance(node, Mapping) or not isinstance(node.get("baselines"), Mapping):
        return node
    baselines = {}
    for name, baseline in node["baselines"].items():
        baselines[name] = parse_optimizer(baseline, f"{path}baselines.{name}")
        if not isinstance(baselines[name], HandDesigned):
            expected = ", ".join(HAND_DESIGNED)
            raise ConfigError(f"{path}baselines.{name} is a learned optimizer; expected one of {expected}.")
    tune = parse(Tuning, node.get("tune"), f"{path}tune")
    if tune.low >= tune.high:
        raise ConfigError(f"{path}tune.low is {tune.low:g}; expected less than {path}tune.high, {tune.high:g}.")
    return {**node, "baselines": baselines, "tune": tune}


def parse_train(node: Mapping[str, Any]) -> TrainConfig:
    """The whole of a composed `train` configuration, combinations included.

    Raises:
        ConfigError: anything unknown, missing, of the wrong type, out of range, or making no sense together.
    """
    parts = dict(node)
    parts["optimizee"] = parse_optimizee(node.get("optimizee"))
    parts["optimizer"] = parse_optimizer(node.get("optimizer"))
    parts["meta"] = parse(_named(node.get("meta"), "meta", METAS), node.get("meta"), "meta")
    parts["evaluation"] = _parse_evaluation(node.get("evaluation"), "evaluation.")
    parts["logger"] = _parse_logger(node.get("logger"))
    config = parse(TrainConfig, parts)
    if isinstance(config.optimizer, HandDesigned) and config.init is not None:
        raise ConfigError(
            f"init={config.init} has nothing to give to optimizer={node['optimizer']['name']}, which learns nothing: "
            "use init=null, or a learned optimizer."
        )
    if isinstance(config.meta, Reweight):
        config.meta.check(config.optimizee, config.optimizer)
    elif isinstance(config.optimizer, HandDesigned) and isinstance(config.meta, Online):
        raise ConfigError(
            f"optimizer={node['optimizer']['name']} has nothing to be learned by meta={config.meta.name}: use one that "
            f"has ({', '.join(LEARNED)})."
        )
    elif isinstance(config.optimizer, LearnedConfig):
        if config.optimizer.direct and not isinstance(config.meta, Online):
            raise ConfigError(
                f"optimizer={node['optimizer']['name']} learns while it trains, not by meta={config.meta.name}: use "
                "meta=online."
            )
        config.meta.estimator(config.unroll, config.optimizer)
        if isinstance(config.meta, Meta):
            config.meta.horizons(config.unroll)
    return config


def check_given(config: TrainConfig, given: Iterable[str]) -> None:
    """Refuse keys that a user has given to a run that has no use for them.

    Raises:
        ConfigError: there is such a key.
    """
    online = isinstance(config.meta, WarpGradConfig) and config.meta.algorithm == "online"
    what = "meta.algorithm=online" if online else f"meta={config.meta.name}"
    unused = sorted(set(OFFLINE_ONLY_KEYS if online else IGNORED_KEYS.get(config.meta.name, ())) & set(given))
    if unused and config.resume is None:  # what a run was begun with can't be taken back
        raise ConfigError(f"{what} has no use for {' and '.join(unused)}: leave that out.")


def parse_eval(node: Mapping[str, Any]) -> EvalConfig:
    """The whole of a composed `eval` configuration.

    Raises:
        ConfigError: as `parse_train`.
    """
    parts = dict(node)
    parts["optimizee"] = parse_optimizee(node.get("optimizee"))
    parts["evaluation"] = _parse_evaluation(node.get("evaluation"), "")
    parts["logger"] = _parse_logger(node.get("logger"))
    return parse(EvalConfig, parts)


def parse_reproduce(node: Mapping[str, Any]) -> ReproduceConfig:
    """The whole of a composed `reproduce` configuration.

    Raises:
        ConfigError: as `parse_train`.
    """
    parts = {key: value for key, value in node.items() if key != "figure"}
    given = node.get("figure")
    listed = given if isinstance(given, list) and given else [given]
    figures = FIGURES if given == "all" else tuple(str(figure) for figure in listed)
    for figure in figures:
        if figure not in FIGURES:
            raise ConfigError(f"figure is {figure}; expected all, or some of {', '.join(FIGURES)}.")
    return parse(ReproduceConfig, {**parts, "figures": figures})
