"""Whole runs that imitate an expert."""

from __future__ import annotations

from pathlib import Path

import pytest

from l2l_runner.meta import TBPTT, Imitation
from l2l_runner.optimizers import Adam
from running import QUICK, Death, assert_same_run, die_when_replacing, records, train

ADAM = Adam(lr=0.05, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)


def imitation(fraction=1.0, **changes):
    return Imitation(tbptt=TBPTT(**{"length": 3, "steps": 8, **changes}), expert=ADAM, fraction=fraction)


# Which meta-steps imitate


@pytest.mark.usefixtures("sketches")
def test_a_run_says_which_and_is_resumed_exactly(tmp_path: Path) -> None:
    settings = [*QUICK, "meta.imitation=0.5", "meta.steps=8", "meta.expert_lr=0.1", "meta.curriculum=[5]"]
    ended = train(tmp_path / "whole", *settings)
    assert "windows of 4, engine replay, imitation 0.5, kernel" in ended.out
    steps = [record for record in records(tmp_path / "whole") if record["event"] != "validation"]
    assert [record["step"] for record in steps] == list(range(1, 9))
    assert {record["event"] for record in steps} == {"meta_step", "imitation"}
    for record in steps:
        assert ("distance" in record) == (record["event"] == "imitation") == ("meta_loss" not in record)
        assert record["grad_norm"] > 0
    with pytest.MonkeyPatch.context() as patched:
        die_when_replacing(patched, "last.pt", 3)
        with pytest.raises(Death):
            train(tmp_path / "run", *settings)
    assert train(None, f"resume={tmp_path / 'run'}").code == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    assert train(tmp_path / "plain", *settings, "meta.imitation=0").code == 0
    plain = {record["step"]: record for record in records(tmp_path / "plain", "meta_step")}
    first = next(record for record in steps if record["event"] == "imitation")
    assert plain[first["step"]]["final_loss"] != first["final_loss"]  # Adam's, here
