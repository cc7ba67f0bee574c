"""The convolutional network of few-shot learning on Omniglot, with sites for warp layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS = 4


class OmniglotConvNet(nn.Module):
    """Images [N, 1, 28, 28] to scores [N, classes], as in Flennerhag et al. 2019 (arXiv 1909.00025).

    Four blocks, each followed by a site for a warp layer, reduce an image to a single pixel, which a linear head reads.
    """

    def __init__(self, filters: int = 64, classes: int = 20):
        super().__init__()
        self.blocks = nn.ModuleList(Block(filters if i else 1, filters) for i in range(BLOCKS))
        self.head = nn.Linear(filters, classes)

    def forward(self, images: Tensor, warps: Mapping[str, nn.Module], reference: int | None = None) -> Tensor:
        """Compute the scores [N, classes].

        Args:
            images: [N, 1, 28, 28].
            warps: layers from [N, filters, height, width] to the same shape, by their sites warp1 … warp4; a site may
                have none.
            reference: batch norm takes its statistics from so many of the first images, without gradients through
                them; None takes those of all images, with gradients.
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
