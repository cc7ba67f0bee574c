"""`eval`: a trained optimizer against tuned baselines, on the optimizee it was trained on or on others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from l2l_runner.runs import checkpoint
from running import (
    EVAL,
    QUICK,
    Ended,
    assert_one_sentence,
    best,
    evaluate,
    finish,
    last,
    read_csv,
    read_json,
    same_bits,
    snapshot,
    spawn,
    train,
)

pytestmark = pytest.mark.usefixtures("sketches")

UNTUNED = [*EVAL, "tune.enabled=false"]


def curve(folder: Path, name: str = "lstm") -> list[float]:
    return list(read_json(folder / "comparison.json")["optimizers"][name]["curve"])


@pytest.fixture(scope="module")
def own_ended(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """The evaluation of the reference run's best.pt as it stands."""
    folder = tmp_path_factory.mktemp("own") / "eval"
    return folder, evaluate(folder, f"checkpoint={reference}/checkpoints/best.pt", *EVAL)


def test_on_its_own_optimizee_it_repeats_the_runs_comparison(reference: Path, own_ended: tuple[Path, Ended]) -> None:
    folder, ended = own_ended
    assert ended.code == 0, ended.err
    assert (folder / "comparison.json").read_bytes() == (reference / "comparison.json").read_bytes()
    assert (folder / "comparison.csv").read_bytes() == (reference / "comparison.csv").read_bytes()
    assert (folder / "comparison.png").read_bytes() == (reference / "comparison.png").read_bytes()


def test_its_result_is_that_of_the_comparison_metrics_included(tmp_path: Path) -> None:
    few = ["optimizee=digits", "problems=4", "steps=3", "baselines={}", *EVAL]
    assert evaluate(tmp_path / "eval", "checkpoint=mnist", *few).code == 0
    entry = read_json(tmp_path / "eval" / "comparison.json")["optimizers"]["lstm"]
    result = read_json(tmp_path / "eval" / "result.json")
    assert set(result["metrics"]) == {"accuracy"}
    assert {key: result[key] for key in ("final", "sum", "metrics")} == {
        key: entry[key] for key in ("final", "sum", "metrics")
    }


def test_it_leaves_its_record_and_says_so(own_ended: tuple[Path, Ended]) -> None:
    folder, ended = own_ended
    assert {"comparison.json", "comparison.csv", "comparison.png", "result.json", "eval.log"} <= snapshot(folder).keys()
    for name in ("comparison.json", "comparison.csv", "comparison.png"):
        assert str(folder / name) in ended.out.splitlines()
    comparison = read_json(folder / "comparison.json")
    result = read_json(folder / "result.json")
    assert result["final"] == comparison["optimizers"]["lstm"]["final"]
    assert result["score"] == result["final"]["mean"]
    assert [row["optimizer"] for row in read_csv(folder / "comparison.csv")] == ["lstm", "sgd", "nag", "rms", "adam"]
    with Image.open(folder / "comparison.png") as picture:
        assert picture.format == "PNG"


def test_it_leaves_the_run_alone(quick: Path, tmp_path: Path) -> None:
    before = snapshot(quick)
    assert evaluate(tmp_path / "eval", f"checkpoint={quick}", *UNTUNED).code == 0
    assert snapshot(quick) == before


def test_a_process_gives_the_same(reference: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={reference}", *EVAL, f"hydra.run.dir={tmp_path / 'eval'}"]
    ended = finish(spawn(*arguments, module="l2l_runner.eval"))
    assert (ended.code, ended.err) == (0, "")
    assert (tmp_path / "eval" / "comparison.json").read_bytes() == (reference / "comparison.json").read_bytes()
    assert "trained on quadratic for 6 meta-steps" in ended.out


def test_a_run_stands_for_its_best_checkpoint_and_another_can_be_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *QUICK, "meta.lr=5", "meta.clip=null", "meta.schedule=constant").code == 0
    assert not same_bits(best(run)["optimizer"], last(run)["optimizer"])
    for name, path in (("folder", run), ("best", run / "checkpoints/best.pt"), ("last", run / "checkpoints/last.pt")):
        assert evaluate(tmp_path / name, f"checkpoint={path}", *UNTUNED).code == 0
    assert curve(tmp_path / "folder") == curve(tmp_path / "best")
    assert curve(tmp_path / "last") != curve(tmp_path / "best")


def test_a_checkpoint_is_enough(reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Away from its run, in a folder of any name, relative to where the command is given.
    (tmp_path / "a b=c,d").mkdir()
    shutil.copy(reference / "checkpoints" / "best.pt", tmp_path / "a b=c,d" / "mine.pt")
    monkeypatch.chdir(tmp_path)
    for number, way in enumerate(["a b=c,d/mine.pt", "'a b=c,d/mine.pt'", "./a b=c,d/mine.pt"]):
        for more in ([], ["optimizee.dim=3"]):
            folder = tmp_path / f"{number}{len(more)}"
            ended = evaluate(folder, f"checkpoint={way}", *more, *UNTUNED)
            assert ended.code == 0, ended.err
            assert curve(folder) == curve(reference)


def test_another_optimizee_can_be_named(reference: Path, tmp_path: Path) -> None:
    more = ["optimizee=rosenbrock", "optimizee.validation_problems=4", "problems=6", "steps=25"]
    ended = evaluate(tmp_path / "eval", f"checkpoint={reference}", *more, *EVAL)
    assert ended.code == 0, ended.err
    comparison = read_json(tmp_path / "eval" / "comparison.json")
    assert (comparison["optimizee"], comparison["steps"], comparison["problems"]) == ("rosenbrock", 25, 6)
    assert all(len(entry["curve"]) == 26 for entry in comparison["optimizers"].values())
    assert "rosenbrock, 6 held-out problems, 25 steps" in ended.out
    assert "trained on quadratic" in ended.out


def test_digits_can_be_the_other_optimizee_and_show_their_accuracy(reference: Path, tmp_path: Path) -> None:
    more = ["optimizee=digits", "optimizee.hidden=[4]", "problems=2", "steps=2"]
    ended = evaluate(tmp_path / "eval", f"checkpoint={reference}", *more, *UNTUNED)
    assert ended.code == 0, ended.err
    for entry in read_json(tmp_path / "eval" / "comparison.json")["optimizers"].values():
        assert 0 <= entry["metrics"]["accuracy"]["mean"] <= 1
    assert "accuracy" in ended.out
    assert "accuracy_mean" in read_csv(tmp_path / "eval" / "comparison.csv")[0]


def test_single_keys_of_the_trained_optimizee_can_be_changed(reference: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path / "eval", f"checkpoint={reference}", "optimizee.dim=5", *UNTUNED).code == 0
    # All the rest is that of the trained one, which differs from the defaults of conf/optimizee/quadratic.yaml.
    trained = {key: f"optimizee.{key}={value}" for key, value in best(reference)["config"]["optimizee"].items()}
    in_full = [value for key, value in trained.items() if key not in ("name", "dim")]
    more = ["optimizee=quadratic", *in_full, "optimizee.dim=5"]
    assert evaluate(tmp_path / "full", f"checkpoint={reference}", *more, *UNTUNED).code == 0
    mine, full = (read_json(tmp_path / name / "comparison.json") for name in ("eval", "full"))
    assert mine == full
    assert mine["problems"] == 4
    assert curve(tmp_path / "eval") != curve(reference)


def test_lists_and_words_of_the_trained_optimizee_survive_a_change_of_another_key(tmp_path: Path) -> None:
    digits = ["optimizee=digits", "optimizee.hidden=[3,2]", "optimizee.activation=tanh", "optimizee.init_scale=1e-3"]
    run = tmp_path / "run"
    settings = [item for item in QUICK if item != "optimizee.dim=3"]
    assert train(run, *settings, *digits, "meta.steps=0").code == 0
    for name, more in (("same", []), ("set", ["optimizee.minibatch=64"]), ("other", ["optimizee.minibatch=2"])):
        assert evaluate(tmp_path / name, f"checkpoint={run}", *more, "steps=2", *UNTUNED).code == 0
    assert curve(tmp_path / "same") == curve(tmp_path / "set")  # 64 is what it was trained with
    assert curve(tmp_path / "same") != curve(tmp_path / "other")


def test_the_problems_are_the_runs_unless_another_seed_is_given(reference: Path, tmp_path: Path) -> None:
    for name, more in (("none", []), ("same", ["seed=0"]), ("other", ["seed=1"])):
        assert evaluate(tmp_path / name, f"checkpoint={reference}", *more, *UNTUNED).code == 0
    assert curve(tmp_path / "none") == curve(tmp_path / "same") == curve(reference)
    assert curve(tmp_path / "other") != curve(reference)


def test_baselines_can_be_taken_away_and_added(reference: Path, tmp_path: Path) -> None:
    more = ["~optimizer@baselines.sgd", "~optimizer@baselines.rms", "+optimizer@baselines.momentum=momentum"]
    assert evaluate(tmp_path / "eval", f"checkpoint={reference}", *more, *EVAL).code == 0
    mine, theirs = (read_json(folder / "comparison.json")["optimizers"] for folder in (tmp_path / "eval", reference))
    assert list(mine) == ["lstm", "nag", "adam", "momentum"]
    assert 0 < mine["momentum"]["lr"] <= 10
    assert mine["nag"] == theirs["nag"]


def test_baselines_can_be_taken_away_and_added_in_training_too(tmp_path: Path) -> None:
    more = ["~optimizer@evaluation.baselines.sgd", "+optimizer@evaluation.baselines.momentum=momentum"]
    settings = [item for item in QUICK if item != "evaluate=false"]
    assert train(tmp_path / "run", *settings, *more, "meta.steps=0").code == 0
    assert list(read_json(tmp_path / "run" / "comparison.json")["optimizers"]) == [
        "lstm",
        "nag",
        "rms",
        "adam",
        "momentum",
    ]


def test_the_score_decides_what_tuning_minimises(reference: Path, tmp_path: Path) -> None:
    fine = ["tune.per_decade=5", "tune.refinements=0", "device=cpu", "device.threads=1"]
    for score in ("final", "sum"):
        assert evaluate(tmp_path / score, f"checkpoint={reference}", f"score={score}", "steps=30", *fine).code == 0
    finals, sums = (read_json(tmp_path / score / "comparison.json")["optimizers"] for score in ("final", "sum"))
    assert {name: entry["lr"] for name, entry in finals.items()} != {name: entry["lr"] for name, entry in sums.items()}
    assert read_json(tmp_path / "sum" / "result.json")["score"] == sums["lstm"]["sum"]["mean"]


def test_small_chunks_give_the_same_problems(reference: Path, tmp_path: Path) -> None:
    # Memory is bounded by computing few problems at once, which must not change what is computed.
    assert evaluate(tmp_path / "eval", f"checkpoint={reference}", "chunk=3", *UNTUNED).code == 0
    assert curve(tmp_path / "eval") == pytest.approx(curve(reference), rel=1e-5)


def test_double_precision_can_be_asked_for(reference: Path, tmp_path: Path) -> None:
    assert evaluate(tmp_path / "eval", f"checkpoint={reference}", "device.dtype=float64", *UNTUNED).code == 0
    assert curve(tmp_path / "eval") == pytest.approx(curve(reference), rel=1e-4)
    assert curve(tmp_path / "eval") != curve(reference)


def test_others_meet_the_same_problems(reference: Path, quick: Path, tmp_path: Path) -> None:
    # Commas and equal signs in a path need no quotes.
    odd = tmp_path / "a=b.pt"
    shutil.copy(quick / "checkpoints" / "best.pt", odd)
    ended = evaluate(
        tmp_path / "both", f"checkpoint={reference}", f"others.twin={reference}", f"others.quick={odd}", *UNTUNED
    )
    assert ended.code == 0, ended.err
    both = read_json(tmp_path / "both" / "comparison.json")["optimizers"]
    assert list(both) == ["lstm", "twin", "quick", "sgd", "nag", "rms", "adam"]
    assert both["twin"]["curve"] == both["lstm"]["curve"]
    assert both["twin"]["paired"]["final"] == {"mean": 0.0, "ci95": 0.0}
    assert evaluate(tmp_path / "alone", f"checkpoint={odd}", *UNTUNED).code == 0
    assert both["quick"]["curve"] == curve(tmp_path / "alone")
    for source in (reference, odd):
        assert f"{source}, trained on quadratic" in ended.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["others.lstm=quadratic"], "the second lstm"),
        (["others.adam=quadratic"], "the second adam"),
        (["others.x="], "others.x is empty"),
    ],
)
def test_others_need_names_of_their_own(reference: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert_one_sentence(evaluate(tmp_path / "eval", f"checkpoint={reference}", *arguments, *UNTUNED), words)


def test_a_checkpoint_of_another_version_beside_one_of_this_is_said(quick: Path, tmp_path: Path) -> None:
    content = checkpoint.load(quick)
    checkpoint.save(tmp_path / "newer.pt", {**content, "config": {**content["config"], "optimizee": {"name": "maze9"}}})
    ended = evaluate(tmp_path / "eval", f"checkpoint={quick}", f"others.newer={tmp_path / 'newer.pt'}", "device=cpu")
    assert_one_sentence(ended, "This version cannot build", "newer.pt", "'maze9'")
