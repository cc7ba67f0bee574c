"""Small convolutional networks for digits."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class ConvNet(nn.Sequential):
    """Two convolutions and two linear layers for MNIST, [N, 1, 28, 28] → [N, 10]: that of PyTorch's MNIST example."""

    def __init__(self, dropout: bool = True):
        """Build the layers, without the two dropouts if `dropout` is False."""
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(1, 32, 3),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 64, 3),
                relu2=nn.ReLU(),
                pool=nn.MaxPool2d(2),
                dropout1=nn.Dropout(0.25) if dropout else nn.Identity(),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * 12 * 12, 128),
                relu3=nn.ReLU(),
                dropout2=nn.Dropout(0.5) if dropout else nn.Identity(),
                linear2=nn.Linear(128, 10),
            )
        )


class DigitsConvNet(nn.Sequential):
    """One convolution and one linear layer for scikit-learn's digits, [N, 1, 8, 8] → [N, 10]; smooth, as LeNet was."""

    def __init__(self) -> None:
        super().__init__(
            OrderedDict(
                conv=nn.Conv2d(1, 8, 3),
                tanh=nn.Tanh(),
                pool=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                linear=nn.Linear(8 * 3 * 3, 10),
            )
        )
