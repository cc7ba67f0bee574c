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


SHARDED = """
import copy, sys, torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import l2l_runner

torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)

def made(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    mesh = init_device_mesh("cpu", (1,))
    if kind == "fsdp":
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
    if kind == "tensor parallel":
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return model, l2l_runner.LearnedOptimizer(model.parameters(), "mnist")

def train(model, optimizer, begin):
    for step in range(begin, begin + 2):
        x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
    optimizer.zero_grad()

def values(model):
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in whole])

plain, optimizer = made("plain")
train(plain, optimizer, 0)
train(plain, optimizer, 2)
full = StateDictOptions(full_state_dict=True)
for kind in ("fsdp", "tensor parallel"):
    model, optimizer = made(kind)
    train(model, optimizer, 0)
    whole = get_optimizer_state_dict(model, optimizer, options=full)
    assert whole["state"]["0.weight"]["state_0"].shape == (20, 7, 5)
    shards = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, 2)
    torch.testing.assert_close(values(model), values(plain), rtol=1e-4, atol=1e-5)
    for way in ("whole", "shards"):
        twin, other = made(kind)
        train(twin, other, 0)
        other = l2l_runner.LearnedOptimizer(twin.parameters(), "mnist")
        if way == "whole":
            set_optimizer_state_dict(twin, other, whole, options=full)
        else:
            other.load_state_dict(shards)
        train(twin, other, 2)
        assert torch.equal(values(twin), values(model)), (kind, way)
model, _ = made("plain")
optimizer = ZeroRedundancyOptimizer(model.parameters(), l2l_runner.LearnedOptimizer, optimizer="mnist")
train(model, optimizer, 0)
train(model, optimizer, 2)
assert torch.equal(values(model), values(plain))
torch.distributed.destroy_process_group()
"""


def test_sharded_models_learn_as_whole_ones_and_resume(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-W", "ignore", "-c", SHARDED, str(tmp_path / "meeting")]
    subprocess.run(command, env=environment, check=True, timeout=120)


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
