"""The convolutional network of few-shot learning on Omniglot, with places for warp layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 4


class OmniglotConvNet(nn.Module):
    """Images [N, 1, 28, 28] to scores [N, classes], as Flennerhag et al. 2019 (arXiv 1909.00025) have it.

    Four blocks, each followed by a site for a warp layer, and a linear head on the single pixel that they leave.
    """

    def __init__(self, filters: int = 64, classes: int = 20):
        super().__init__()
        self.blocks = nn.ModuleList(Block(filters if i else 1, filters) for i in range(BLOCKS))
        self.head = nn.Linear(filters, classes)

    def forward(self, images: Tensor, warps: Mapping[str, nn.Module], reference: int | None = None) -> Tensor:
        """The scores.

        Args:
            images: [N, 1, 28, 28].
            warps: layers [N, filters, height, width] to the same, by their sites warp1 … warp4; at the others there is
                nothing.
            reference: number of images, the first ones, that batch norm takes its statistics of, without gradients
                through these; None takes those of all images, with gradients.
        """
        x = images
        for i, block in enumerate(self.blocks, start=1):
            x = block(x, reference)
            if f"warp{i}" in warps:
                x = warps[f"warp{i}"](x)
        scores: Tensor = self.head(x.flatten(1))
        return scores


class Block(nn.Module):
    """A 3×3 convolution, max-pooling, batch norm without running statistics, and ReLU."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels, track_running_stats=False)

    def forward(self, images: Tensor, reference: int | None = None) -> Tensor:
        x = F.max_pool2d(self.conv(images), 2)
        if reference is None:
            return F.relu(self.norm(x))
        among = x[:reference].detach()
        mean, variance = among.mean((0, 2, 3)), among.var((0, 2, 3), correction=0)
        return F.relu(F.batch_norm(x, mean, variance, self.norm.weight, self.norm.bias))
