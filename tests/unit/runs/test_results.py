"""The typed content of result files: what is written is what is read, whatever the numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2l_runner.files import jsonable
from l2l_runner.runs.results import Entry, Interval, MetricCurve, Paired, RunResult, Summary

NAN = math.nan
numbers = st.floats(allow_infinity=False)
names = st.text("abc_", min_size=1, max_size=4)
intervals = st.builds(Interval, numbers, numbers)
of_metrics = st.dictionaries(names.filter(lambda name: name not in ("against", "sum", "final")), intervals, max_size=2)


@st.composite
def curves(draw: Any) -> tuple[list[float], list[float]]:
    """Means with as many half-widths."""
    count = draw(st.integers(1, 4))
    mean, ci95 = (draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(2))
    return mean, ci95


@st.composite
def metric_curves(draw: Any) -> MetricCurve:
    mean, ci95 = draw(curves())
    return MetricCurve(list(range(len(mean))), draw(intervals), mean, ci95)


@st.composite
def entries(draw: Any) -> Entry:
    curve, ci95 = draw(curves())
    return Entry(
        lr=draw(st.none() | st.floats(1e-6, 10)),
        sum=draw(intervals),
        final=draw(intervals),
        diverged=draw(st.integers(0, 9)),
        curve=curve,
        ci95=ci95,
        metrics=draw(of_metrics),
        readings=draw(st.dictionaries(names, metric_curves(), max_size=2)),
        paired=draw(st.none() | st.builds(Paired, names, intervals, intervals, of_metrics)),
    )


summaries = st.builds(
    Summary,
    optimizee=names,
    steps=st.integers(1, 100),
    problems=st.integers(1, 100),
    optimizers=st.dictionaries(names, entries(), max_size=3),
    gain=st.none() | names,
    tasks=st.none() | st.integers(1, 9),
)


def through_json(content: Any) -> Any:
    """What is read of content that was written: JSON has null for NaN."""
    return json.loads(json.dumps(jsonable(content), allow_nan=False))


@given(summaries)
def test_a_summary_is_read_as_it_was_written(summary: Summary) -> None:
    read = Summary.from_json(through_json(summary.to_json()))
    assert repr(read) == repr(summary)  # as NaN is not equal to itself
    assert through_json(read.to_json()) == through_json(summary.to_json())


def test_a_number_that_is_not_finite_is_read_as_nan():
    assert repr(Interval.from_json(through_json(Interval(math.inf, -math.inf).to_json()))) == repr(Interval(NAN, NAN))


def test_a_curve_without_its_intervals_is_refused():
    content = Entry(None, Interval(1.0), Interval(1.0), 0, [1.0, 2.0], [0.1, 0.2]).to_json()
    for ci95, curve in (([0.1], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="a curve of"):
            Entry.from_json({**content, "curve": curve, "ci95": ci95})
    with pytest.raises(KeyError):
        Entry.from_json({key: value for key, value in content.items() if key != "final"})


def test_losses_that_are_minus_a_gain_are_shown_with_the_other_sign():
    summary = Summary("maze", 1, 1, {}, gain="return")
    assert (summary.sign, Summary("quadratic", 1, 1, {}).sign) == (-1, 1)
    assert Interval(-3.0, 0.5).shown(summary.sign) == "3 ± 0.5"
    assert [Interval(value).shown() for value in (NAN, math.inf)] == ["diverged"] * 2


@given(
    st.builds(
        RunResult,
        status=st.sampled_from(["completed", "diverged", "failed"]),
        score=st.floats(-1e6, 1e6),
        final=st.none() | intervals,
        sum=st.none() | intervals,
        metrics=of_metrics,
    )
)
def test_a_result_is_read_as_it_was_written(result: RunResult) -> None:
    assert repr(RunResult.from_json(through_json(result.to_json()))) == repr(result)


def test_a_completed_run_without_a_finite_score_has_diverged():
    read = RunResult.from_json(through_json(RunResult("completed", math.inf).to_json()))
    assert read.status == "diverged"
    assert read.has_ended
    failed = RunResult.from_json(through_json(RunResult("failed", NAN, error="no data").to_json()))
    assert (failed.status, failed.error, failed.has_ended) == ("failed", "no data", False)
    with pytest.raises(KeyError):
        RunResult.from_json({"score": 1.0})
