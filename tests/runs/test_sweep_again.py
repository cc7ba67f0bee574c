"""Sweeps that are started again: what has ended is kept, what was stopped goes on, in whatever processes they run."""

from __future__ import annotations

import pickle
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from l2l_runner.launch.overrides import conf_folder
from l2l_runner.launch.sweep import SweepSummary, sweep_summary
from l2l_runner.launch.sweep_folder import SweepFolder, identity
from l2l_runner.runs.results import RunResult
from l2l_runner.stopping import Stopped
from l2l_runner.training.hand_designed import HandDesignedRun
from running import (
    QUADRATIC,
    QUICK,
    Death,
    Fork,
    Spy,
    assert_one_sentence,
    assert_same_run,
    die_when_replacing,
    evaluate,
    finish,
    has_plugin,
    last,
    lines,
    read_csv,
    read_json,
    records,
    same_bits,
    sketch,
    snapshot,
    spawn,
    train,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("sketches")

SPY = "+hydra.callbacks.spy._target_=running.Spy"
SGD = [*QUADRATIC, "optimizer=sgd"]
FREE = [item for item in QUICK if item != "device.threads=1"]  # threads are the launcher's affair


def needs(name: str, extra: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not has_plugin(name), reason=f"Hydra's plugin is missing: pip install -e '.[{extra}]'")


needs_joblib = needs("joblib", "sweep-joblib")
needs_submitit = needs("slurm", "sweep-slurm")
needs_ray = needs("ray", "sweep-ray")
needs_optuna = needs("optuna", "sweep-optuna")


def sweep(folder: Path, *arguments: str) -> Any:
    return train(None, "-m", *arguments, f"hydra.sweep.dir={folder}")


def jobs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The jobs of a sweep's summary, by the learning rate that they were given."""
    (key, *_) = [key for key in read_json(folder / "sweep.json")[0]["values"] if key in ("meta.lr", "optimizer.lr")]
    return {job["values"][key]: job for job in read_json(folder / "sweep.json")}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over meta-learning rates that nothing has stopped."""
    folder = tmp_path_factory.mktemp("learned") / "sweep"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert sweep(folder, *QUICK, "meta.lr=0.01,0.001").code == 0
    return folder


@pytest.mark.parametrize(("name", "time"), [("last.pt", 2), ("result.json", 1), ("best.pt", 5)])
def test_a_sweep_that_died_ends_as_one_that_was_left_alone(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    folder = tmp_path / "sweep"
    with monkeypatch.context() as patched:
        die_when_replacing(patched, name, time)
        with pytest.raises(Death):
            sweep(folder, *QUICK, "meta.lr=0.01,0.001")
    ended = [job for job in "01" if (folder / job / "result.json").exists()]
    assert sweep(folder, *QUICK, "meta.lr=0.01,0.001").code == 0
    for job in "01":
        assert_same_run(folder / job, learned / job)
    assert [job["job"] for job in read_json(folder / "sweep.json") if job["kept"]] == ended


def test_more_values_are_added_and_what_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "sweep"
    assert sweep(folder, *SGD, "optimizer.lr=0.001,0.1").code == 0
    before = {job: snapshot(folder / job) for job in "01"}
    monkeypatch.setattr(Spy, "returned", [])
    ended = sweep(folder, *SGD, "optimizer.lr=0.001,0.01,0.1", SPY)
    assert ended.code == 0
    for job, files in before.items():
        after = snapshot(folder / job)
        assert {name for name in files if after[name] != files[name]} <= {".hydra/hydra.yaml"}
    jobs = jobs_of(folder)
    assert {rate: (job["job"], job["kept"]) for rate, job in jobs.items()} == {
        "0.001": ("0", True),
        "0.1": ("1", True),
        "0.01": ("2", False),
    }
    assert Spy.returned == [jobs[rate]["score"] for rate in ("0.001", "0.01", "0.1")]
    assert records(folder / "2")[-1]["loss"] == jobs["0.01"]["score"]
    assert [row["kept"] for row in read_csv(folder / "sweep.csv")] == ["True", "True", "False"]
    assert "completed, kept" in ended.out


def test_a_job_that_failed_is_run_again_and_one_that_diverged_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, finish = tmp_path / "sweep", HandDesignedRun.finish
    arguments = [*SGD, "optimizer.lr=0.01,1e10", SPY]

    def buggy(run: HandDesignedRun) -> RunResult:
        if run.rule.lr == 0.01:
            raise ZeroDivisionError("a bug\nand more of it")
        return finish(run)

    with monkeypatch.context() as patched:
        patched.setattr(HandDesignedRun, "finish", buggy)
        ended = sweep(folder, *arguments)
    assert ended.code == 1
    assert "1 failed, 1 diverged" in ended.out
    assert "job 0 failed: ZeroDivisionError('a bug" in ended.out
    monkeypatch.setattr(Spy, "returned", [])
    assert sweep(folder, *arguments).code == 0
    jobs = jobs_of(folder)
    assert (jobs["0.01"]["status"], jobs["0.01"]["kept"]) == ("completed", False)
    assert (jobs["10000000000.0"]["status"], jobs["10000000000.0"]["kept"]) == ("diverged", True)
    assert Spy.returned == [jobs["0.01"]["score"], float("inf")]


def test_a_job_that_was_resumed_by_itself_is_another_now(learned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(learned, tmp_path / "sweep"))
    assert train(None, f"resume={folder / '1'}", "meta.steps=8").code == 0
    longer = snapshot(folder / "1")
    assert sweep(folder, *QUICK, "meta.lr=0.01,0.001").code == 0
    assert snapshot(folder / "1") == longer
    assert_same_run(folder / "2", learned / "1")


def test_a_point_that_is_met_twice_is_computed_once(tmp_path: Path) -> None:
    assert sweep(tmp_path / "sweep", *SGD, "optimizer.lr=0.1,1e-1").code == 0
    assert [job["job"] for job in read_json(tmp_path / "sweep" / "sweep.json")] == ["0"]


def test_a_job_is_what_it_computes_but_for_where() -> None:
    config = {"data": {"root": "a"}, "device": {"name": "cpu", "threads": 1, "dtype": "float32"}, "seed": 0}
    name = identity(config, ())
    for key, other in {"data": {"root": "b"}, "device": {**config["device"], "threads": 2}}.items():  # type: ignore[dict-item]
        assert identity({**config, key: other}, ()) == name
        assert identity({**config, key: other}, [key]) != identity(config, [key])
    assert identity({**config, "device": {**config["device"], "threads": 2}}, ["device.threads"]) != name  # type: ignore[dict-item]
    assert identity({**config, "device": {**config["device"], "dtype": "float64"}}, ()) != name  # type: ignore[dict-item]
    assert identity({**config, "seed": 1}, ()) != name


def test_threads_can_be_swept_and_otherwise_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    settings = [item for item in SGD if item != "device.threads=1"]
    assert sweep(folder, *settings, "optimizer.lr=0.1,0.2", "device.threads=1").code == 0
    assert sweep(folder, *settings, "optimizer.lr=0.1,0.2", "device.threads=2").code == 0
    assert all(job["kept"] for job in read_json(folder / "sweep.json"))
    assert sweep(tmp_path / "threads", *settings, "device.threads=1,2").code == 0
    assert len(read_json(tmp_path / "threads" / "sweep.json")) == 2


def test_a_failed_job_that_is_left_out_is_nobodys_failure(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert sweep(folder, *SGD, "optimizer.lr=0.1,-1").code == 1
    ended = sweep(folder, *SGD, "optimizer.lr=0.1,0.2")
    assert ended.code == 0
    assert "job 1 failed" not in ended.out
    assert (jobs_of(folder)["-1"]["status"], jobs_of(folder)["-1"]["kept"]) == ("failed", True)
    assert sweep(folder, *SGD, "optimizer.lr=0.1,-1").code == 1


def test_a_job_that_failed_before_and_is_stopped_now_was_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "sweep"

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for happening, status in ((fail, "failed"), (stop, "stopped")):
        monkeypatch.setattr(HandDesignedRun, "finish", happening)
        sweep(folder, *SGD, "optimizer.lr=0.1,0.2")
        assert read_json(folder / "sweep.json")[0]["status"] == status


def test_jobs_in_folders_of_the_users_own_are_not_taken_for_others(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    own = "hydra.sweep.subdir=lr-${optimizer.lr}"
    assert sweep(folder, *SGD, "optimizer.lr=0.1,0.2", own).code == 0
    assert sorted(job["job"] for job in read_json(folder / "sweep.json")) == ["lr-0.1", "lr-0.2"]
    before = snapshot(folder)
    ended = sweep(folder, *SGD, "optimizee.dim=2", "optimizer.lr=0.1,0.3", own)
    assert_one_sentence(ended, str(folder), "already holds runs", "hydra.sweep.dir")
    assert snapshot(folder) == before


def test_a_job_in_the_folder_of_another_one_ends_the_sweep(tmp_path: Path) -> None:
    ended = sweep(tmp_path / "sweep", *SGD, "optimizer.lr=0.1,0.2", "hydra.sweep.subdir=same")
    assert ended.code == 1
    assert "Error: " in ended.err
    assert "already belongs to a run" in ended.err
    assert read_json(tmp_path / "sweep" / "same" / "result.json")["status"] == "completed"


def test_a_runs_folder_and_a_folder_of_runs_are_refused(quick: Path) -> None:
    for folder, words in ((quick, "belongs to a run"), (quick.parent, "holds runs")):
        before = snapshot(folder)
        assert_one_sentence(sweep(folder, *SGD, "optimizer.lr=0.1,0.2"), str(folder), words, "hydra.sweep.dir")
        assert snapshot(folder) == before


def test_a_sweep_of_another_program_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    assert sweep(folder, *SGD, "optimizer.lr=0.1,0.2").code == 0
    before = snapshot(folder)
    ended = evaluate(None, "-m", f"hydra.sweep.dir={folder}", f"checkpoint={folder / '0'}", "seed=1,2")
    assert_one_sentence(ended, str(folder), "belongs to a sweep of train", "hydra.sweep.dir")
    assert snapshot(folder) == before


def test_how_a_sweep_is_run_is_refused_without_one() -> None:
    assert_one_sentence(train(None, *SGD, "sweep=joblib"), "sweep=", "-m")


# Launchers: the same jobs in processes of their own.

LAUNCHERS = [
    pytest.param(["sweep=joblib", "hydra.launcher.n_jobs=2"], marks=needs_joblib, id="joblib"),
    pytest.param(["hydra/launcher=submitit_local"], marks=needs_submitit, id="submitit_local"),
    pytest.param(["sweep=ray", "hydra.launcher.ray.init={num_cpus:2}"], marks=needs_ray, id="ray"),
]


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_keeps_runs_and_records_failures(learned: Path, tmp_path: Path, launcher: list[str]) -> None:
    folder = Path(shutil.copytree(learned, tmp_path / "sweep"))
    kept = snapshot(folder / "0")
    ended = finish(spawn("-m", *FREE, *launcher, "meta.lr=0.01,0,0.003", f"hydra.sweep.dir={folder}"))
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.out + ended.err
    sentence = "meta.lr is 0; expected a number > 0."
    jobs = jobs_of(folder)
    assert {value: (job["status"], job["kept"], job["error"]) for value, job in jobs.items()} == {
        "0.01": ("completed", True, None),
        "0.001": ("completed", True, None),  # of before
        "0": ("failed", False, sentence),
        "0.003": ("completed", False, None),
    }
    assert f"job {jobs['0']['job']} failed: {sentence}" in ended.out
    new, alone = folder / jobs["0.003"]["job"], tmp_path / "alone"
    assert train(alone, *QUICK, "meta.lr=0.003").code == 0
    assert same_bits(last(new)["optimizer"], last(alone)["optimizer"])
    assert (new / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
    assert last(new)["config"]["device"]["threads"] == 1
    after = snapshot(folder / "0")
    touched = {name for name in kept if not name.startswith(".hydra/") and after[name] != kept[name]}
    assert touched <= {"train.log"}  # in which submitit says that it has done its job


LONG = [item for item in FREE if not item.startswith("meta.")]
LONG += ["meta.steps=200", "meta.validate_every=200", "device.threads=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A longer sweep that nothing has stopped."""
    folder = tmp_path_factory.mktemp("whole") / "sweep"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert sweep(folder, *LONG, "meta.lr=0.01,0.001").code == 0
    return folder


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="basic"),
        pytest.param(["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"], marks=needs_joblib, id="joblib"),
    ],
)
def test_a_sweep_that_is_stopped_says_how_to_go_on_and_does(whole: Path, tmp_path: Path, launcher: list[str]) -> None:
    folder = tmp_path / "sweep"
    # Joblib's workers are no children of a fork's.
    process = (spawn if launcher else Fork)("-m", *LONG, *launcher, "meta.lr=0.01,0.001", f"hydra.sweep.dir={folder}")
    wait_until(process, lambda: any(lines(folder / job) > 5 for job in "01"))
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130, ended.err
    assert "Traceback" not in ended.out + ended.err
    assert {job["status"] for job in read_json(folder / "sweep.json")} == {"stopped"}
    command = shlex.split(ended.out.splitlines()[-1])
    assert command[:3] == ["python", "-m", "l2l_runner.train"]
    assert any(0 < last(folder / job)["progress"]["step"] < 200 for job in "01" if (folder / job).exists())
    assert train(None, *command[3:]).code == 0
    assert {value: job["score"] for value, job in jobs_of(folder).items()} == {
        value: job["score"] for value, job in jobs_of(whole).items()
    }
    for value, job in jobs_of(folder).items():
        theirs = whole / jobs_of(whole)[value]["job"]
        assert (folder / job["job"] / "metrics.jsonl").read_bytes() == (theirs / "metrics.jsonl").read_bytes()
        assert same_bits(last(folder / job["job"])["optimizer"], last(theirs)["optimizer"])


def test_a_launcher_that_fails_is_one_sentence_after_the_summary(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(learned, tmp_path / "sweep"))
    (folder / "1" / "result.json").unlink()
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}, "job": {"name": "train"}}})

    @sweep_summary(["-m", "a=1,2", "hydra.sweep.dir=elsewhere"])
    def launch() -> None:
        SweepSummary().on_multirun_start(config)
        raise RuntimeError("A worker died.\nOf this.")

    with pytest.raises(SystemExit) as end:
        launch()
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert err == "Error: the launcher failed before all jobs had ended (A worker died).\n"
    assert "job 1 failed: it left no result" in out.splitlines()
    assert out.splitlines()[-1] == f"  python -m l2l_runner.train -m a=1,2 hydra.sweep.dir={folder}"


def test_a_stop_can_be_sent_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(Stopped("Stopped at meta-step 3.", 143)))
    assert (str(sent), sent.exit_code) == ("Stopped at meta-step 3.", 143)


def test_no_job_starts_in_a_sweep_that_is_to_stop(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path)
    folder.begin(())
    folder.stop.touch()
    with pytest.raises(Stopped), folder.locked("0"):
        raise AssertionError
    folder.begin(())
    with folder.locked("0"):
        assert not folder.stop.exists()


# Presets and Optuna.


RAY = {"init": {"address": None, "include_dashboard": False}, "remote": {"num_cpus": 4}}
PRESETS: dict[str, dict[str, Any]] = {
    "joblib": {"n_jobs": -1},
    "slurm": {"cpus_per_task": 4, "timeout_min": 240, "max_num_timeout": 10},
    "ray": {"ray": RAY},
    "optuna": {"n_trials": 20, "n_jobs": 1},
}
NEEDS = {"joblib": needs_joblib, "slurm": needs_submitit, "ray": needs_ray, "optuna": needs_optuna}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Optuna imports
@pytest.mark.parametrize("command", [["train"], ["eval", "checkpoint=mnist", "seed=3"]], ids=["train", "eval"])
@pytest.mark.parametrize("name", [pytest.param(name, marks=NEEDS[name]) for name in PRESETS])
def test_every_preset_composes_and_builds_what_it_names(command: list[str], name: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose(command[0], [*command[1:], f"sweep={name}", "device.threads=4"], return_hydra_config=True)
    assert "sweep" not in config
    node = config.hydra.sweeper if name == "optuna" else config.hydra.launcher
    resolved: Any = OmegaConf.to_container(node, resolve=True)
    assert PRESETS[name].items() <= resolved.items()
    assert type(instantiate(node)).__module__.startswith("hydra_plugins.")


def test_every_preset_is_tested() -> None:
    assert {path.stem for path in (conf_folder() / "sweep").glob("*.yaml")} == set(PRESETS)


@needs_optuna
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Optuna imports
def test_a_search_goes_on_with_more_trials_as_if_it_had_had_them_from_the_start(tmp_path: Path) -> None:
    space = [*SGD, "sweep=optuna", "optimizer.lr=tag(log,interval(0.001,1))"]
    assert sweep(tmp_path / "search", *space, "hydra.sweeper.n_trials=2").code == 0
    ended = sweep(tmp_path / "search", *space, "hydra.sweeper.n_trials=4")
    assert ended.code == 0, ended.err
    assert sweep(tmp_path / "whole", *space, "hydra.sweeper.n_trials=4").code == 0
    mine, theirs = jobs_of(tmp_path / "search"), jobs_of(tmp_path / "whole")
    assert [job["kept"] for job in mine.values()] == [True, True, False, False]
    assert {rate: job["score"] for rate, job in mine.items()} == {rate: job["score"] for rate, job in theirs.items()}
    best = OmegaConf.load(tmp_path / "search" / "optimization_results.yaml")
    assert best.best_value == min(job["score"] for job in mine.values())
