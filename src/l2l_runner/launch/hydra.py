"""What `train` and `eval` share: Hydra, the run's folder, exit codes, and one clear sentence for whatever is wrong.

Nothing heavy is imported before a job is run, so that --help is quick.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from l2l_runner.errors import ConfigError, FolderTaken, StorageError, UserError
from l2l_runner.fields import did_you_mean
from l2l_runner.launch.sweep import has_ended, stop_exception, summed_up
from l2l_runner.launch.sweep_folder import SweepFolder, without_hydra
from l2l_runner.stopping import Stopped

if TYPE_CHECKING:
    from l2l_runner.runs.folder import RunFolder

log = logging.getLogger(__name__)

PATHS = (
    *("checkpoint", "init", "data.root", "logger.store", "hydra.run.dir", "hydra.sweep.dir"),
    *("optimizee.weights", "optimizee.content", "optimizee.style"),
    *("folder", "against", "keep", "art.content", "art.style", "art.new_style", "art.weights"),
)
"""Keys whose values are paths."""

OPEN = ("optimizee.model.", "optimizer.groups.", "others.")
"""Groups that take any key: what they describe is somebody else's, or they hold whatever a user names."""

ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
"""How long PyTorch's threads spin before they sleep, read when it is first imported: by default so long that a shared
machine comes to a crawl; not at all would cost up to half of the speed on a free one."""

INTERRUPTED = "Interrupted; what was saved before is kept."

Job = Callable[[dict[str, Any], Path], dict[str, Any]]
"""A composed configuration and the run's folder in; a result with `status` and `score` out."""


EXTRAS = {
    "joblib": "sweep-joblib",
    "submitit_local": "sweep-slurm",
    "submitit_slurm": "sweep-slurm",
    "ray": "sweep-ray",
    "optuna": "sweep-optuna",
}
"""Launchers and sweepers that are packages of their own, and the extra of ours that installs them."""


def _unique() -> str:
    return f"{time.time_ns() // 1000 % 1_000_000:06d}-{os.getpid()}"


def _job_folder(sweep: str, number: int, *, _root_: DictConfig) -> str:
    return SweepFolder(Path(sweep).absolute()).folder_of(without_hydra(_root_), number)


# Here, because the processes of a sweep's jobs import this module, but don't go through `launch`.
OmegaConf.register_new_resolver("unique", _unique, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def conf_folder() -> Path:
    """The configuration: inside an installed package, or at the top of the repository."""
    packed = Path(__file__).parents[1] / "conf"
    return packed if packed.is_dir() else Path(__file__).parents[3] / "conf"


def launch(config_name: str, job: Job, prepare: Callable[[list[str]], list[str]]) -> None:
    """Compose `config_name` from the command line and run `job`, once or for each point of a sweep.

    Of several processes that torchrun has started the first does so, and the others run `job` along with it.

    Args:
        config_name: a file of conf/, without .yaml.
        job: what to run.
        prepare: rewrites the command line's overrides before Hydra sees them.

    Raises:
        SystemExit: with 1 after a user's error (3 where it was data that cannot be had), 130 after Ctrl-C.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if not several():
        return _launch(config_name, job, prepare)
    from l2l_runner import distributed

    with distributed.joined():
        if not distributed.is_first():
            return _follow(job)
        try:
            _launch(config_name, job, prepare)
        finally:
            distributed.release_waiting()


def several() -> bool:
    """Whether this is one of several processes of torchrun."""
    told = {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()  # others set WORLD_SIZE alone
    return told and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _follow(job: Job) -> None:
    """Do the job that the first process has, which reports on it."""
    from l2l_runner import distributed

    logging.disable()
    try:
        told = distributed.receive_job()
        if told is not None:
            job(*told)
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from stopped
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except UserError as error:
        _fail(str(error), error.exit_code)


def _launch(config_name: str, job: Job, prepare: Callable[[list[str]], list[str]]) -> None:
    logging.raiseExceptions = False  # a full disk is reported where it matters, not by the log file's handler
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    argv = sys.argv
    try:
        arguments = with_open_groups(with_quoted_paths(argv[1:]))
        check_choices(arguments)
        if several():
            check_torchrun(config_name, arguments)
        sys.argv = [argv[0], *prepare(arguments)]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing them
        with summed_up(argv[1:]):
            hydra.main(config_path=str(conf_folder()), config_name=config_name, version_base="1.3")(
                lambda config: _run_job(config, job)
            )()
    except UserError as error:
        _fail(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename} could not be written ({error.strerror}): choose another with hydra.run.dir=FOLDER.")
    finally:
        sys.argv = argv
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def _fail(sentence: str, exit_code: int = 1) -> NoReturn:
    if several():
        from l2l_runner.distributed import claim_error_report
    if not several() or claim_error_report():
        print(f"Error: {sentence}", file=sys.stderr)
    raise SystemExit(exit_code)


def _run_job(config: DictConfig, job: Job) -> float:
    """Run once, or as a job of a sweep; the score, for Hydra's sweepers."""
    from l2l_runner.runs.folder import RunFolder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    try:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        return _run_in_sweep(config, job, folder) if in_sweep else _run_alone(config, job, folder)
    finally:
        shutil.rmtree(folder.resuming, ignore_errors=True)


def _run_alone(config: DictConfig, job: Job, folder: RunFolder) -> float:
    from l2l_runner.distributed import command

    try:
        if config.get("resume") is None:
            folder.claim()
        return _run(_composed(config), job, folder)
    except Stopped as stopped:
        log.info("%s", stopped)
        raise SystemExit(stopped.exit_code) from stopped
    except KeyboardInterrupt:
        log.info(INTERRUPTED)
        if folder.last.exists():
            log.info("To go on:\n  %s %s", command(), folder.how_to_resume)
        raise SystemExit(130) from None
    except (UserError, OmegaConfBaseException) as error:
        _fail(_sentence(error), error.exit_code if isinstance(error, UserError) else 1)


def _run_in_sweep(config: DictConfig, job: Job, folder: RunFolder) -> float:
    """The score that was recorded, where the job has ended before; a failure is recorded, not raised.

    Raises:
        FolderTaken: the folder is another job's, so that nothing can be recorded in it.
    """
    run = HydraConfig.get()
    sweep = SweepFolder(Path(str(run.sweep.dir)).absolute())
    try:
        composed = _composed(config)
        with sweep.locked(folder.path.name):
            mine = sweep.is_of(folder.path.name, composed)  # not so where hydra.sweep.subdir was given
            before = folder.read_json("result.json")
            if mine and has_ended(before):
                return float("inf") if before["score"] is None else float(before["score"])
            folder.claim(exist_ok=mine)
            (folder.path / "result.json").unlink(missing_ok=True)  # how an earlier attempt has failed
            if run.runtime.choices["hydra/launcher"] != "basic" and composed["device"]["threads"] is None:
                composed["device"]["threads"] = 1  # other jobs have the other cores
            return _run(composed, job, folder)
    except (Stopped, KeyboardInterrupt) as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(INTERRUPTED, 130)
        log.info("%s", str(stopped).partition(" To go on")[0])
        raise stop_exception(stopped) from None
    except FolderTaken:
        raise
    except (UserError, OmegaConfBaseException) as error:
        log.error("Error: %s", _sentence(error))
        folder.write_json("result.json", {"status": "failed", "score": None, "error": _sentence(error)})
    except Exception as error:
        log.exception("This job failed by a bug.")
        folder.write_json("result.json", {"status": "failed", "score": None, "error": repr(error).splitlines()[0]})
    return float("inf")


def _composed(config: DictConfig) -> dict[str, Any]:
    composed = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _run(composed: dict[str, Any], job: Job, folder: RunFolder) -> float:
    from tqdm.contrib.logging import logging_redirect_tqdm

    from l2l_runner.distributed import broadcast_job

    broadcast_job((composed, folder.path))
    with logging_redirect_tqdm():
        result = job(composed, folder.path)
    folder.write_json("result.json", result)
    return float(result["score"])


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else explain(error)


class FolderGuard(Callback):
    """Hydra's callback that refuses a folder that is another's, before Hydra writes anything into it.

    It exits, because Hydra turns what a callback raises into a warning.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        from l2l_runner.runs.folder import RunFolder

        folder = RunFolder(Path(str(config.hydra.run.dir)).absolute())
        if config.get("resume") is None and folder.claimed:
            _fail(folder.taken)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = {override.get_key_element().lstrip("+") for override in given if override.is_sweep_override()}
        swept |= set(config.hydra.sweeper.params or ())
        handed_out = "${job_folder:" in OmegaConf.to_yaml(config.hydra.sweep)
        try:
            SweepFolder(Path(str(config.hydra.sweep.dir)).absolute()).begin(swept, handed_out, config.hydra.job.name)
        except StorageError as error:
            _fail(str(error))


def explain(error: Exception) -> str:
    """Hydra's and OmegaConf's commonest complaints in one sentence, the others in their own words."""
    chain = [error, *([error.__cause__] if isinstance(error.__cause__, Exception) else [])]
    text = " ".join(" ".join(str(e).split()) for e in chain)
    options_end = r"(?: Config search path| Set the|$)"
    found = re.search(r"Could not find '([\w/]+)/([^'/]*)'.*?Available options in '[\w/]+': (.*?)" + options_end, text)
    if found:
        return unknown_choice(found[1], found[2], found[3].split())
    found = re.search(r"Could not override '([^']+)'.*?(?:Key '([^']+)' is not in struct)", text)
    if found:
        return f"Unknown key {found[1]}: the configuration has no such key; --help shows those that it has."
    found = re.search(r"Could not override '([^']+)'\. No match in the defaults list", text)
    if found:
        return f"Unknown group {found[1]}: --help shows the groups and their choices."
    found = re.search(r"Missing mandatory value: (\S+)(?: full_key: (\S+))?", text)
    if found:
        key = found[2] or found[1]
        return f"{key} is missing: give it as {key}=VALUE."
    return text.split(" full_key: ")[0].split(" Set the environment")[0] or repr(error)


def overrides_of(arguments: Sequence[str]) -> dict[str, str]:
    """The key=value arguments of a command line, without Hydra's + and ++."""
    pairs = (argument.split("=", 1) for argument in arguments if not argument.startswith("-") and "=" in argument)
    return {key.strip().lstrip("+"): value for key, value in pairs}


def is_sweep(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a sweep."""
    return not {"-m", "--multirun"}.isdisjoint(arguments)


def with_quoted_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments with paths in quotes where Hydra's grammar wants them: around an =, an umlaut or a parenthesis.

    What is quoted or escaped stays as it is, and so does in a sweep what stands between its values.
    """
    sweep = "(),'\"\\[\\]" if is_sweep(arguments) else ""
    odd = re.compile(rf"[^\w\s./:@%+$?*|{sweep}-]", re.ASCII)

    def mend(argument: str) -> str:
        key, _, value = argument.partition("=")
        is_path = key in PATHS or key.startswith("others.")
        plain = not is_path or not odd.search(re.sub(r"\\.", "", value)) or value[0] in "'\""
        return argument if plain else f"{key}={quoted(value)}"

    return [mend(argument) for argument in arguments]


def with_open_groups(arguments: Sequence[str]) -> list[str]:
    """The arguments with Hydra's ++ (change it, or add it) where a group takes any key."""
    return [f"++{argument}" if argument.startswith(OPEN) else argument for argument in arguments]


def with_first(first: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """The arguments with `first` before their own overrides, but after their flags, as Hydra wants it."""
    overrides = (i for i, a in enumerate(arguments) if not a.startswith("-") and ("=" in a or a.startswith("~")))
    at = next(overrides, len(arguments))
    return [*arguments[:at], *first, *arguments[at:]]


def check_choices(arguments: Sequence[str]) -> None:
    """Refuse a group's choice that does not exist, which Hydra takes for a crash or, of an optional group, ignores.

    Raises:
        ConfigError: there is no such choice, or it would do nothing.
    """
    if overrides_of(arguments).get("sweep", "null") != "null" and not is_sweep(arguments):
        raise ConfigError("sweep=… says how the jobs of a sweep are run: use it with -m, or leave it out.")
    if any(argument.startswith(("-cd", "--config-dir", "hydra.searchpath")) for argument in arguments):
        return  # choices may come from elsewhere
    for group, value in overrides_of(arguments).items():
        if (conf_folder() / group).is_dir() and not set(value) & set("[]{}()$'\""):
            options = sorted(path.stem for path in (conf_folder() / group).glob("*.yaml"))
            for option in value.split(","):
                if option.strip() not in options:
                    raise ConfigError(unknown_choice(group, option, options))


def check_torchrun(config_name: str, arguments: Sequence[str]) -> None:
    """Refuse what several processes can't do together.

    Raises:
        ConfigError: this is it.
    """
    if config_name != "train":
        raise ConfigError(f"torchrun is for l2l_runner.train: start l2l_runner.{config_name} by python -m.")
    given = overrides_of(arguments)
    if is_sweep(arguments) or "hydra.mode" in given:
        raise ConfigError("A sweep's jobs have one process each: start it by python -m, or each job by torchrun.")
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and "resume" not in given:
        raise ConfigError(
            "A process has died, and torchrun's --max-restarts would start a new run: go on with the old one by "
            "resume=FOLDER, with which it may be restarted."
        )


def unknown_choice(group: str, option: str, options: list[str]) -> str:
    if group in ("hydra/launcher", "hydra/sweeper") and option in EXTRAS:
        return f"{group}={option} comes with a package that isn't there: pip install 'l2l_runner[{EXTRAS[option]}]'."
    return f"Unknown choice {group}={option}: expected one of {', '.join(options)}.{did_you_mean(option, options)}"


def quoted(value: str) -> str:
    """A string as a value of Hydra's override grammar."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def unquoted(value: str) -> str:
    """The string that an override's value stands for."""
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return str(ast.literal_eval(value))
    return value


def resumed(arguments: list[str]) -> list[str]:
    """`resume=PATH …` as that run's own overrides, in its own folder, with whatever else was given on top.

    Raises:
        ConfigError: in a sweep, or with a folder for the run.
        StorageError: PATH is no run.
    """
    given = overrides_of(arguments)
    path = unquoted(given.get("resume", "null"))
    if path == "null":
        return arguments
    if not path:
        raise ConfigError("resume is empty: give the folder of the run to go on with, as resume=FOLDER.")
    if is_sweep(arguments) or "hydra.run.dir" in given:
        raise ConfigError("resume=PATH goes on with one run in its own folder: use it without -m and hydra.run.dir.")
    folder = Path(path).absolute()
    if folder.suffix == ".pt":
        folder = folder.parent.parent
    saved = folder / ".hydra" / "overrides.yaml"
    if not (folder / ".run").exists() or not saved.exists():
        raise StorageError(
            f"{path} is no run: expected the folder that a run of l2l_runner.train made (with .hydra, metrics.jsonl "
            "and checkpoints), or a checkpoint in it. To go on with a sweep, give its command again, with "
            "hydra.sweep.dir=FOLDER."
        )
    before = [str(item) for item in OmegaConf.load(saved)]
    chosen = overrides_of(before)
    gone = {key for key, value in given.items() if (conf_folder() / key).is_dir() and chosen.get(key, value) != value}
    # Keys of a choice that isn't made any more, such as logger.store of a logger, would be unknown.
    before = [item for item in before if re.split(r"[.=]", item.lstrip("+~"))[0] not in {"resume", "sweep", *gone}]
    rest = [argument for argument in arguments if not argument.lstrip("+").startswith("resume=")]
    here = [f"resume={quoted(str(folder))}", f"hydra.run.dir={quoted(str(folder))}"]
    # The settings are kept once they are accepted.
    return with_first(before, [*rest, *here, "hydra.output_subdir=.resuming"])
