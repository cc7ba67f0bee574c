"""Where the Triton kernel cannot serve; tests/runs/test_triton.py says that it computes what plain PyTorch does."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from l2l_runner.kernels import triton_lstm
from l2l_runner.kernels.triton_lstm import unsupported
from problems import lstm

NETWORK = lstm(4).float()._network()


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton isn't installed")
def test_on_a_cpu_it_says_so():
    assert unsupported(NETWORK, torch.device("cpu"), torch.float32) == "the tensors are on the CPU, not on a GPU"


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(triton_lstm, "triton", None)
    assert unsupported(NETWORK, torch.device("cuda"), torch.float32) == "Triton is not installed"
