"""Several processes: who takes what, and what they cannot share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from composing import parsed
from l2l_runner import distributed
from l2l_runner.errors import ConfigError
from l2l_runner.meta import TBPTT


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["meta_batch=2"], "meta_batch=2 leaves some of the 3 processes without a problem"),
        (["optimizer=adam"], "optimizer=adam"),
        (["optimizer=hypergradient", "meta=online", "unroll=online"], "meta=online"),
        (["optimizer=warp"], "meta=warpgrad need"),
        (["optimizee=imbalance", "optimizer=sgd", "meta=reweight"], "meta=reweight"),
    ],
)
def test_what_cannot_be_shared_is_refused(overrides: list[str], words: str) -> None:
    one = parsed(*overrides)
    one.check_processes(1)
    with pytest.raises(ConfigError, match=words):
        one.check_processes(3)


def test_an_estimator_has_to_say_that_it_can_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TBPTT, "shareable", False)
    with pytest.raises(ConfigError, match="meta=tbptt need all problems of a meta-step"):
        parsed().check_processes(2)


@given(st.integers(1, 9), st.integers(0, 40))
def test_shares_are_even_and_leave_nothing_out(processes: int, items: int) -> None:
    taken: list[list[int]] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distributed, "world_size", lambda: processes)
        for place in range(processes):
            patched.setattr(distributed, "rank", lambda place=place: place)
            taken.append(list(range(items))[distributed.shard(items)])
    assert [item for some in taken for item in some] == list(range(items))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.use_device(torch.device("cuda"))  # of one process, whichever is the present one
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    distributed.use_device(torch.device("cpu"))
    assert used == []
    distributed.use_device(torch.device("cuda"))
    assert used == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ConfigError, match="--nproc-per-node=2, or device=cpu"):
        distributed.use_device(torch.device("cuda"))
