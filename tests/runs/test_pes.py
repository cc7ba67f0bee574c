"""Whole runs with persistent evolution strategies."""

from __future__ import annotations

from pathlib import Path

import pytest

from running import QUICK, Death, assert_same_run, die_when_replacing, records, train


@pytest.mark.usefixtures("sketches")
def test_a_run_that_died_is_resumed_exactly(tmp_path: Path) -> None:
    settings = [item for item in QUICK if not item.startswith("meta.")]
    settings += ["meta=pes", "meta.steps=6", "meta.validate_every=2", "meta.pairs=2"]
    ended = train(tmp_path / "whole", *settings)
    assert ended.code == 0, ended.err
    assert "windows of 4, 2 antithetic pairs with sigma 0.01, kernel" in ended.out
    assert all(record["grad_norm"] > 0 for record in records(tmp_path / "whole", "meta_step"))
    with pytest.MonkeyPatch.context() as patched:
        die_when_replacing(patched, "last.pt", 3)
        with pytest.raises(Death):
            train(tmp_path / "run", *settings)
    assert train(None, f"resume={tmp_path / 'run'}").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.usefixtures("sketches")
def test_it_learns(tmp_path: Path) -> None:
    settings = ["meta=pes", "optimizee.dim=3", "optimizee.batch=32", "optimizee.validation_problems=32"]
    settings += ["unroll.steps=10", "unroll.length=5", "meta.steps=60", "meta.validate_every=30", "meta.lr=0.02"]
    assert train(tmp_path / "run", *settings, "evaluate=false", "device=cpu", "device.threads=1").code == 0
    first, *_, last = (record["score"] for record in records(tmp_path / "run", "validation"))
    assert last < 0.5 * first
