"""A run that is stopped at any moment and resumed leaves what an uninterrupted run leaves, bit for bit."""

from __future__ import annotations

import errno
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l2l_runner.meta import TBPTT, Estimate
from l2l_runner.runs.folder import RunFolder
from running import (
    EVAL,
    QUADRATIC,
    QUICK,
    TINY,
    Death,
    Ended,
    Fork,
    assert_one_sentence,
    assert_same_run,
    best,
    die_when_replacing,
    evaluate,
    finish,
    last,
    lines,
    read_json,
    records,
    same_bits,
    snapshot,
    train,
    wait_until,
)

pytestmark = pytest.mark.usefixtures("sketches")


def command_to_resume(ended: Ended) -> list[str]:
    """The arguments of the command that an interrupted run prints, as a shell would split them."""
    (line,) = [line for line in ended.out.splitlines() if "resume=" in line]
    python, flag, module, *arguments = shlex.split(line)
    assert (python, flag, module) == ("python", "-m", "l2l_runner.train")
    return arguments


# Death at every kind of moment. In one process it is an exception that nothing catches, so that the moment is exact.

MOMENTS = [
    ("learning.png", 1),  # before anything is saved
    ("00000000.png", 1),
    ("best.pt", 1),
    ("last.pt", 1),  # best.pt is there, last.pt is not
    ("00000002.png", 1),
    ("best.pt", 2),
    ("last.pt", 2),  # best.pt is of a later meta-step than last.pt
    ("last.pt", 4),
    ("last.pt", 5),  # all is trained, and validated
    ("learning.gif", 1),
    ("comparison.json", 1),
    ("comparison.png", 1),
    ("result.json", 1),
]


@pytest.mark.parametrize(("name", "time"), MOMENTS)
def test_a_run_that_died_at_a_write_is_resumed_exactly(
    sketched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        die_when_replacing(patched, name, time)
        with pytest.raises(Death):
            train(run, *TINY)
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, sketched)


def test_a_run_that_died_within_a_line_of_its_metrics_is_resumed_exactly(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, log = tmp_path / "run", RunFolder.log

    def dying(self: RunFolder, record: dict[str, Any]) -> int:
        if record["event"] == "meta_step" and record["step"] == 4:
            with open(self.metrics, "a") as file:
                file.write('{"event": "meta_')
            raise Death
        return log(self, record)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", dying)
        with pytest.raises(Death):
            train(run, *QUICK)
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, quick)


def die_in_window(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Die before the given window of the run, of all its trajectories."""
    honest, windows = TBPTT.estimates, iter(range(1000))

    def estimates(self: TBPTT, *arguments: Any) -> Iterator[Estimate]:
        for estimate in honest(self, *arguments):
            if next(windows) == number:
                raise Death
            yield estimate

    monkeypatch.setattr(TBPTT, "estimates", estimates)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["device.dtype=float64"],
        ["optimizer.coordinatewise=false", "optimizer.preprocessing=none", "meta.second_order=true"],
        ["optimizee=digits", "optimizee.hidden=[4]", "optimizee.batch=2", "optimizee.validation_problems=2"],
        ["meta.warmup=0.5", "meta.weights=linear", "meta.clip=null", "score=sum"],
    ],
)
def test_a_run_that_died_within_a_trajectory_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    settings = [item for item in QUICK if not item.startswith("optimizee.")]
    settings += more if "optimizee=digits" in more else [*(i for i in QUICK if i.startswith("optimizee.")), *more]
    settings += ["meta.validate_every=3"]
    assert train(tmp_path / "whole", *settings).code == 0
    with monkeypatch.context() as patched:
        die_in_window(patched, 3 * 3 + 1)  # windows of 4 steps, three to a trajectory
        with pytest.raises(Death):
            train(tmp_path / "run", *settings)
    assert last(tmp_path / "run")["progress"]["step"] == 3
    assert train(None, f"resume={tmp_path / 'run'}").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_run_may_die_again_and_again(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    command: tuple[Path | None, list[str]] = (run, QUICK)
    for name, time in (("best.pt", 1), ("last.pt", 2), ("last.pt", 1), ("learning.gif", 1)):
        with monkeypatch.context() as patched:
            die_when_replacing(patched, name, time)
            with pytest.raises(Death):
                train(command[0], *command[1])
        command = (None, [f"resume={run}"])
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, quick)


# The same with real processes and real signals.


@pytest.mark.draws
@pytest.mark.parametrize("progress", ["claimed", 3, 8])
def test_a_killed_process_is_resumed_exactly(reference: Path, tmp_path: Path, progress: str | int) -> None:
    run = tmp_path / "run"
    process = Fork(*TINY, f"hydra.run.dir={run}")
    if isinstance(progress, str):  # while the baselines are tuned, before the first checkpoint
        wait_until(process, (run / ".run").exists)
    else:
        wait_until(process, lambda: lines(run) >= progress)
    process.kill()
    assert finish(process).code == -signal.SIGKILL
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, reference)


@pytest.mark.draws
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_process_saves_says_how_to_resume_and_is_resumed_exactly(
    reference: Path, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "a run, of=mine"
    process = Fork(*TINY, f"hydra.run.dir='{run}'")
    wait_until(process, lambda: lines(run) >= 2)
    process.send_signal(number)
    ended = finish(process)
    assert ended.code == code
    assert "Traceback" not in ended.out + ended.err
    assert "Stopped at meta-step" in ended.out
    saved = last(run)["progress"]
    assert 1 <= saved["step"] < 6
    assert lines(run) == len(records(run))
    assert not (run / "result.json").exists()
    assert train(None, *command_to_resume(ended)).code == 0
    assert_same_run(run, reference)


def test_ctrl_c_before_training_ends_without_a_traceback(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = Fork(*TINY, "evaluation.tune.per_decade=500", f"hydra.run.dir={run}")
    wait_until(process, lambda: (run / "train.log").exists() and "Meta-training" in (run / "train.log").read_text())
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.code == 130
    assert "Traceback" not in ended.out + ended.err
    assert "Interrupted" in ended.out
    assert not (run / "checkpoints").exists()


# Resuming what has ended.


def test_a_finished_run_can_be_resumed_and_stays_what_it_is(sketched: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sketched, tmp_path / "run"))
    for _ in range(2):
        ended = train(None, f"resume={run}")
        assert ended.code == 0
        assert "at meta-step 6 of 6" in ended.out
        assert_same_run(run, sketched)


def test_a_finished_run_goes_on_for_more_meta_steps(tmp_path: Path) -> None:
    settings = [*QUICK, "meta.schedule=constant"]
    assert train(tmp_path / "long", *settings, "meta.steps=8").code == 0
    run = tmp_path / "run"
    assert train(run, *settings, "meta.steps=4").code == 0
    assert train(None, f"resume={run}", "meta.steps=8").code == 0
    assert_same_parameters(run, tmp_path / "long")
    assert (run / "metrics.jsonl").read_bytes() == (tmp_path / "long" / "metrics.jsonl").read_bytes()
    # The greater number is the run's own from now on.
    assert "at meta-step 8 of 8" in train(None, f"resume={run}").out


def test_a_resumption_for_more_meta_steps_that_dies_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [*QUICK, "meta.schedule=constant"]
    assert train(tmp_path / "long", *settings, "meta.steps=8").code == 0
    run = tmp_path / "run"
    assert train(run, *settings, "meta.steps=4").code == 0
    with monkeypatch.context() as patched:
        die_when_replacing(patched, "00000006.png", 1)
        with pytest.raises(Death):
            train(None, f"resume={run}", "meta.steps=8")
    assert train(None, f"resume={run}").code == 0
    assert_same_parameters(run, tmp_path / "long")


def assert_same_parameters(mine: Path, theirs: Path) -> None:
    for read in (best, last):
        for part in ("optimizer", "meta_optimizer"):
            assert same_bits(read(mine)[part], read(theirs)[part])


def test_a_run_can_be_evaluated_later_by_resuming_it(sketched: Path, quick: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(quick, tmp_path / "run"))
    assert train(None, f"resume={run}", "evaluate=true").code == 0
    assert (run / "comparison.json").read_bytes() == (sketched / "comparison.json").read_bytes()


def test_a_diverged_run_can_be_given_another_chance(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "optimizer.output_scale=1e30", "meta.max_skipped=2").code == 0
    assert last(run)["progress"]["step"] == 2
    assert train(None, f"resume={run}", "meta.max_skipped=4").code == 0
    assert last(run)["progress"]["step"] == 4


@pytest.mark.parametrize("way", ["relative", "slash", "best.pt", "last.pt", "quoted", "forced"])
def test_a_run_is_named_in_several_ways(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    run = Path(shutil.copytree(quick, tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    named = {
        "relative": "resume=run",
        "slash": f"resume={run}/",
        "best.pt": f"resume={run}/checkpoints/best.pt",
        "last.pt": f"resume={run}/checkpoints/last.pt",
        "quoted": f"resume='{run}'",
        "forced": f"++resume={run}",
    }[way]
    ended = train(None, named)
    assert ended.code == 0, ended.err
    assert f"Resumed {run} at meta-step 6" in ended.out
    assert_same_run(run, quick)


@pytest.mark.parametrize("name", ["with space", "a=b", "a,b", "it's", "[x]{y}", "ünï 你好", "100%$"])
def test_odd_names_of_folders_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    run = tmp_path / name
    quoted = str(run).replace("'", "\\'")
    assert train(None, *QUICK, "meta.steps=1", f"hydra.run.dir='{quoted}'").code == 0
    ended = train(None, f"resume={run}", "meta.steps=2")
    assert ended.code == 0, ended.err
    assert last(run)["progress"]["step"] == 2
    assert (
        evaluate(tmp_path / "eval", f"checkpoint='{quoted}'", "tune.enabled=false", "optimizee.dim=2", *EVAL).code == 0
    )


def test_equals_signs_and_commas_in_paths_need_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Hydra's own names for the jobs of a sweep are full of them.
    monkeypatch.chdir(tmp_path)
    first, second = "runs/lr=1,seed=2", "runs/lr=1,seed=3"
    assert train(None, *QUICK, "meta.steps=0", f"hydra.run.dir={first}").code == 0
    assert train(None, *QUICK, "meta.steps=0", f"init={first}", f"hydra.run.dir={second}").code == 0
    assert same_bits(best(tmp_path / first)["optimizer"], best(tmp_path / second)["optimizer"])
    assert train(None, f"resume={second}").code == 0
    assert evaluate(None, f"checkpoint={second}", "tune.enabled=false", *EVAL, "hydra.run.dir=of=it").code == 0
    assert (tmp_path / "of=it" / "comparison.json").exists()


def test_a_hand_designed_run_is_simply_done_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUADRATIC, "optimizer=sgd").code == 0
    before = snapshot(run)
    assert train(None, f"resume={run}").code == 0
    after = snapshot(run)
    # But for the log and the settings, which now say resume=….
    assert {name for name in before if before[name] != after.get(name) and not name.startswith(".hydra/")} == {
        "train.log"
    }


# What is refused.


@pytest.mark.parametrize(
    ("setting", "was"),
    [
        ("meta.lr=0.5", "0.01"),
        ("optimizer.hidden=8", "4"),
        ("seed=3", "0"),
        ("unroll.length=5", "4"),
        ("meta.schedule=constant", "cosine"),
        ("optimizee=rosenbrock", "quadratic"),
        ("device.dtype=float64", "float32"),
        ("score=sum", "final"),
    ],
)
def test_other_settings_are_refused_and_lose_nothing(quick: Path, tmp_path: Path, setting: str, was: str) -> None:
    run = Path(shutil.copytree(quick, tmp_path / "run"))
    before = snapshot(run)
    key, value = setting.split("=")
    ended = train(None, f"resume={run}", *([] if key != "optimizee" else ["optimizee.dim=3"]), setting)
    assert_one_sentence(ended, str(run), key, value, was)
    after = snapshot(run)
    after["train.log"] = before["train.log"]  # which records the attempt
    assert after == before
    # Nor does the refused setting come back with the next resumption.
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, quick)


def test_no_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for path in ("nothing", "folder", "file", str(tmp_path / "nothing")):
        assert_one_sentence(train(None, f"resume={path}"), path, "is not a run")
    assert_one_sentence(train(None, "resume="), "resume is empty")
    assert_one_sentence(train(None, "resume=''"), "resume is empty")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_resuming_is_of_one_run_in_its_own_folder(quick: Path, tmp_path: Path) -> None:
    before = snapshot(quick)
    for arguments in (["-m"], ["--multirun"], [f"hydra.run.dir={tmp_path}"], ["-m", "meta.steps=7,8"]):
        assert_one_sentence(train(None, f"resume={quick}", *arguments), "resume=PATH", "-m")
    assert snapshot(quick) == before


def test_a_damaged_last_checkpoint_is_refused_and_the_run_left_alone(reference: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(reference, tmp_path / "run"))
    path = run / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:5000])
    before = snapshot(run)
    assert_one_sentence(train(None, f"resume={run}"), str(path), "damaged")
    assert snapshot(run) | {"train.log": b""} == before | {"train.log": b""}


# A full disk.


def no_room_for(monkeypatch: pytest.MonkeyPatch, name: str, time: int) -> None:
    """The file `name` meets a full disk at the given time."""
    count, replace = 0, os.replace

    def failing(source: Any, target: Any) -> None:
        nonlocal count
        count += Path(target).name == name
        if count == time:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize(
    ("name", "time"), [("00000000.png", 1), ("best.pt", 2), ("last.pt", 3), ("comparison.csv", 1), ("result.json", 1)]
)
def test_a_full_disk_ends_a_run_that_can_be_resumed(
    sketched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, time: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        no_room_for(patched, name, time)
        assert_one_sentence(train(run, *TINY), name, "No space left on device")
    assert not list(run.rglob("*.tmp"))
    if name != "00000000.png":
        assert last(run)["progress"]["step"] == {"best.pt": 0, "last.pt": 2}.get(name, 6)
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, sketched)


@pytest.mark.draws
def test_a_real_limit_on_file_sizes_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    # The first checkpoint holds no state of Adam's yet and fits under the limit; the next one doesn't.
    settings = [*QUICK, "optimizer.hidden=40"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(whole, *settings).code == 0
    limit = (whole / "checkpoints" / "last.pt").stat().st_size - 1000
    assert (whole / "learning.png").stat().st_size < limit
    limited = (
        f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {resource.RLIM_INFINITY})); "
        "runpy.run_module('l2l_runner.train', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", limited, *settings, f"hydra.run.dir={run}"]
    process = subprocess.run(command, text=True, capture_output=True, check=False)
    ended = Ended(process.returncode, process.stdout, process.stderr)
    assert_one_sentence(ended, "checkpoints", "File too large", "untouched")
    assert last(run)["progress"]["step"] == 0
    assert best(run)["progress"]["step"] == 0
    assert not list(run.rglob("*.tmp"))
    assert evaluate(tmp_path / "eval", f"checkpoint={run}", "tune.enabled=false", *EVAL).code == 0
    assert train(None, f"resume={run}").code == 0
    assert_same_run(run, whole)
    assert read_json(run / "result.json")["status"] == "completed"
