"""The configuration, typed: what a composed YAML must hold, checked as a whole before anything runs.

Optimizees, rules and estimators have their settings beside them; here stand the rest, and the checks across them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, choice, filled, one_of, parse, path
from l2l_runner.kernels import KERNELS
from l2l_runner.meta import METAS, MetaConfig, Unroll
from l2l_runner.optimizees import OPTIMIZEES, Optimizee
from l2l_runner.optimizers import HAND_DESIGNED, RULES, HandDesigned, RuleConfig
from l2l_runner.runtime import Runtime, runtime_of

SCORES = ("final", "sum")


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

    def __post_init__(self) -> None:
        """Refuse a logger whose packages are not installed.

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

    prefix: ClassVar[str] = "evaluation."  # of these keys on the command line

    baselines: dict[str, HandDesigned] = one_of(HAND_DESIGNED)
    steps: int | None = at_least(1)
    problems: int | None = at_least(2)
    tune: Tuning
    chunk: int = at_least(1)

    def __post_init__(self) -> None:
        """Refuse an empty range of rates.

        Raises:
            ConfigError: the lowest rate is not below the highest.
        """
        low, high = self.tune.low, self.tune.high
        if low >= high:
            key = f"{self.prefix}tune"
            raise ConfigError(f"{key}.low is {low:g}; expected less than {key}.high, which is {high:g}.")


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What every configuration says of where and with what help it is computed.

    Attributes:
        device: where to compute.
        kernel: what computes the LSTM: torch, cpp (the fused one), or auto, the fastest that can serve.
        data: where the data sets are.
        logger: where the run is shown while it goes on, beside its folder.
    """

    device: Device
    kernel: str = choice(*KERNELS)
    data: Data
    logger: Logger = one_of(LOGGERS)

    def runtime(self) -> Runtime:
        """Return the device, precision and data folder that the settings stand for on this machine.

        Raises:
            ConfigError: cuda was asked for by name and there is none.
        """
        return runtime_of(self.device.name, self.device.dtype, self.data.root, self.data.download)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Computed):
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
        init: the checkpoint whose parameters are the start; null draws them at random.
        resume: the folder of the run to go on with; null starts a new one.
    """

    seed: int = at_least(0)
    optimizee: Optimizee = one_of(OPTIMIZEES)
    optimizer: RuleConfig = one_of(RULES)
    unroll: Unroll
    meta: MetaConfig = one_of(METAS)
    meta_batch: int = at_least(1)
    score: str = choice(*SCORES)
    evaluate: bool
    evaluation: Evaluation
    init: str | None = path()
    resume: str | None

    def __post_init__(self) -> None:
        """Check what its parts can't check by themselves.

        Raises:
            ConfigError: a combination makes no sense.
        """
        if self.init is not None and not self.optimizer.learns:
            raise ConfigError(
                f"init={self.init} has no parameters for optimizer={self.optimizer.name}, which learns nothing: "
                "use init=null, or a learned optimizer."
            )
        if self.meta.many_problems and not self.optimizer.learns:
            return  # a hand-designed optimizer is run as it is
        self.meta.check_rule(self.optimizer)
        self.meta.check_optimizee(self.optimizee)
        self.meta.check_unroll(self.unroll, self.optimizer)

    @property
    def meta_trains(self) -> bool:
        """Whether an optimizer is meta-trained on many problems."""
        return self.meta.many_problems and bool(self.optimizer.learns)

    def check_processes(self, processes: int) -> None:
        """Refuse what so many processes can't share.

        Raises:
            ConfigError: it is no meta-training on many problems, or its estimates are none that can be shared.
        """
        if processes == 1:
            return
        if not self.meta_trains:
            raise ConfigError(
                f"{processes} processes share the problems of a meta-training, and there is none (meta="
                f"{self.meta.name}, optimizer={self.optimizer.name}): start one process, without torchrun."
            )
        if not self.meta.shareable(self.unroll, self.optimizer):
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
class EvalConfig(Computed, Evaluation):
    """All of `eval`, in which the keys of the comparison stand at the top.

    Attributes:
        checkpoint: the trained optimizer: a checkpoint, the folder of its run, or the name of a pretrained one.
        others: more of them for the same comparison, by name.
        seed: of the problems; null for the run's own, whose test problems were never trained on.
        optimizee: what they are tried on; left out, what the first was trained on.
        score: what tuning minimises: the `final` loss or the `sum` of losses.
    """

    prefix = ""

    checkpoint: str
    others: dict[str, str]
    seed: int | None = at_least(0)
    optimizee: Optimizee = one_of(OPTIMIZEES)
    score: str = choice(*SCORES)

    def sources(self) -> list[tuple[str, str]]:
        """Return the keys that name trained optimizers, with their values."""
        return [("checkpoint", self.checkpoint), *((f"others.{name}", path) for name, path in self.others.items())]


def parse_train(composed: Mapping[str, Any], given: Collection[str] = ()) -> TrainConfig:
    """Build and check the whole of a composed `train` configuration.

    Args:
        composed: the configuration.
        given: dotted keys that the user gave, as opposed to defaults.

    Raises:
        ConfigError: a key is unknown, missing or ignored, or a value has the wrong type, is out of range, or makes no
            sense with others.
    """
    config = parse(TrainConfig, composed)
    ignored = sorted(set(config.meta.ignored_keys) & set(given))
    if ignored and config.resume is None:  # a run that is resumed keeps the settings it was started with
        raise ConfigError(f"meta={config.meta.name} ignores {' and '.join(ignored)} here: leave that out.")
    return config


def parse_eval(composed: Mapping[str, Any]) -> EvalConfig:
    """Build and check the whole of a composed `eval` configuration.

    Raises:
        ConfigError: as `parse_train`.
    """
    return parse(EvalConfig, composed)
