"""Sweeps (`-m`): every job counts, a failure hides no other, and the end sums them all up."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from l2l_runner.plots.sweeps import SweepPoint, draw_sweep
from l2l_runner.runs.results import RunResult
from l2l_runner.training.hand_designed import HandDesignedRun
from running import (
    EVAL,
    QUADRATIC,
    QUICK,
    Ended,
    Fork,
    Spy,
    assert_same_run,
    evaluate,
    finish,
    last,
    read_csv,
    read_json,
    records,
    sketch,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")


def sweep(folder: Path, *arguments: str) -> Ended:
    return train(None, "-m", *arguments, f"hydra.sweep.dir={folder}")


@pytest.fixture(scope="module")
def rates_ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A sweep over learning rates of Adam."""
    folder = tmp_path_factory.mktemp("rates") / "sweep"
    return folder, sweep(folder, *QUADRATIC, "optimizer=adam", "optimizer.lr=0.001,0.01,0.1")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over meta-learning rates of the LSTM."""
    folder = tmp_path_factory.mktemp("learned") / "sweep"
    with pytest.MonkeyPatch.context() as patched:
        sketch(patched)
        assert sweep(folder, *QUICK, "optimizer=lstm", "meta.lr=0.01,0.001").code == 0
    return folder


def test_a_sweep_is_summed_up(rates_ended: tuple[Path, Ended]) -> None:
    folder, ended = rates_ended
    assert ended.code == 0
    rows, jobs = read_csv(folder / "sweep.csv"), read_json(folder / "sweep.json")
    assert [row["optimizer.lr"] for row in rows] == ["0.001", "0.01", "0.1"]
    assert [job["values"] for job in jobs] == [{"optimizer.lr": rate} for rate in ("0.001", "0.01", "0.1")]
    for number, (row, job) in enumerate(zip(rows, jobs, strict=True)):
        result = read_json(folder / str(number) / "result.json")
        assert (row["job"], job["job"], row["status"], job["status"]) == (*2 * (str(number),), *2 * ("completed",))
        assert (
            job["score"] == job["final"]["mean"] == result["score"] == float(row["final_mean"]) == float(row["score"])
        )
        assert job["sum"] == result["sum"]
        assert float(row["sum_ci95"]) == result["sum"]["ci95"]
    assert len({job["score"] for job in jobs}) == 3
    with Image.open(folder / "sweep.png") as picture:
        assert picture.format == "PNG"


def test_a_sweep_prints_its_table_its_best_job_and_its_files(rates_ended: tuple[Path, Ended]) -> None:
    folder, ended = rates_ended
    jobs = read_json(folder / "sweep.json")
    table = [line.split() for line in ended.out.splitlines()]
    for job in jobs:
        (row,) = [cells for cells in table if cells[:2] == [job["job"], job["values"]["optimizer.lr"]]]
        assert f"{job['final']['mean']:.4g}" in row
        assert row[-1] == "completed"
    winner = min(jobs, key=lambda job: job["score"])
    assert f"best: optimizer.lr={winner['values']['optimizer.lr']} (job {winner['job']})" in ended.out.splitlines()
    for name in ("sweep.csv", "sweep.json", "sweep.png"):
        assert str(folder / name) in ended.out.splitlines()


def test_the_score_of_a_job_is_its_final_loss(rates_ended: tuple[Path, Ended]) -> None:
    folder, _ = rates_ended
    for number in range(3):
        assert read_json(folder / str(number) / "result.json")["score"] == records(folder / str(number))[-1]["loss"]


def test_a_job_of_a_sweep_is_the_same_run_alone(learned: Path, tmp_path: Path) -> None:
    for number, rate in enumerate(("0.01", "0.001")):
        assert train(tmp_path / rate, *QUICK, f"meta.lr={rate}").code == 0
        assert_same_run(learned / str(number), tmp_path / rate)


def test_a_job_of_a_sweep_can_be_resumed_and_evaluated(learned: Path, tmp_path: Path) -> None:
    job = Path(shutil.copytree(learned / "1", tmp_path / "job"))
    assert train(None, f"resume={job}", "meta.steps=7").code == 0
    assert last(job)["progress"]["step"] == 7
    assert last(job)["config"]["meta"]["lr"] == 0.001
    assert evaluate(tmp_path / "eval", f"checkpoint={job}", "tune.enabled=false", *EVAL).code == 0


def test_a_sweeper_gets_the_score_of_each_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spy, "returned", [])
    folder = tmp_path / "sweep"
    arguments = [*QUADRATIC, "optimizer=sgd", "optimizer.lr=0.01,1e10,-1", "+hydra.callbacks.spy._target_=running.Spy"]
    assert sweep(folder, *arguments).code == 1
    scores = [read_json(folder / str(number) / "result.json")["score"] for number in range(3)]
    assert scores[0] > 0
    assert scores[1:] == [None, None]
    assert Spy.returned == [scores[0], float("inf"), float("inf")]  # so that no sweeper is drawn to a failure


@pytest.mark.draws
@pytest.mark.parametrize("values", ["3,0", "0,3"])
def test_a_failing_job_hides_no_other(tmp_path: Path, values: str) -> None:
    folder, sentence = tmp_path / "sweep", "optimizee.dim is 0; expected an integer ≥ 1."
    ended = sweep(folder, *QUICK, "meta.steps=1", f"optimizee.dim={values}")
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err
    jobs = {job["values"]["optimizee.dim"]: job for job in read_json(folder / "sweep.json")}
    assert jobs["3"]["status"] == "completed"
    assert jobs["3"]["score"] > 0
    assert (jobs["0"]["status"], jobs["0"]["score"], jobs["0"]["error"]) == ("failed", None, sentence)
    rows = {row["optimizee.dim"]: row for row in read_csv(folder / "sweep.csv")}
    assert (rows["0"]["status"], rows["0"]["final_mean"], rows["0"]["error"]) == ("failed", "", sentence)
    assert f"job {jobs['0']['job']} failed: {sentence}" in ended.out.splitlines()
    assert f"best: optimizee.dim=3 (job {jobs['3']['job']})" in ended.out.splitlines()
    assert (folder / "sweep.png").exists()


def test_a_process_says_so_too(tmp_path: Path) -> None:
    ended = finish(
        Fork("-m", *QUADRATIC, "optimizer=sgd", "optimizer.lr=0.01,-1", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    )
    assert ended.code == 1
    assert "optimizer.lr is -1" in ended.out
    assert "Traceback" not in ended.out + ended.err
    assert [job["status"] for job in read_json(tmp_path / "sweep" / "sweep.json")] == ["completed", "failed"]


@pytest.mark.draws
def test_a_sweep_of_which_every_job_fails_says_so(tmp_path: Path) -> None:
    ended = sweep(tmp_path / "sweep", *QUICK, "optimizee.dim=0,-1")
    assert ended.code == 1
    assert [job["status"] for job in read_json(tmp_path / "sweep" / "sweep.json")] == ["failed", "failed"]
    assert "best:" not in ended.out


def test_a_bug_in_one_job_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = HandDesignedRun.finish

    def buggy(run: HandDesignedRun) -> RunResult:
        if run.rule.lr == 0.01:
            raise ZeroDivisionError("a bug")
        return finish(run)

    monkeypatch.setattr(HandDesignedRun, "finish", buggy)
    folder = tmp_path / "sweep"
    ended = sweep(folder, *QUADRATIC, "optimizer=sgd", "optimizer.lr=0.001,0.01,0.1")
    assert ended.code == 1
    jobs = read_json(folder / "sweep.json")
    assert [job["status"] for job in jobs] == ["completed", "failed", "completed"]
    assert "a bug" in jobs[1]["error"]
    assert "Traceback" in (folder / "1" / "train.log").read_text()  # a bug's traceback is kept for whoever mends it


@pytest.mark.draws
def test_a_diverging_job_is_shown_and_not_the_best(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    ended = sweep(folder, *QUADRATIC, "optimizer=sgd", "optimizer.lr=1e10,0.01")
    assert ended.code == 0
    jobs = read_json(folder / "sweep.json")
    assert jobs[0]["score"] is None
    assert jobs[0]["final"]["mean"] is None
    (row,) = [line for line in ended.out.splitlines() if line.startswith("0 ")]
    assert "diverged" in row
    assert "best: optimizer.lr=0.01 (job 1)" in ended.out.splitlines()


@pytest.mark.draws
def test_groups_and_two_keys_can_be_swept_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    ended = sweep(folder, *QUADRATIC, "optimizer=sgd,adam", "optimizee=quadratic,rosenbrock")
    assert ended.code == 0
    jobs = read_json(folder / "sweep.json")
    pairs = {(job["values"]["optimizer"], job["values"]["optimizee"]) for job in jobs}
    assert pairs == {(a, b) for a in ("sgd", "adam") for b in ("quadratic", "rosenbrock")}
    assert set(jobs[0]["values"]) == {"optimizer", "optimizee"}  # the settings that all jobs share are left out
    assert (folder / "sweep.png").exists()


@pytest.mark.draws
def test_lists_can_be_swept(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    settings = [item for item in QUADRATIC if item != "optimizee.dim=3"]
    assert sweep(folder, *settings, "optimizee=digits", "optimizer=sgd", "optimizee.hidden=[4],[4,3],[]").code == 0
    assert [row["optimizee.hidden"] for row in read_csv(folder / "sweep.csv")] == ["[4]", "[4,3]", "[]"]
    assert len({job["score"] for job in read_json(folder / "sweep.json")}) == 3


def test_evaluations_can_be_swept(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    arguments = [
        f"checkpoint={reference}",
        *EVAL,
        "tune.enabled=false",
        "optimizee.dim=2,5",
        f"hydra.sweep.dir={folder}",
    ]
    ended = evaluate(None, "-m", *arguments)
    assert ended.code == 0, ended.err
    jobs = read_json(folder / "sweep.json")
    assert [job["values"]["optimizee.dim"] for job in jobs] == ["2", "5"]
    for job in jobs:
        comparison = read_json(folder / job["job"] / "comparison.json")
        assert comparison["optimizers"]["lstm"]["final"]["mean"] == job["score"]


def test_a_sweep_makes_its_folder_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(None, "--multirun", *QUADRATIC, "optimizer=sgd", "optimizer.lr=0.01,0.1").code == 0
    (summary,) = (tmp_path / "outputs").glob("*/*-sweep/sweep.json")
    assert len(read_json(summary)) == 2
    assert sorted(path.name for path in summary.parent.iterdir() if path.is_dir()) == [".sweep", "0", "1"]


@pytest.mark.parametrize("choice", ["optimizee=foo,quadratic", "optimizer.foo=1,2", "optimizer=adam", "optimizer.lr="])
def test_what_no_job_can_be_made_of_is_one_sentence(tmp_path: Path, choice: str) -> None:
    settings = QUADRATIC if choice != "optimizer=adam" else [*QUADRATIC, "optimizer.hidden=1,2"]
    ended = sweep(tmp_path / "sweep", *settings, choice)
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1


def test_what_else_the_jobs_have_read_is_summed_up_too(tmp_path: Path) -> None:
    few = ["optimizee.validation_problems=2", "unroll.steps=3", "evaluate=false", "device=cpu", "device.threads=1"]
    ended = sweep(tmp_path, "optimizee=digits", "optimizer=sgd,adam", "optimizer.lr=0.1,0.2", *few)
    assert ended.code == 0
    for number, row in enumerate(read_csv(tmp_path / "sweep.csv")):
        accuracy = read_json(tmp_path / str(number) / "result.json")["metrics"]["accuracy"]
        assert float(row["accuracy_mean"]) == accuracy["mean"]
        assert float(row["accuracy_ci95"]) == accuracy["ci95"]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 1.5 * picture.height  # a second panel
    assert "accuracy" in ended.out


def test_metrics_have_a_linear_axis_and_methods_their_names() -> None:
    points = [
        SweepPoint({"optimizer": name, "n": n}, mean=mean, ci95=0.1)
        for name, n, mean in [
            ("leap", "5", 0.5),
            ("leap", "25", 0.7),
            ("warp_leap", "5", 0.6),
            ("warp_leap", "25", 0.05),
        ]
    ]
    axes = Figure().add_subplot()
    draw_sweep(axes, points, losses=False)
    assert axes.get_yscale() == "linear"
    assert axes.get_legend_handles_labels()[1] == ["Leap", "Warp-Leap"]
