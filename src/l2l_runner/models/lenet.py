"""LeNet-5 (LeCun et al. 1998) in its modern form: with ReLU, max-pooling, and convolutions over all maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LeNet(nn.Module):
    """Images [batch, 1, side, side] to logits [batch, outputs]; `side` is at least 16."""

    def __init__(self, side: int = 32, outputs: int = 1, dtype: torch.dtype | None = None):
        super().__init__()
        maps = ((side - 4) // 2 - 4) // 2  # side of the maps that the second pooling leaves
        self.conv1 = nn.Conv2d(1, 6, 5, dtype=dtype)
        self.conv2 = nn.Conv2d(6, 16, 5, dtype=dtype)
        self.fc1 = nn.Linear(16 * maps**2, 120, dtype=dtype)
        self.fc2 = nn.Linear(120, 84, dtype=dtype)
        self.fc3 = nn.Linear(84, outputs, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        # ReLU and max-pooling commute; pooling first leaves ReLU a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits
