"""Residual networks for CIFAR-10, as in section 4.2 of He et al. 2015 (arXiv 1512.03385)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class CifarResNet(nn.Module):
    """[N, 3, 32, 32] → [N, 10], of depth 6n + 2: a convolution, three stages of n blocks, and a linear layer.

    Names and shapes are those of github.com/akamaster/pytorch_resnet_cifar10, so that its trained weights fit. They
    expect images normalised with mean .485, .456, .406 and standard deviation .229, .224, .225.
    """

    def __init__(self, depth: int = 20):
        """Build the network with He's random initialisation.

        Raises:
            ValueError: `depth` is not 6n + 2.
        """
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if blocks < 1 or rest:
            raise ValueError(f"depth is {depth}; expected 6n + 2, such as 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, 10)
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        scores: Tensor = self.linear(x.mean((2, 3)))
        return scores


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    """Build a stage of blocks; the first halves the image if it changes the number of channels."""
    return nn.Sequential(_Block(channels_in, channels), *(_Block(channels, channels) for _ in range(blocks - 1)))


class _Block(nn.Module):
    """Two convolutions beside a shortcut without parameters (the paper's option A)."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.stride, self.new_channels = (1, 0) if channels == channels_in else (2, channels - channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        # Half of the new channels, which are zero, come before the old ones, and half after them.
        half = self.new_channels // 2
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(residual + shortcut)
