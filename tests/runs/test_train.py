"""A run of `train`: what it leaves behind, that a seed fixes every bit of it, and what it does about divergence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from l2l_runner.meta import TBPTT, Estimate
from running import (
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
    read_csv,
    read_json,
    records,
    same_bits,
    snapshot,
    spawn,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")
NAMES = ["lstm", "sgd", "nag", "rms", "adam"]


def test_a_run_leaves_all_its_files(reference: Path) -> None:
    expected = {
        "checkpoints/best.pt",
        "checkpoints/last.pt",
        "metrics.jsonl",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
        ".hydra/hydra.yaml",
        "train.log",
        "learning.png",
        "learning.gif",
        "comparison.json",
        "comparison.csv",
        "comparison.png",
        "result.json",
    }
    files = snapshot(reference)
    assert expected <= files.keys()
    assert all(files[name] for name in expected)
    assert not [name for name in files if name.endswith(".tmp")]


def test_the_metrics_are_a_json_object_a_line(reference: Path) -> None:
    steps = records(reference, "meta_step")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    for record in steps:
        assert record.keys() == {"event", "step", "horizon", "meta_loss", "final_loss", "grad_norm", "lr", "skipped"}
        assert record["meta_loss"] > 0
        assert record["grad_norm"] > 0
        assert record["skipped"] == 0
        assert record["horizon"] == 10
    validations = records(reference, "validation")
    assert [record["step"] for record in validations] == [0, 2, 4, 6]
    for record in validations:
        assert record["score"] == record["final"]["mean"]
        assert record["horizon"] == 10
        assert record["diverged"] == 0
        assert record["best_score"] == min(r["score"] for r in validations if r["step"] <= record["step"])


def test_the_meta_learning_rate_follows_the_cosine(reference: Path) -> None:
    rates = [record["lr"] for record in records(reference, "meta_step")]
    assert rates == pytest.approx([0.01 * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])


def test_every_validation_is_a_frame_of_the_animation(reference: Path) -> None:
    frames = sorted((reference / "frames").iterdir())
    assert [int(frame.stem) for frame in frames] == [record["step"] for record in records(reference, "validation")]
    with Image.open(reference / "learning.gif") as animation:
        assert animation.n_frames == len(frames)  # type: ignore[attr-defined]
        size = animation.size
    with Image.open(reference / "learning.png") as picture:
        assert picture.size == size
    assert (reference / "learning.png").read_bytes() == frames[-1].read_bytes()


def test_the_comparison_keeps_its_contract(reference: Path) -> None:
    comparison = read_json(reference / "comparison.json")
    assert (comparison["optimizee"], comparison["steps"], comparison["problems"]) == ("quadratic", 10, 4)
    assert list(comparison["optimizers"]) == NAMES
    for name, entry in comparison["optimizers"].items():
        assert (entry["lr"] is None) == (name == "lstm")
        assert len(entry["curve"]) == 11
        assert entry["final"]["mean"] == pytest.approx(entry["curve"][-1])
        assert entry["sum"]["mean"] == pytest.approx(sum(entry["curve"][:-1]))
        assert entry["final"]["ci95"] > 0
        assert entry["sum"]["ci95"] > 0
        assert entry["diverged"] == 0
    # All meet the same problems at the same starts.
    assert len({entry["curve"][0] for entry in comparison["optimizers"].values()}) == 1


def test_the_comparison_as_csv_has_a_row_an_optimizer(reference: Path) -> None:
    comparison = read_json(reference / "comparison.json")
    rows = read_csv(reference / "comparison.csv")
    assert [row["optimizer"] for row in rows] == NAMES
    for row in rows:
        entry = comparison["optimizers"][row["optimizer"]]
        assert row["lr"] == ("" if entry["lr"] is None else str(entry["lr"]))
        assert float(row["final_mean"]) == entry["final"]["mean"]
        assert float(row["sum_ci95"]) == entry["sum"]["ci95"]


def test_the_table_and_the_paths_are_printed(reference_ended: tuple[Path, Ended]) -> None:
    folder, ended = reference_ended
    comparison = read_json(folder / "comparison.json")
    table = [line.split() for line in ended.out.splitlines()]
    for name, entry in comparison["optimizers"].items():
        (row,) = [cells for cells in table if cells and cells[0] == name]
        assert row[1] == ("learned" if entry["lr"] is None else f"{entry['lr']:.3g}")
        assert f"{entry['final']['mean']:.4g}" in row
        assert f"{entry['sum']['mean']:.4g}" in row
    for name in (
        "comparison.json",
        "comparison.csv",
        "comparison.png",
        "learning.png",
        "learning.gif",
        "checkpoints/best.pt",
    ):
        assert str(folder / name) in ended.out.splitlines()
    assert (folder / "train.log").read_text().count("held-out") == 1  # the table is in the log file too


def test_nothing_but_errors_goes_to_stderr(reference_ended: tuple[Path, Ended]) -> None:
    assert reference_ended[1].err == ""


def test_the_baselines_rates_are_the_best_of_those_tried_on_validation_problems(
    reference: Path, tmp_path: Path
) -> None:
    # The validation problems are what a run of a hand-designed optimizer reports on, so a sweep must find the same.
    grid = [0.0001, 0.001, 0.01, 0.1, 1.0, 10.0]
    rates = ",".join(map(str, grid))
    sweep = tmp_path / "sweep"
    train(None, "-m", *QUADRATIC, "optimizer=sgd,adam", f"optimizer.lr={rates}", f"hydra.sweep.dir={sweep}")
    jobs = read_json(sweep / "sweep.json")
    assert len(jobs) == 12
    comparison = read_json(reference / "comparison.json")
    for name in ("sgd", "adam"):
        scores = {
            float(job["values"]["optimizer.lr"]): math.inf if job["score"] is None else job["score"]
            for job in jobs
            if job["values"]["optimizer"] == name
        }
        assert comparison["optimizers"][name]["lr"] == pytest.approx(min(scores, key=scores.__getitem__))


def test_refinements_try_rates_between_those_of_the_grid(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *TINY, "meta.steps=0", "evaluation.tune.refinements=2").code == 0
    optimizers = read_json(tmp_path / "run" / "comparison.json")["optimizers"]
    between = [abs(math.log10(optimizers[name]["lr"])) % 1 for name in NAMES[1:]]
    assert any(min(x, 1 - x) > 0.1 for x in between)


def test_without_tuning_the_baselines_keep_their_rates(tmp_path: Path) -> None:
    more = ["meta.steps=0", "evaluation.tune.enabled=false", "evaluation.baselines.adam.lr=0.025"]
    assert train(tmp_path / "run", *TINY, *more).code == 0
    optimizers = read_json(tmp_path / "run" / "comparison.json")["optimizers"]
    assert {name: optimizers[name]["lr"] for name in NAMES} == {
        "lstm": None,
        "sgd": 0.01,
        "nag": 0.01,
        "rms": 0.01,
        "adam": 0.025,
    }


def test_the_best_state_is_kept_and_compared_not_the_last(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *TINY, "meta.lr=5", "meta.clip=null", "meta.schedule=constant").code == 0
    validations = records(run, "validation")
    scores = {record["step"]: record["score"] for record in validations}
    reached = min(scores, key=scores.__getitem__)
    assert reached < 6, "these settings are meant to make the optimizer worse"
    assert best(run)["progress"]["step"] == reached
    assert last(run)["progress"]["step"] == 6
    assert last(run)["progress"]["best_step"] == reached
    result = read_json(run / "result.json")
    assert result["score"] == scores[reached]
    # An evaluation of best.pt gives the curve that the run reported, and one of last.pt another.
    for name, same in (("best", True), ("last", False)):
        more = [f"checkpoint={run}/checkpoints/{name}.pt", "tune.enabled=false", "device=cpu", "device.threads=1"]
        assert evaluate(tmp_path / name, *more).code == 0
        mine, theirs = (read_json(f / "comparison.json")["optimizers"]["lstm"] for f in (tmp_path / name, run))
        assert (mine["curve"] == theirs["curve"]) == same


def test_the_result_is_the_best_states_validation(reference: Path) -> None:
    result = read_json(reference / "result.json")
    assert result["status"] == "completed"
    (record,) = [r for r in records(reference, "validation") if r["step"] == best(reference)["progress"]["step"]]
    assert (result["final"], result["sum"], result["score"]) == (
        record["final"],
        record["sum"],
        record["final"]["mean"],
    )


def test_the_score_can_be_the_sum_of_losses(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *QUICK, "score=sum").code == 0
    assert all(record["score"] == record["sum"]["mean"] for record in records(tmp_path / "run", "validation"))
    result = read_json(tmp_path / "run" / "result.json")
    assert result["score"] == result["sum"]["mean"]


def test_a_second_run_with_the_same_seed_gives_the_same_bits(sketched: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *TINY).code == 0
    assert_same_run(tmp_path / "run", sketched)


@pytest.mark.draws
def test_another_process_gives_the_same_bits(reference: Path, tmp_path: Path) -> None:
    assert finish(spawn(*TINY, f"hydra.run.dir={tmp_path / 'run'}")).code == 0
    assert_same_run(tmp_path / "run", reference)


def test_another_seed_gives_another_run(quick: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *QUICK, "seed=1", "meta.steps=2").code == 0
    mine, theirs = tmp_path / "run", quick
    assert records(mine, "validation")[0]["score"] != records(theirs, "validation")[0]["score"]
    assert records(mine, "meta_step")[0]["meta_loss"] != records(theirs, "meta_step")[0]["meta_loss"]
    assert not same_bits(best(mine)["optimizer"], best(theirs)["optimizer"])


def test_evaluation_changes_nothing_that_is_learned(reference: Path, quick: Path) -> None:
    assert same_bits(last(reference)["optimizer"], last(quick)["optimizer"])
    assert (reference / "metrics.jsonl").read_bytes() == (quick / "metrics.jsonl").read_bytes()
    assert not (quick / "comparison.json").exists()
    assert (quick / "learning.gif").exists()


def test_two_runs_started_at_once_do_not_share_a_folder(tmp_path: Path) -> None:
    both = [Fork(*QUICK, "meta.steps=0", cwd=tmp_path) for _ in range(2)]
    assert [finish(process).code for process in both] == [0, 0]
    runs = [path.parent for path in (tmp_path / "outputs").glob("*/*/result.json")]
    assert len(runs) == 2
    assert all((run / "checkpoints" / "best.pt").exists() for run in runs)


@pytest.mark.parametrize("ended", [True, False])
def test_a_second_run_in_the_same_folder_is_refused_and_loses_nothing(quick: Path, tmp_path: Path, ended: bool) -> None:
    run = tmp_path / "run"
    if ended:
        assert train(run, *QUICK, "meta.steps=0").code == 0
    else:  # claimed, and nothing more: the run may be starting at this moment
        run.mkdir()
        (run / ".run").touch()
    before = snapshot(run)
    assert_one_sentence(
        train(run, *QUICK, "seed=5"), str(run), "already belongs to a run", f"resume={run}", "hydra.run.dir"
    )
    assert snapshot(run) == before


@pytest.mark.draws
def test_a_hand_designed_optimizer_is_run_on_the_validation_problems(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train(run, *QUADRATIC, "optimizer=adam", "optimizer.lr=0.1")
    assert ended.code == 0
    steps = records(run)
    assert [record["step"] for record in steps] == list(range(11))
    result = read_json(run / "result.json")
    assert result["final"]["mean"] == steps[-1]["loss"] == result["score"]
    assert result["final"]["mean"] < steps[0]["loss"]
    assert f"{result['final']['mean']:.4g}" in ended.out
    assert {"curve.png", "train.log", ".hydra/config.yaml"} <= snapshot(run).keys()
    assert not (run / "checkpoints").exists()


def test_no_meta_steps_keep_the_optimizer_as_it_was_drawn(quick: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *QUICK, "meta.steps=0").code == 0
    assert [record["step"] for record in records(tmp_path / "run")] == [0]
    first = records(quick, "validation")[0]
    assert records(tmp_path / "run", "validation") == [first]
    with Image.open(tmp_path / "run" / "learning.gif") as animation:
        assert animation.n_frames == 1  # type: ignore[attr-defined]


def test_patience_ends_a_run_that_gets_no_better(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = ["meta.lr=10", "meta.schedule=constant", "meta.steps=40", "meta.patience=2"]
    ended = train(run, *QUICK, *settings)
    assert ended.code == 0
    assert "no better score in 2 validations" in ended.out
    stopped, reached = last(run)["progress"]["step"], last(run)["progress"]["best_step"]
    assert stopped < 40
    assert stopped == reached + 2 * 2  # two validations, of two meta-steps each


def test_the_meta_batch_follows_the_optimizee_unless_it_is_given(quick: Path, tmp_path: Path) -> None:
    assert last(quick)["config"]["meta_batch"] == 4
    assert train(tmp_path / "run", *QUICK, "meta_batch=8", "meta.steps=1").code == 0
    mine, theirs = (records(run, "meta_step")[0]["meta_loss"] for run in (tmp_path / "run", quick))
    assert mine != theirs
    assert records(tmp_path / "run", "validation")[0] == records(quick, "validation")[0]


def test_the_learning_rate_warms_up(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *QUICK, "meta.warmup=0.5", "meta.schedule=constant").code == 0
    rates = [record["lr"] for record in records(tmp_path / "run", "meta_step")]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, 0.01, 0.01, 0.01, 0.01])


def test_double_precision_is_used_throughout(tmp_path: Path) -> None:
    assert train(tmp_path / "run", *QUICK, "device.dtype=float64", "meta.steps=1").code == 0
    assert {tensor.dtype for tensor in best(tmp_path / "run")["optimizer"].values()} == {torch.float64}


# A start from what another run has learned.


def test_a_run_can_start_from_what_another_has_learned(quick: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, f"init={quick}", "meta.steps=2").code == 0
    first, learned = records(run, "validation")[0], read_json(quick / "result.json")
    assert first["final"] == learned["final"]
    assert first["final"] != records(quick, "validation")[0]["final"]
    assert last(run)["meta_optimizer"]["state"][0]["step"] == 2 * 3  # Adam starts afresh


def test_such_a_run_is_resumed_from_its_own_state(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [*QUICK, f"init={quick}/checkpoints/last.pt", "meta.lr=0.02"]
    assert train(tmp_path / "whole", *settings).code == 0
    with monkeypatch.context() as patched:
        die_when_replacing(patched, "last.pt", 3)
        with pytest.raises(Death):
            train(tmp_path / "run", *settings)
    assert train(None, f"resume={tmp_path / 'run'}").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["init=nowhere.pt"], ["nowhere.pt", "no checkpoint"]),
        (["init="], ["init is ''", "a path"]),
        (["init=QUICK", "optimizer.hidden=5"], ["another architecture", "(1, 4)", "(1, 5)"]),
        (["init=QUICK", "optimizer.layers=1"], ["another architecture"]),
    ],
)
def test_a_start_that_does_not_fit_is_one_sentence(
    quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [argument.replace("QUICK", str(quick)) for argument in arguments]
    assert_one_sentence(train(tmp_path / "run", *QUICK, *given), *words)


# Divergence.

Change = Callable[[Estimate], Estimate]


def with_gradients(value: float) -> Change:
    """An estimate whose last gradient holds one such number."""

    def change(estimate: Estimate) -> Estimate:
        last_one = estimate.grads[-1].clone()
        last_one.view(-1)[0] = value
        return dataclasses.replace(estimate, grads=(*estimate.grads[:-1], last_one))

    return change


def with_meta_loss(value: float) -> Change:
    return lambda estimate: dataclasses.replace(estimate, meta_loss=torch.tensor(value))


def spoil(monkeypatch: pytest.MonkeyPatch, is_spoilt: Callable[[int, int], bool], change: Change) -> None:
    """Change the estimates of the windows for which is_spoilt(meta-step, window) holds; both count from 0."""
    honest, steps = TBPTT.estimates, iter(range(1000))

    def estimates(self: TBPTT, *arguments: Any) -> Iterator[Estimate]:
        step = next(steps)
        for window, estimate in enumerate(honest(self, *arguments)):
            yield change(estimate) if is_spoilt(step, window) else estimate

    monkeypatch.setattr(TBPTT, "estimates", estimates)


# A constant rate says nothing about the number of meta-steps; few validations save time.
CONSTANT = [*QUICK, "meta.schedule=constant", "meta.validate_every=100"]


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two meta-steps in which nothing is spoilt."""
    folder = tmp_path_factory.mktemp("two") / "run"
    assert train(folder, *CONSTANT, "meta.steps=2").code == 0
    return folder


@pytest.mark.parametrize(
    "change",
    [
        with_gradients(math.nan),
        with_gradients(math.inf),
        with_gradients(-math.inf),
        with_meta_loss(math.nan),
        with_meta_loss(math.inf),
    ],
)
def test_a_window_that_is_not_finite_changes_neither_parameters_nor_adam(
    two_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    spoil(monkeypatch, lambda step, window: (step, window) == (2, 0), change)
    assert train(tmp_path / "three", *CONSTANT, "meta.steps=3").code == 0
    for part in ("optimizer", "meta_optimizer"):
        assert same_bits(last(two_steps)[part], last(tmp_path / "three")[part])
    record = records(tmp_path / "three", "meta_step")[-1]
    assert record["skipped"] == 1
    assert record["meta_loss"] is None
    assert last(tmp_path / "three")["progress"]["skipped"] == 1


def test_the_windows_before_it_in_the_trajectory_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TBPTT.estimates

    def first_only(self: TBPTT, *arguments: Any) -> Iterator[Estimate]:
        yield next(iter(honest(self, *arguments)))

    with monkeypatch.context() as patched:
        patched.setattr(TBPTT, "estimates", first_only)
        assert train(tmp_path / "first", *CONSTANT, "meta.steps=1").code == 0
    spoil(monkeypatch, lambda step, window: window == 1, with_gradients(math.nan))
    assert train(tmp_path / "spoilt", *CONSTANT, "meta.steps=1").code == 0
    for part in ("optimizer", "meta_optimizer"):
        assert same_bits(last(tmp_path / "first")[part], last(tmp_path / "spoilt")[part])
    assert last(tmp_path / "spoilt")["progress"]["skipped"] == 1


def test_training_goes_on_after_a_window_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda step, window: step == 1, with_gradients(math.nan))
    run = tmp_path / "run"
    assert train(run, *CONSTANT).code == 0
    steps = records(run, "meta_step")
    assert [record["skipped"] for record in steps] == [0, 1, 1, 1, 1, 1]
    assert [record["meta_loss"] is None for record in steps] == [False, True, False, False, False, False]
    assert read_json(run / "result.json")["status"] == "completed"
    assert all(tensor.isfinite().all() for tensor in last(run)["optimizer"].values())
    assert last(run)["meta_optimizer"]["state"][0]["step"] == 5 * 3  # five meta-steps of three windows


def test_too_many_in_a_row_end_the_run_with_the_best_state_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, lambda step, window: step >= 2, with_gradients(math.nan))
    run = tmp_path / "run"
    ended = train(run, *TINY, "meta.max_skipped=3", "meta.steps=50")
    assert ended.code == 0
    assert "Stopped at meta-step 5: 3 meta-gradients in a row were not finite" in ended.out
    assert read_json(run / "result.json")["status"] == "diverged"
    assert last(run)["progress"]["step"] == 5
    assert best(run)["progress"]["step"] <= 2
    assert records(run, "meta_step")[-1]["skipped"] == 3
    assert read_json(run / "comparison.json")["optimizers"]["lstm"]["diverged"] == 0  # the best state did not diverge


def test_only_those_in_a_row_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda step, window: step in (0, 1, 3, 4), with_gradients(math.nan))
    run = tmp_path / "run"
    assert train(run, *QUICK, "meta.max_skipped=3").code == 0
    assert read_json(run / "result.json")["status"] == "completed"
    assert last(run)["progress"]["step"] == 6
    assert last(run)["progress"]["skipped"] == 4


@pytest.mark.draws
def test_a_baseline_that_diverges_is_shown_as_diverged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["meta.steps=2", "evaluation.tune.enabled=false", "evaluation.baselines.sgd.lr=1e10"]
    ended = train(run, *TINY, *more)
    assert ended.code == 0
    entry = read_json(run / "comparison.json")["optimizers"]["sgd"]  # strictly JSON: no NaN, no Infinity
    assert entry["final"] == {"mean": None, "ci95": None}
    assert entry["diverged"] == 4
    assert entry["curve"][-1] is None
    assert entry["curve"][0] > 0
    (row,) = [line for line in ended.out.splitlines() if line.startswith("sgd ")]
    assert row.endswith("4 of 4")
    assert row.split().count("diverged") == 2
    assert read_json(run / "comparison.json")["optimizers"]["adam"]["final"]["mean"] > 0
    with Image.open(run / "comparison.png") as picture:
        assert picture.format == "PNG"


def test_a_baseline_that_diverges_at_every_rate_is_said_to(tmp_path: Path) -> None:
    more = ["meta.steps=0", "evaluation.tune.low=1e9", "evaluation.tune.high=1e11"]
    ended = train(tmp_path / "run", *TINY, *more)
    assert ended.code == 0
    assert "sgd diverges at every learning rate" in ended.out
    assert read_json(tmp_path / "run" / "comparison.json")["optimizers"]["sgd"]["diverged"] == 4


@pytest.mark.draws
def test_a_learned_optimizer_that_diverges_is_shown_as_diverged(tmp_path: Path) -> None:
    run = tmp_path / "run"
    ended = train(run, *TINY, "optimizer.output_scale=1e30", "meta.max_skipped=2")
    assert ended.code == 0
    result = read_json(run / "result.json")
    assert result["status"] == "diverged"
    assert result["score"] is None
    assert last(run)["progress"]["step"] == 2
    assert all(tensor.isfinite().all() for tensor in last(run)["optimizer"].values())
    entry = read_json(run / "comparison.json")["optimizers"]["lstm"]
    assert entry["final"]["mean"] is None
    assert entry["diverged"] == 4
    (row,) = [line for line in ended.out.splitlines() if line.startswith("lstm ")]
    assert "diverged" in row
    assert [record["score"] for record in records(run, "validation")] == [None, None]
