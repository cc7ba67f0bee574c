"""Means with confidence intervals, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from l2l_runner.runs.results import Interval


def t_factor(count: int) -> float:
    """Return the half-width of a 95 % confidence interval of a mean, in standard deviations (Student's t).

    Args:
        count: number of values; NaN for fewer than two.
    """
    return float(stdtrit(count - 1, 0.975)) / math.sqrt(count) if count > 1 else math.nan


def interval(values: Any) -> Interval:
    """Return the mean of values [count] with its confidence interval.

    Args:
        values: a sequence, an array or a tensor on the CPU.

    Examples:
        >>> interval([1.0, 2.0, 3.0]).shown()
        '2 ± 2.5'
    """
    array = np.asarray(values, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        deviation = float(array.std(ddof=1)) if len(array) > 1 else math.nan
        return Interval(float(array.mean()), t_factor(len(array)) * deviation)


def confidence_band(rows: Any) -> np.ndarray:
    """Return half-widths [points] of the confidence intervals of the means of rows [points, problems].

    A single problem has a band of width 0.
    """
    array = np.asarray(rows, dtype=np.float64)
    if array.shape[1] < 2:
        return np.zeros(len(array))
    with np.errstate(invalid="ignore", over="ignore"):
        band: np.ndarray = array.std(axis=1, ddof=1) * t_factor(array.shape[1])
    return band


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
