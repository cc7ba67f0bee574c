"""The contract of a comparison: its summary, its CSV and its table."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
import torch

from l2l_runner.evaluation.comparison import Comparison, csv_of, table
from l2l_runner.evaluation.curves import Curves
from l2l_runner.evaluation.statistics import interval
from l2l_runner.runs.results import Summary

# Scores and divergence


def curves_of(*columns, **metrics):
    """Curves of problems given by their losses."""
    losses = torch.tensor(columns, dtype=torch.float64).T
    return Curves(losses, {name: torch.tensor(values, dtype=torch.float64) for name, values in metrics.items()})


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
