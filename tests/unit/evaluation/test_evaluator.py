"""Tuned baselines and fair comparisons."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2l_runner import streams
from l2l_runner.evaluation.curves import run
from l2l_runner.evaluation.evaluator import Evaluator, tune
from l2l_runner.optimizers import SGD, Adam
from l2l_runner.schema import Evaluation, Tuning
from problems import RUNTIME, lstm, optimizee

WHOLE = 10**6  # coordinates: all problems at once

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
    seen: list[Any] = []
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
