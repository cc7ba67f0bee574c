"""Whole runs on problems with scaled coordinates."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import QUICK, best, last, read_json, records, same_bits, train


@pytest.mark.usefixtures("sketches")
def test_training_is_scaled_and_nothing_else_is(tmp_path: Path) -> None:
    for spread in ("0", "2.5"):
        assert train(tmp_path / spread, *QUICK, f"meta.scaling={spread}", "optimizee.init_scale=1").code == 0
    plain, scaled = ([*records(tmp_path / spread)] for spread in ("0", "2.5"))
    assert plain[0] == scaled[0]  # the validation of the untrained optimizer
    assert plain[0]["event"] == "validation"
    assert plain[1]["event"] == "meta_step"
    assert plain[1]["meta_loss"] != scaled[1]["meta_loss"]
    assert not same_bits(last(tmp_path / "0")["optimizer"], last(tmp_path / "2.5")["optimizer"])
    assert read_json(tmp_path / "2.5" / "result.json")["score"] == best(tmp_path / "2.5")["progress"]["best_score"]
