"""Means with confidence intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from l2l_runner.evaluation.statistics import align, confidence_band, interval
from l2l_runner.runs.results import Interval

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


# Tables


def test_columns_are_aligned_and_a_table_may_be_empty():
    assert align([["a", "bb"], ["ccc", "d"]]) == ["a    bb", "ccc  d"]
    assert align([]) == []
