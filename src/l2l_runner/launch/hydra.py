"""From a command line to a run: compose the configuration, guard the run's folder, and end with the right exit code.

User errors print one line and exit with 1; missing data exits with 3, Ctrl-C with 130. Heavy modules are imported when
a job runs, so that --help is quick.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from l2l_runner.errors import FolderTaken, StorageError, UserError
from l2l_runner.launch.overrides import (
    allow_new_keys,
    check_choices,
    check_torchrun,
    conf_folder,
    overrides_of,
    quote_paths,
    unknown_choice,
)
from l2l_runner.launch.sweep import stop_exception, sweep_summary
from l2l_runner.launch.sweep_folder import SweepFolder, without_hydra
from l2l_runner.runs.folder import RunFolder
from l2l_runner.runs.reading import read_ended
from l2l_runner.runs.results import RunResult
from l2l_runner.stopping import Stopped

log = logging.getLogger(__name__)
Config = TypeVar("Config")

ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
"""How long PyTorch's threads spin before they sleep; read when PyTorch is first imported.

Their default is so long that a shared machine slows to a crawl. Without spinning, an idle machine loses up to half of
its speed.
"""

INTERRUPTED = "Interrupted; what was saved before is kept."


@dataclass(frozen=True)
class Command(Generic[Config]):
    """A console script: how its configuration is composed, checked and run.

    Attributes:
        name: of its configuration in conf/, without .yaml.
        parse: checks a composed configuration, with the keys that the user gave, and returns what `run` takes.
        run: runs a configuration in a folder and returns the result, with `status` and `score`.
        rewrite: rewrites the command line's overrides before Hydra reads them.
    """

    name: str
    parse: Callable[[dict[str, Any], Collection[str]], Config]
    run: Callable[[Config, Path], dict[str, Any]]
    rewrite: Callable[[list[str]], list[str]] = list


def _unique() -> str:
    return f"{time.time_ns() // 1000 % 1_000_000:06d}-{os.getpid()}"


def _job_folder(sweep: str, number: int, *, _root_: DictConfig) -> str:
    return SweepFolder(Path(sweep).absolute()).folder_of(without_hydra(_root_), number)


# At import time, because the processes of a sweep's jobs import this module without calling `launch`.
OmegaConf.register_new_resolver("unique", _unique, use_cache=True, replace=True)
OmegaConf.register_new_resolver("job_folder", _job_folder, replace=True)


def launch(command: Command[Any]) -> None:
    """Compose a command's configuration and run it, once or for each job of a sweep.

    Under torchrun the first process composes, and the others run its job along with it.

    Raises:
        SystemExit: with 1 after a user error, 3 if data is missing, 130 after Ctrl-C.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.update({name: value for name, value in ENVIRONMENT.items() if name not in os.environ})
    if not under_torchrun():
        return _launch(command)
    from l2l_runner import distributed

    with distributed.joined():
        if not distributed.is_first():
            return _follow(command)
        try:
            _launch(command)
        finally:
            distributed.release_waiting()


def under_torchrun() -> bool:
    """Tell whether this is one of several processes that torchrun started."""
    variables = {"RANK", "MASTER_ADDR", "MASTER_PORT"}  # other systems set WORLD_SIZE alone
    return variables <= os.environ.keys() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _follow(command: Command[Any]) -> None:
    """Run the first process's job along with it; the first process reports on it."""
    from l2l_runner import distributed

    logging.disable()
    try:
        job = distributed.receive_job()
        if job is not None:
            composed, folder = job
            command.run(command.parse(composed, ()), folder)
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from stopped
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except UserError as error:
        _fail(str(error), error.exit_code)


def _launch(command: Command[Any]) -> None:
    logging.raiseExceptions = False  # a full disk is reported where it matters, not by the log file's handler
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    argv = sys.argv
    try:
        arguments = allow_new_keys(quote_paths(argv[1:]))
        check_choices(arguments)
        if under_torchrun():
            check_torchrun(command.name, arguments)
        sys.argv = [argv[0], *command.rewrite(arguments)]
        os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise its errors instead of printing them
        with sweep_summary(argv[1:]):
            hydra.main(config_path=str(conf_folder()), config_name=command.name, version_base="1.3")(
                lambda config: _run_job(config, command)
            )()
    except KeyboardInterrupt:  # before the run or the sweep began
        _fail("Interrupted before the run began.", 130)
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
    if under_torchrun():
        from l2l_runner.distributed import claim_error_report
    if not under_torchrun() or claim_error_report():
        print(f"Error: {sentence}", file=sys.stderr)
    raise SystemExit(exit_code)


def _run_job(config: DictConfig, command: Command[Any]) -> float:
    """Run once, or as a job of a sweep; return the score, for Hydra's sweepers."""
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    try:
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        return _run_in_sweep(config, command, folder) if in_sweep else _run_alone(config, command, folder)
    finally:
        shutil.rmtree(folder.resuming, ignore_errors=True)


def _run_alone(config: DictConfig, command: Command[Any], folder: RunFolder) -> float:
    from l2l_runner import distributed

    try:
        return _run(command, _composed(config), folder, claim=config.get("resume") is None)
    except Stopped as stopped:
        log.info("%s", stopped)
        raise SystemExit(stopped.exit_code) from stopped
    except KeyboardInterrupt:
        log.info(INTERRUPTED)
        if folder.last.exists():
            log.info("To resume:\n  %s %s", distributed.command(), folder.how_to_resume)
        raise SystemExit(130) from None
    except (UserError, OmegaConfBaseException) as error:
        _fail(_sentence(error), error.exit_code if isinstance(error, UserError) else 1)


def _run_in_sweep(config: DictConfig, command: Command[Any], folder: RunFolder) -> float:
    """Run a job of a sweep, unless it has ended before; record a failure instead of raising it.

    Raises:
        FolderTaken: the folder belongs to another job, so nothing can be recorded in it.
    """
    run = HydraConfig.get()
    sweep = SweepFolder(Path(str(run.sweep.dir)).absolute())
    try:
        composed = _composed(config)
        with sweep.locked(folder.path.name):
            own = sweep.is_of(folder.path.name, composed)  # False if hydra.sweep.subdir was given
            before = read_ended(folder.path)
            if own and before is not None:
                return before.score if math.isfinite(before.score) else math.inf
            folder.claim(exist_ok=own)
            (folder.path / "result.json").unlink(missing_ok=True)  # of an earlier attempt that failed
            if run.runtime.choices["hydra/launcher"] != "basic" and composed["device"]["threads"] is None:
                composed["device"]["threads"] = 1  # the other cores are for the other jobs
            return _run(command, composed, folder)
    except (Stopped, KeyboardInterrupt) as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(INTERRUPTED, 130)
        log.info("%s", str(stopped).partition(" To resume")[0])
        raise stop_exception(stopped) from None
    except FolderTaken:
        raise
    except (UserError, OmegaConfBaseException) as error:
        log.error("Error: %s", _sentence(error))
        folder.write_json("result.json", RunResult("failed", math.nan, error=_sentence(error)).to_json())
    except Exception as error:
        log.exception("This job failed because of a bug.")
        reason = repr(error).splitlines()[0]
        folder.write_json("result.json", RunResult("failed", math.nan, error=reason).to_json())
    return math.inf


def _composed(config: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as plain values, with all interpolations resolved."""
    composed = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def _run(command: Command[Any], composed: dict[str, Any], folder: RunFolder, claim: bool = False) -> float:
    """Run a composed configuration, with the other processes of torchrun, and write its result; return the score.

    A folder is claimed once its configuration is known to be whole, so that a corrected command can use it.
    """
    from tqdm.contrib.logging import logging_redirect_tqdm

    from l2l_runner.distributed import broadcast_job

    config = command.parse(composed, overrides_of(HydraConfig.get().overrides.task).keys())
    if claim:
        folder.claim()
    with folder.locked():
        broadcast_job((composed, folder.path))
        with logging_redirect_tqdm():
            result = command.run(config, folder.path)
        folder.write_json("result.json", result)
    return float(result["score"])


def _sentence(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else explain(error)


class FolderGuard(Callback):
    """Hydra's callback that rejects a folder that belongs to another run, before Hydra writes into it.

    It exits instead of raising, because Hydra turns an exception of a callback into a warning.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit if the run's folder is taken, unless the run is resumed in it."""
        folder = RunFolder(Path(str(config.hydra.run.dir)).absolute())
        if config.get("resume") is None and folder.claimed:
            _fail(folder.taken)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Start a sweep in its folder, or exit if the folder belongs to something else."""
        given = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        swept = {override.get_key_element().lstrip("+") for override in given if override.is_sweep_override()}
        swept |= set(config.hydra.sweeper.params or ())
        assigned = "${job_folder:" in OmegaConf.to_yaml(config.hydra.sweep)
        try:
            SweepFolder(Path(str(config.hydra.sweep.dir)).absolute()).begin(swept, assigned, config.hydra.job.name)
        except StorageError as error:
            _fail(str(error))


def explain(error: Exception) -> str:
    """Return one sentence for an error of Hydra or OmegaConf: ours for the common ones, else their own words."""
    chain = [error, *([error.__cause__] if isinstance(error.__cause__, Exception) else [])]
    text = " ".join(" ".join(str(e).split()) for e in chain)
    options_end = r"(?: Config search path| Set the|$)"
    found = re.search(r"Could not find '([\w/]+)/([^'/]*)'.*?Available options in '[\w/]+': (.*?)" + options_end, text)
    if found:
        return unknown_choice(found[1], found[2], found[3].split())
    found = re.search(r"Could not override '([^']+)'.*?(?:Key '([^']+)' is not in struct)", text)
    if found:
        return f"Unknown key {found[1]}: the configuration has no such key; --help lists the valid ones."
    found = re.search(r"Could not override '([^']+)'\. No match in the defaults list", text)
    if found:
        return f"Unknown group {found[1]}: --help lists the groups and their choices."
    found = re.search(r"Missing mandatory value: (\S+)(?: full_key: (\S+))?", text)
    if found:
        key = found[2] or found[1]
        return f"{key} is missing: give it as {key}=VALUE."
    return text.split(" full_key: ")[0].split(" Set the environment")[0] or repr(error)
