"""Evaluation: runs, scores, tuning, divergence, and the contract of the comparison."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from l2l_runner import streams
from l2l_runner.evaluation.comparison import Comparison, csv_of, table
from l2l_runner.evaluation.curves import DIVERGED, Curves, run
from l2l_runner.evaluation.evaluator import Evaluator, tune
from l2l_runner.evaluation.statistics import confidence_band, interval
from l2l_runner.optimizers import SGD, Adam
from l2l_runner.runs.results import Interval, Summary
from l2l_runner.schema import Evaluation, Tuning
from problems import EVERY_OPTIMIZEE, RUNTIME, UPDATE_RULES, any_optimizer, lstm, optimizee, plain

WHOLE = 10**6  # coordinates: all problems at once

# Runs


def plain_run(optimizer, distribution, seeds, steps):
    """Losses [steps + 1, problems] and the last parameters, problem by problem."""
    columns, finals = [], []
    for seed in seeds:
        problem = distribution.sample(seed.view(1), RUNTIME)
        theta = problem.layout.flatten(problem.init())
        state, losses = optimizer.init(theta), []
        for step in range(steps + 1):
            leaf = theta.clone().requires_grad_()
            loss = problem.loss(problem.layout.views(leaf), step)
            losses.append(loss.item())
            if step < steps:
                (grads,) = torch.autograd.grad(loss.sum(), leaf)
                with torch.no_grad():
                    update, state = optimizer.update(grads, state, theta)
                    theta = theta + update
        columns.append(losses)
        finals.append(theta)
    return torch.tensor(columns, dtype=torch.float64).T, finals


@pytest.mark.parametrize("stem", UPDATE_RULES)
@pytest.mark.parametrize("name", EVERY_OPTIMIZEE)
def test_run_is_a_naive_loop(name, stem):
    distribution, seeds = optimizee(name), streams.seeds(0, "test", 0, 3)
    optimizer = any_optimizer(stem, distribution.layout())
    expected, finals = plain_run(optimizer, distribution, seeds, 10)
    curves = run(optimizer, distribution, seeds, 10, RUNTIME, WHOLE)
    assert curves.losses.shape == (11, 3)
    assert not curves.losses.requires_grad
    torch.testing.assert_close(curves.losses, expected, rtol=1e-9, atol=1e-11)
    for i, theta in enumerate(finals):
        problem = distribution.sample(seeds[i : i + 1], RUNTIME)
        metrics = problem.metrics(problem.layout.views(theta))
        assert set(metrics) == set(curves.metrics)
        for metric, value in metrics.items():
            assert curves.metrics[metric][i].item() == pytest.approx(value.item(), abs=1e-12)


@pytest.mark.parametrize("stem", ["lstm", "adam"])
@pytest.mark.parametrize("name", ["quadratic", "digits"])
@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 100])
def test_chunks_change_nothing(name, stem, at_once):
    distribution, seeds = optimizee(name), streams.seeds(0, "test", 0, 5)
    size = distribution.layout().size
    optimizer = any_optimizer(stem, distribution.layout())
    whole = run(optimizer, distribution, seeds, 8, RUNTIME, WHOLE)
    chunked = run(optimizer, distribution, seeds, 8, RUNTIME, at_once * size)
    torch.testing.assert_close(chunked.losses, whole.losses, rtol=1e-10, atol=1e-12)
    assert set(chunked.metrics) == set(whole.metrics)
    for metric in whole.metrics:
        torch.testing.assert_close(chunked.metrics[metric], whole.metrics[metric], rtol=0, atol=1e-12)


def test_a_chunk_holds_as_many_problems_as_fit(monkeypatch):
    distribution = optimizee("quadratic", dim=4)
    sizes = []
    sample = type(distribution).sample
    monkeypatch.setattr(type(distribution), "sample", lambda self, s, r: sizes.append(len(s)) or sample(self, s, r))
    for chunk, expected in [(1, [1] * 5), (4, [1] * 5), (11, [2, 2, 1]), (16, [4, 1]), (1000, [5])]:
        sizes.clear()
        run(SGD(lr=0.01, weight_decay=0), distribution, streams.seeds(0, "test", 0, 5), 1, RUNTIME, chunk)
        assert sizes == expected


@pytest.mark.parametrize(("chunk", "parts"), [(WHOLE, 1), (8, 3)])
def test_progress_is_told_step_by_step(chunk, parts):
    ticks = []
    seeds = streams.seeds(0, "test", 0, 5)
    run(lstm(4), optimizee("quadratic"), seeds, 7, RUNTIME, chunk, on_step=lambda: ticks.append(1))
    assert len(ticks) == 7 * parts


def test_losses_are_kept_in_float64_whatever_they_are_computed_in():
    distribution, seeds = optimizee("quadratic"), streams.seeds(0, "test", 0, 3)
    optimizer = any_optimizer("adam", plain(4))
    single = run(optimizer, distribution, seeds, 5, type(RUNTIME)(), WHOLE)
    assert single.losses.dtype == torch.float64
    torch.testing.assert_close(
        single.losses, run(optimizer, distribution, seeds, 5, RUNTIME, WHOLE).losses, rtol=1e-4, atol=1e-5
    )


# Scores and divergence


def curves_of(*columns, **metrics):
    """Curves of problems given by their losses."""
    losses = torch.tensor(columns, dtype=torch.float64).T
    return Curves(losses, {name: torch.tensor(values, dtype=torch.float64) for name, values in metrics.items()})


def test_sums_finals_and_scores():
    curves = curves_of([4.0, 2.0, 1.0], [8.0, 4.0, 3.0])
    assert curves.sums.tolist() == [6.0, 12.0]  # f(θ_0) … f(θ_{T−1}): the losses that were met on the way
    assert curves.finals.tolist() == [1.0, 3.0]
    assert curves.score("final") == 2.0
    assert curves.score("sum") == 9.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_the_worst(bad):
    assert curves_of([1.0, 1.0, bad], [1.0, 1.0, 1.0]).score("final") == math.inf
    assert curves_of([1.0, bad, 1.0], [1.0, 1.0, 1.0]).score("sum") == math.inf


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([1.0, 0.5, 0.1], False),
        ([1.0, 50.0, 2.0], False),
        ([1.0, 50.0, 99.0], False),
        ([0.1, 0.1, 0.0], False),
        ([-1.0, -2.0, -3.0], False),
        ([1.0, 50.0, 1.01 * DIVERGED], True),
        ([-1.0, 50.0, 1.01 * DIVERGED], True),
        ([1.0, 0.5, math.nan], True),
        ([1.0, math.nan, 0.5], True),
        ([1.0, 0.5, math.inf], True),
        ([1.0, math.inf, 0.5], True),
        ([1.0, -math.inf, 0.5], True),
        ([math.nan, 1.0, 1.0], True),
    ],
    ids=[
        "healthy",
        "recovering",
        "somewhat-worse",
        "solved",
        "negative",
        "exploding",
        "exploding-from-below-zero",
        "nan-at-the-end",
        "nan-on-the-way",
        "inf-at-the-end",
        "inf-on-the-way",
        "minus-inf-on-the-way",
        "nan-at-the-start",
    ],
)
def test_divergence_is_flagged_and_nothing_else(losses, diverged):
    assert curves_of([1.0, 1.0, 1.0], losses).diverged.tolist() == [False, diverged]


@pytest.mark.parametrize("rate", [1.0, 1e30], ids=["exploding", "not-finite"])
def test_a_rate_that_is_too_high_is_flagged(rate):
    seeds = streams.seeds(0, "test", 0, 4)
    healthy = run(SGD(lr=0.001, weight_decay=0), optimizee("quadratic"), seeds, 30, RUNTIME, WHOLE)
    wild = run(SGD(lr=rate, weight_decay=0), optimizee("quadratic"), seeds, 30, RUNTIME, WHOLE)
    assert not healthy.diverged.any()
    assert wild.diverged.all()


# Confidence intervals


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50).filter(lambda values: np.std(values) > 1e-3))
@settings(deadline=None)
def test_an_interval_is_scipys_t_interval(values):
    ours = interval(torch.tensor(values, dtype=torch.float64))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert ours.mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert ours.ci95 == pytest.approx((high - low) / 2, rel=1e-8)


def test_one_problem_has_a_mean_and_no_interval():
    ours = interval(torch.tensor([3.0]))
    assert ours.mean == 3.0
    assert math.isnan(ours.ci95)


def test_equal_values_have_an_interval_of_zero():
    assert interval(torch.full((5,), 2.0)) == Interval(2.0, 0.0)


def test_a_band_is_the_interval_of_each_point():
    losses = torch.rand(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [interval(point).ci95 for point in losses]
    assert confidence_band(losses).tolist() == pytest.approx(expected, rel=1e-12)


# Tuning


def tuning(**changes):
    return Tuning(
        **{"enabled": True, "problems": None, "low": 1e-4, "high": 10.0, "per_decade": 3, "refinements": 2, **changes}
    )


ADAM = Adam(lr=0.5, weight_decay=0.25, beta1=0.8, beta2=0.9, eps=1e-3)


def valley(optimum, limit=math.inf):
    """A score with its minimum at the optimum, infinite above the limit."""
    return lambda baseline: math.inf if baseline.lr > limit else (math.log10(baseline.lr) - math.log10(optimum)) ** 2


@pytest.mark.parametrize("refinements", [0, 1, 2, 5])
@pytest.mark.parametrize("per_decade", [1, 3, 4])
@given(st.floats(1e-4, 10.0))
@settings(deadline=None, max_examples=30)
def test_tune_finds_the_best_rate_to_within_the_refined_grid(per_decade, refinements, optimum):
    # Wherever the best rate lies, half the grid's spacing is left, and each refinement halves it.
    best, _ = tune(ADAM, valley(optimum), tuning(per_decade=per_decade, refinements=refinements))
    left = 0.5 / per_decade / 2**refinements
    assert abs(math.log10(best.lr / optimum)) <= left + 1e-9


@given(st.floats(1e-4, 10.0), st.floats(0, 1))
@settings(deadline=None)
def test_tune_finds_the_best_rate_beside_divergence(optimum, room):
    limit = optimum * 10**room
    best, _ = tune(ADAM, valley(optimum, limit), tuning())
    assert best.lr <= limit
    assert abs(math.log10(best.lr / optimum)) <= 1 / 3 / 2**2 + 1e-9


def test_tune_finds_003():
    best, tried = tune(ADAM, valley(0.03, limit=0.5), tuning(refinements=4))
    assert best.lr == pytest.approx(0.03, rel=10 ** (0.5 / 3 / 2**4) - 1)
    assert any(score == math.inf for _, score in tried)


def test_tune_changes_the_rate_alone():
    seen = []
    best, _ = tune(ADAM, lambda baseline: seen.append(baseline) or abs(baseline.lr - 0.1), tuning())
    for baseline in [best, *seen]:
        assert (baseline.beta1, baseline.beta2, baseline.eps, baseline.weight_decay) == (0.8, 0.9, 1e-3, 0.25)
    assert ADAM.lr == 0.5


def test_tune_tries_each_rate_once_over_the_whole_range():
    rates = []
    _, tried = tune(ADAM, lambda baseline: rates.append(baseline.lr) or valley(0.03)(baseline), tuning(refinements=0))
    assert rates == pytest.approx([1e-4 * 10 ** (i / 3) for i in range(16)])
    assert tried == [(rate, valley(0.03)(SGD(lr=rate, weight_decay=0))) for rate in rates]
    _, tried = tune(ADAM, lambda baseline: rates.append(baseline.lr) or valley(0.03)(baseline), tuning(refinements=2))
    assert len(rates) == 16 + 20
    assert [rate for rate, _ in tried] == sorted(rates[16:])
    assert len(set(rates[16:])) == 20


@pytest.mark.parametrize(("high", "count"), [(1e-3, 4), (5e-4, 3), (1.1e-4, 1)])
def test_tune_stays_within_the_range_without_refinements(high, count):
    _, tried = tune(ADAM, valley(0.03), tuning(low=1e-4, high=high, refinements=0))
    assert len(tried) == count
    assert all(1e-4 <= rate <= high * (1 + 1e-9) for rate, _ in tried)


def test_tune_keeps_a_rate_when_all_diverge():
    best, tried = tune(ADAM, lambda baseline: math.inf, tuning())
    assert len(tried) == 20
    assert all(score == math.inf for _, score in tried)
    assert best.lr in [rate for rate, _ in tried]


def test_tuning_that_is_switched_off_leaves_the_baseline():
    def score(baseline):
        raise AssertionError("nothing is to be run")

    assert tune(ADAM, score, tuning(enabled=False)) == (ADAM, [])


# Comparisons


def comparison():
    return Comparison(
        "digits",
        {
            "lstm": curves_of([4.0, 2.0, 1.0], [6.0, 3.0, 2.0], [5.0, 3.0, 1.0], accuracy=[0.9, 0.8, 0.7]),
            "adam": curves_of([4.0, 3.0, 2.0], [6.0, 4.0, 3.0], [5.0, 4.0, 4.0], accuracy=[0.6, 0.5, 0.4]),
            "sgd": curves_of([4.0, 3.0, 2.0], [6.0, math.inf, math.nan], [5.0, 5.0, 900.0], accuracy=[0.3, 0.1, 0.1]),
        },
        {"lstm": None, "adam": 0.01, "sgd": 1.5},
    )


def test_summary_has_the_keys_of_the_contract():
    summary = comparison().summary().to_json()
    assert set(summary) == {"optimizee", "steps", "problems", "optimizers"}
    assert (summary["optimizee"], summary["steps"], summary["problems"]) == ("digits", 2, 3)
    assert list(summary["optimizers"]) == ["lstm", "adam", "sgd"]
    for name, entry in summary["optimizers"].items():
        assert {"lr", "sum", "final", "diverged", "curve"} <= set(entry)
        assert set(entry["sum"]) == set(entry["final"]) == {"mean", "ci95"}
        assert type(entry["diverged"]) is int
        assert len(entry["curve"]) == summary["steps"] + 1
        assert all(type(loss) is float for loss in entry["curve"])
        assert entry["lr"] == {"lstm": None, "adam": 0.01, "sgd": 1.5}[name]
    json.dumps(summary)  # plain values only


def close(ours, theirs):
    """Whether two intervals are the same but for rounding."""
    return (ours.mean, ours.ci95) == pytest.approx((theirs.mean, theirs.ci95))


def test_summary_agrees_with_itself_and_with_the_losses():
    optimizers = comparison().summary().optimizers
    for entry in (optimizers["lstm"], optimizers["adam"]):
        assert entry.sum.mean == pytest.approx(sum(entry.curve[:-1]))
        assert entry.final.mean == pytest.approx(entry.curve[-1])
        assert entry.ci95[-1] == pytest.approx(entry.final.ci95)
    assert optimizers["lstm"].curve == pytest.approx([5.0, 8 / 3, 4 / 3])
    assert close(optimizers["adam"].sum, interval([7.0, 10.0, 9.0]))
    assert optimizers["adam"].metrics["accuracy"].mean == pytest.approx(0.5)


def test_summary_compares_problem_by_problem_with_the_first():
    optimizers = comparison().summary().optimizers
    assert optimizers["lstm"].paired is None
    assert "paired" not in optimizers["lstm"].to_json()
    paired = optimizers["adam"].paired
    assert paired.against == "lstm"
    assert close(paired.sum, interval([1.0, 1.0, 1.0]))
    assert close(paired.final, interval([1.0, 1.0, 3.0]))


def test_divergence_is_never_dropped():
    # One bad problem of three: the mean mustn't be taken over the other two.
    entry = comparison().summary().optimizers["sgd"]
    assert entry.diverged == 2
    assert not math.isfinite(entry.final.mean)
    assert not math.isfinite(entry.sum.mean)
    assert not any(math.isfinite(loss) for loss in entry.curve[1:])
    assert entry.curve[0] == pytest.approx(5.0)


def test_a_finite_explosion_counts_in_the_mean_and_as_diverged():
    curves = {"lstm": curves_of([1.0, 1.0], [1.0, 1.0]), "sgd": curves_of([1.0, 1.0], [1.0, 999.0])}
    entry = Comparison("quadratic", curves, {"lstm": None, "sgd": 1.0}).summary().optimizers["sgd"]
    assert entry.diverged == 1
    assert entry.final.mean == pytest.approx(500.0)


def test_csv_has_a_row_for_each_optimizer():
    summary = comparison().summary()
    rows = list(csv.DictReader(io.StringIO(csv_of(summary))))
    assert [row["optimizer"] for row in rows] == ["lstm", "adam", "sgd"]
    for row in rows:
        entry = summary.optimizers[row["optimizer"]]
        assert (row["optimizee"], int(row["steps"]), int(row["problems"])) == ("digits", 2, 3)
        assert int(row["diverged"]) == entry.diverged
        assert row["lr"] == ("" if entry.lr is None else str(entry.lr))
        for key, value in {"sum": entry.sum, "final": entry.final, **entry.metrics}.items():
            assert float(row[f"{key}_mean"]) == pytest.approx(value.mean, nan_ok=True)
            assert float(row[f"{key}_ci95"]) == pytest.approx(value.ci95, nan_ok=True)
        assert [float(loss) for loss in row["curve"].split()] == pytest.approx(entry.curve, rel=1e-5, nan_ok=True)


def test_table_has_a_line_for_each_optimizer_and_shows_divergence():
    lines = table(comparison().summary()).splitlines()
    assert "digits" in lines[0]
    assert "3 held-out problems" in lines[0]
    assert "2 steps" in lines[0]
    assert lines[1].split()[:2] == ["optimizer", "lr"]
    learned, adam, sgd = lines[2:]
    assert learned.split()[:2] == ["lstm", "learned"]
    assert adam.split()[:2] == ["adam", "0.01"]
    assert "diverged" not in learned + adam
    assert "0 of 3" in learned
    assert f"{26 / 3:.4g} ±" in adam
    assert sgd.count("diverged") == 2  # for the sum and for the final loss
    assert "2 of 3" in sgd


def test_table_is_the_same_for_a_summary_that_was_read_from_json():
    # JSON has no NaN and no infinity; what is written has null for them.
    def nulled(value):
        if isinstance(value, dict):
            return {key: nulled(item) for key, item in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    summary = comparison().summary()
    assert table(Summary.from_json(nulled(summary.to_json()))) == table(summary)


def evaluation(**changes):
    baselines = {"sgd": SGD(lr=1.0, weight_decay=0), "adam": ADAM}
    settings = {"steps": None, "problems": None, "tune": tuning(per_decade=1, refinements=1), "chunk": WHOLE}
    return Evaluation(baselines=baselines, **{**settings, **changes})


def evaluator(distribution, steps, settings, score="final"):
    return Evaluator(optimizee=distribution, seed=7, steps=steps, score=score, settings=settings, runtime=RUNTIME)


def test_all_are_compared_on_the_same_held_out_problems():
    distribution = optimizee("quadratic")
    rules = {"lstm": lstm(4), "adam": ADAM, "sgd": SGD(lr=0.01, weight_decay=0)}
    made = evaluator(distribution, 6, evaluation(problems=5, chunk=8)).compare(rules)
    assert list(made.curves) == ["lstm", "adam", "sgd"]
    assert made.rates == {"lstm": None, "adam": 0.5, "sgd": 0.01}
    for name, optimizer in {"lstm": lstm(4), "adam": ADAM}.items():
        expected = run(optimizer, distribution, streams.seeds(7, "test", 0, 5), 6, RUNTIME, WHOLE)
        torch.testing.assert_close(made.curves[name].losses, expected.losses, rtol=1e-10, atol=1e-12)
    assert torch.equal(made.curves["adam"].losses[0], made.curves["sgd"].losses[0])


def test_baselines_are_tuned_on_validation_problems_for_the_score():
    distribution, settings = optimizee("quadratic", validation_problems=6), evaluation(tune=tuning(per_decade=2))
    seeds = streams.seeds(7, "validation", 0, 6)
    rates = {}
    for score in ("final", "sum"):
        tuned = evaluator(distribution, 60, settings, score).tuned()
        assert list(tuned) == ["sgd", "adam"]
        for name, baseline in settings.baselines.items():

            def score_of(candidate, score=score):
                return run(candidate, distribution, seeds, 60, RUNTIME, WHOLE).score(score)

            assert tuned[name] == tune(baseline, score_of, settings.tune)[0]
        rates[score] = tuned["adam"].lr
    assert rates["final"] < rates["sum"]  # a low final loss wants small steps, a low sum a quick start


def test_a_baseline_that_always_diverges_is_kept_and_said(caplog):
    always_too_high = evaluation(tune=tuning(low=1e3, high=1e5, per_decade=1, refinements=0))
    tuned = evaluator(optimizee("quadratic"), 200, always_too_high).tuned()
    assert list(tuned) == ["sgd", "adam"]
    assert "sgd diverges at every learning rate" in caplog.text


def test_a_best_rate_at_the_end_of_the_range_is_said(caplog):
    too_low = evaluation(tune=tuning(low=1e-7, high=1e-5, per_decade=1, refinements=0))
    evaluator(optimizee("quadratic"), 10, too_low).tuned()
    assert "The best learning rate of sgd, 1e-05, is at the end" in caplog.text


def test_validation_runs_on_the_validation_problems_for_as_many_steps_as_asked():
    distribution = optimizee("quadratic", validation_problems=6)
    seeds = streams.seeds(7, "validation", 0, 6)
    for asked, steps in ((None, 8), (3, 3)):
        curves = evaluator(distribution, 8, evaluation()).validate(ADAM, asked)
        assert torch.equal(curves.losses, run(ADAM, distribution, seeds, steps, RUNTIME, WHOLE).losses)


def test_what_the_settings_say_of_the_comparison_comes_before_the_optimizees_and_the_runs():
    distribution = optimizee("quadratic", test_problems=5)
    default = evaluator(distribution, 6, evaluation()).compare({"adam": ADAM})
    assert default.curves["adam"].losses.shape == (7, 5)
    other = evaluator(distribution, 6, evaluation(steps=4, problems=3)).compare({"adam": ADAM})
    assert other.curves["adam"].losses.shape == (5, 3)
