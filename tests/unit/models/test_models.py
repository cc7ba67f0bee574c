"""Stock modules have the sizes and layers of their descriptions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from l2l_runner import streams
from l2l_runner.models.convnet import CifarConvNet, ConvNet
from l2l_runner.models.resnet import CifarResNet
from problems import (
    DATA,
    RUNTIME,
    needs_cifar,
    optimizee,
)

RESNET20 = DATA / "hub" / "checkpoints" / "resnet20-12fca82f.th"
needs_resnet20 = pytest.mark.skipif(
    not RESNET20.is_file(), reason="resnet20-12fca82f.th is not in hub/checkpoints of the folder that L2L_DATA names"
)

# Networks


def test_convnet_has_the_sizes_of_its_description():
    for dropout in (True, False):
        module = ConvNet(dropout)
        assert [tuple(p.shape) for p in module.parameters() if p.dim() > 1] == [
            (32, 1, 3, 3), (64, 32, 3, 3), (128, 9216), (10, 128),
        ]  # fmt: skip
        assert [part.p for part in module if isinstance(part, nn.Dropout)] == ([0.25, 0.5] if dropout else [])
        assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(("side", "classes", "channels"), [(32, 10, 16), (16, 5, 16), (8, 2, 4)])
def test_cifar_convnet_is_that_of_the_paper(side, classes, channels):
    model = {"_target_": "l2l_runner.models.convnet.CifarConvNet", "side": side, "classes": classes}
    changes = {"data": "cifar10", "labels": list(range(classes)), "resize": side}
    distribution = optimizee("module", model={**model, "channels": channels}, **changes)
    flat_size = channels * (side // 8) ** 2
    shapes = {name: shape for name, shape in distribution.layout().shapes.items() if "norm" not in name}
    assert shapes == {
        "conv1.weight": (channels, 3, 5, 5), "conv2.weight": (channels, channels, 5, 5),
        "conv3.weight": (channels, channels, 5, 5),
        "linear1.weight": (32, flat_size), "linear2.weight": (classes, 32), "linear2.bias": (classes,),
    }  # fmt: skip
    # The same by hand, on one image's own terms: max-pooling takes the largest of four, norms are over the batch.
    module, images = CifarConvNet(side, classes, channels), torch.randn(5, 3, side, side)

    def normed(x, over):
        mean, variance = x.mean(over, keepdim=True), x.var(over, unbiased=False, keepdim=True)
        return ((x - mean) / (variance + 1e-5).sqrt()).relu()

    x = images
    for conv in (module.conv1, module.conv2, module.conv3):
        x = F.unfold(F.pad(x, (2, 2, 2, 2)), 5).transpose(1, 2) @ conv.weight.flatten(1).T
        height = round(x.shape[1] ** 0.5)
        x = normed(x.transpose(1, 2).reshape(5, channels, height, height), (0, 2, 3))
        x = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    x = normed(x.flatten(1) @ module.linear1.weight.T, 0)
    torch.testing.assert_close(module(images), x @ module.linear2.weight.T + module.linear2.bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (56, 853_018)])
def test_resnets_have_the_sizes_of_the_paper(depth, parameters):
    module = CifarResNet(depth)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in module.modules()) == depth
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@needs_cifar
@needs_resnet20
def test_a_pretrained_resnet20_recognises_cifar():
    settings = {
        "model": {"_target_": "l2l_runner.models.resnet.CifarResNet", "depth": 20},
        "data": "cifar10",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "weights": RESNET20.name,
        "prefix": "module.",
        "batch_norm": "frozen",
    }
    seeds = streams.seeds(0, "test", 0, 1)
    problem = optimizee("module", **settings).sample(seeds, replace(RUNTIME, dtype=torch.float32))
    assert problem.metrics(problem.init())["accuracy"].item() >= 0.91
