"""Small convolutional networks."""

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


class CifarConvNet(nn.Sequential):
    """The CIFAR-10 network of Andrychowicz et al. 2016 (arXiv 1606.04474, section 3.3).

    [N, 3, side, side] → [N, classes]: three 5×5 convolutions of 16 channels (as in the code released with the paper),
    each with ReLU and max-pooling, 32 fully connected ReLU units, and the scores. Batch norm precedes every ReLU; the
    layers before it have no biases, which it would cancel. All layers have PyTorch's initialisation, since the paper
    gives none.
    """

    def __init__(self, side: int = 32, classes: int = 10, channels: int = 16):
        """Build the layers.

        Args:
            side: height and width of the images, at least 8.
            classes: number of scores.
            channels: of each convolution; fewer make a smaller network for meta-training.
        """
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, inputs in enumerate((3, channels, channels), start=1):
            layers[f"conv{i}"] = nn.Conv2d(inputs, channels, 5, padding=2, bias=False)
            layers[f"conv{i}_norm"] = nn.BatchNorm2d(channels)
            layers[f"relu{i}"] = nn.ReLU()
            layers[f"pool{i}"] = nn.MaxPool2d(2)
        layers["flatten"] = nn.Flatten()
        layers["linear1"] = nn.Linear(channels * (side // 8) ** 2, 32, bias=False)
        layers["linear1_norm"] = nn.BatchNorm1d(32)
        layers["relu4"] = nn.ReLU()
        layers["linear2"] = nn.Linear(32, classes)
        super().__init__(layers)
