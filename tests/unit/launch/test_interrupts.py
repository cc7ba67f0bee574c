"""Ctrl-C before anything has begun."""

from __future__ import annotations

import pytest

from l2l_runner.launch import hydra as launcher
from running import QUICK, assert_one_sentence, train


@pytest.mark.parametrize("name", ["check_choices", "conf_folder", "_composed"])
def test_ctrl_c_while_a_configuration_is_composed(monkeypatch: pytest.MonkeyPatch, tmp_path, name: str) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, name, interrupt)
    ended = train(tmp_path / "run", *QUICK)
    assert ended.code == 130
    assert "Traceback" not in ended.out + ended.err
    if name != "_composed":
        assert_one_sentence(ended, "Interrupted before the run began", code=130)
