"""Learned optimizers as drop-in replacements: several processes, and the pretrained ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import l2l_runner
from l2l_runner.optimizers.base import LearnedRule as Rule
from l2l_runner.runs import checkpoint
from running import assert_one_sentence, evaluate, read_json

LearnedOptimizer = l2l_runner.LearnedOptimizer
TOGETHER = """
import os, sys, torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import l2l_runner
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
model = DistributedDataParallel(nn.Linear(5, 2))
optimizer = l2l_runner.LearnedOptimizer(model.parameters(), "mnist")
for step in range(3):
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))[4 * rank : 4 * rank + 4]
    optimizer.zero_grad()
    (model(x) - x[:, :2]).square().mean().backward()
    optimizer.step()
torch.save(model.module.state_dict(), sys.argv[2] + str(rank))
torch.distributed.destroy_process_group()
"""


def test_a_model_on_two_processes_learns_as_on_one(tmp_path: Path) -> None:
    meeting = tmp_path / "meeting"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", "-c", TOGETHER]
    ranks = [subprocess.Popen([*command, str(rank), str(meeting)], env=environment) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    optimizer = LearnedOptimizer(model.parameters(), "mnist")
    for step in range(3):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
    ends = [torch.load(f"{meeting}{rank}", weights_only=True) for rank in range(2)]
    assert torch.equal(ends[0]["weight"], ends[1]["weight"])
    torch.testing.assert_close(ends[0]["weight"], model.weight.detach(), rtol=1e-3, atol=1e-5)


# The pretrained ones


def test_pretrained_optimizers_have_cards_and_are_small() -> None:
    cards = l2l_runner.pretrained()
    assert {"quadratic", "mnist"} <= set(cards)
    for name, card in cards.items():
        assert card.path.stat().st_size < 100_000
        assert all((card.trained_on, card.good_for, card.reached, card.command))
        assert str(card).startswith(name)
        content = checkpoint.load(Path(name))
        assert set(content["config"]) == {"seed", "meta_batch", "score", "optimizee", "optimizer", "unroll", "meta"}
        assert isinstance(checkpoint.restore_rule(content, Path(name)), Rule)
    shown = subprocess.run(
        [sys.executable, "-m", "l2l_runner.cards"], capture_output=True, text=True, check=True
    ).stdout
    assert all(str(card) in shown for card in cards.values())


def test_a_pretrained_optimizer_is_better_than_adam_at_what_it_was_trained_for(tmp_path: Path) -> None:
    ended = evaluate(tmp_path / "eval", "checkpoint=quadratic", "problems=64", "device=cpu", "tune.problems=32")
    assert ended.code == 0, ended.err
    optimizers = read_json(tmp_path / "eval" / "comparison.json")["optimizers"]
    assert optimizers["lstm"]["sum"]["mean"] < 0.8 * min(optimizers[name]["sum"]["mean"] for name in ("adam", "nag"))
    assert_one_sentence(evaluate(tmp_path / "other", "checkpoint=quadratics"), "Did you mean quadratic?")


def test_the_package_itself_is_imported_quickly() -> None:
    code = "import sys, l2l_runner; assert 'torch' not in sys.modules; l2l_runner.pretrained(); "
    code += "assert 'torch' not in sys.modules; l2l_runner.LearnedOptimizer; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        l2l_runner.Nothing  # noqa: B018
