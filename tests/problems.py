"""What several test files need: small optimizees and optimizers built from conf/, and plain references."""

from __future__ import annotations

import atexit
import math
import os
import shutil
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models import get_model

from l2l_runner import streams
from l2l_runner.fields import parse_one_of
from l2l_runner.layout import Layout
from l2l_runner.optimizees import OPTIMIZEES, Problem
from l2l_runner.optimizers import LSTM, RULES, LearnedRule, LSTMConfig, Optimizer, RNNprop, RNNpropConfig, WarpRNN
from l2l_runner.runtime import Runtime

CONF = Path(__file__).parents[1] / "conf"
DATA = Path(os.environ.get("L2L_DATA", "data"))
RUNTIME = Runtime(dtype=torch.float64, data_root=DATA)

needs_mnist = pytest.mark.skipif(
    "L2L_DATA" not in os.environ or not (DATA / "MNIST" / "raw").is_dir(),
    reason="MNIST is not here: name the folder that holds MNIST/raw with the environment variable L2L_DATA",
)

needs_cifar = pytest.mark.skipif(
    "L2L_DATA" not in os.environ or not (DATA / "cifar-10-batches-py").is_dir(),
    reason="CIFAR-10 is not here: name the folder that holds cifar-10-batches-py with L2L_DATA",
)

needs_omniglot = pytest.mark.skipif(
    "L2L_DATA" not in os.environ or not (DATA / "omniglot-py").is_dir(),
    reason="Omniglot is not here: name the folder that holds omniglot-py with L2L_DATA",
)

NEEDS = {"mnist": needs_mnist, "omniglot": needs_omniglot}

# Whatever of these an optimizee has is set to this, so that tests are quick.
SMALL = {"dim": 4, "hidden": [5], "minibatch": 6, "batch": 2, "validation_problems": 4, "test_problems": 4}
SMALL |= {"pillars": 2, "duration": 12, "units": 4, "metric_episodes": 5}
SMALL |= {"data": "digits", "images": 60, "side": 16, "proportion": 0.8, "filters": 4}


def parse_optimizee(node: Any) -> Any:
    """Build the optimizee that a node of a configuration describes."""
    return parse_one_of(OPTIMIZEES, node, "optimizee")


def parse_optimizer(node: Any) -> Any:
    """Build the settings of the rule that a node of a configuration describes."""
    return parse_one_of(RULES, node, "optimizer")


def yaml_file(path: Path) -> dict[str, Any]:
    """Read a file of conf/ on top of the files that it shares keys with."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    bases = [base.removesuffix("@_here_") for base in content.pop("defaults", []) if isinstance(base, str)]
    files = [
        (CONF if base.startswith("/") else path.parent) / f"{base.strip('/')}.yaml"
        for base in bases
        if base != "_self_"
    ]
    merged: dict[str, Any] = {}
    for file in files:
        merged |= yaml_file(file)
    own = OmegaConf.to_container(content, resolve=True)
    assert isinstance(own, dict)
    return merged | {str(key): value for key, value in own.items()}


def yaml_group(name: str) -> dict[str, dict[str, Any]]:
    """Read all choices of a group of conf/, by name."""
    return {path.stem: yaml_file(path) for path in sorted((CONF / name).glob("*.yaml"))}


OPTIMIZEE_FILES = yaml_group("optimizee")
OPTIMIZER_FILES = yaml_group("optimizer")
WARP_RNN = OPTIMIZER_FILES.pop("warp_rnn")
"""The others run on problems without recurrent cells."""
ADAPTATIONS = [stem for stem, node in OPTIMIZER_FILES.items() if "start" in node]
"""Optimizers that learn where to start, or warp layers."""
UPDATE_RULES = [stem for stem in OPTIMIZER_FILES if stem not in ADAPTATIONS]
"""Optimizers that take their problems as given."""

# Every optimizee that has a file, those on a data set only where it is.
EVERY_OPTIMIZEE = [pytest.param(stem, marks=NEEDS.get(node["name"], ())) for stem, node in OPTIMIZEE_FILES.items()]


@lru_cache(maxsize=1)
def art_files() -> dict[str, str]:
    """What optimizee=art needs: eight photographs and a painting of coloured blots, and random weights."""
    folder = Path(tempfile.mkdtemp(prefix="l2l_runner-art-"))
    atexit.register(shutil.rmtree, folder)
    (folder / "photographs").mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(9):
        blots = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8, generator=generator).numpy()
        name = "painting.png" if i == 8 else f"photographs/{i}.{('png', 'JPG')[i % 2]}"
        Image.fromarray(blots).resize((56, 40), Image.Resampling.BICUBIC).save(folder / name)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        features = get_model("squeezenet1_1", weights=None).features[:8]
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(state, folder / "weights.pth")
    return {key: str(folder / name) for key, name in ART_FILES.items()}


ART_FILES = {"content": "photographs", "style": "painting.png", "weights": "weights.pth"}
ART_LAYERS: dict[str, Any] = {"size": 16, "content_layers": [3], "style_layers": [1, 4]}


def given(stem: str) -> list[str]:
    """What must be given on the command line for an optimizee, or an experiment with it, or makes it quick."""
    if stem.endswith("maze"):
        return ["optimizee.duration=20", "optimizee.units=8", "optimizee.metric_episodes=5", "optimizee.minibatch=5"]
    return [f"optimizee.{key}={value}" for key, value in art_files().items()] if stem.endswith("art") else []


def optimizee(stem: str, **changes: Any) -> Any:
    """The optimizee of a YAML file, made small; its class depends on the file."""
    node = OPTIMIZEE_FILES[stem]
    small = {key: value for key, value in SMALL.items() if key in node}
    return parse_optimizee({**node, **small, **(art_files() | ART_LAYERS if stem == "art" else {}), **changes})


def problems(stem: str, count: int, seed: int = 0, **changes: Any) -> Any:
    """Some problems in float64."""
    return optimizee(stem, **changes).sample(streams.seeds(seed, "train", 0, count), RUNTIME)


def scattered(problem: Problem, scale: float = 0.3) -> Tensor:
    """Flat parameters [problems, coordinates] around the start, where nothing is zero or alike by chance."""
    start = problem.layout.flatten(problem.init())
    return start + scale * torch.randn(start.shape, dtype=start.dtype, generator=torch.Generator().manual_seed(5))


def lstm(coordinates: int = 4, seed: int = 0, **changes: Any) -> LSTM:
    """A small LSTM optimizer in float64, whose updates are large enough to matter."""
    node = {**OPTIMIZER_FILES["lstm"], "hidden": 3, "layers": 2, "output_scale": 0.5, **changes}
    config = LSTMConfig(**{key: value for key, value in node.items() if key != "name"})
    return config.build(plain(coordinates), torch.Generator().manual_seed(seed)).double()


def rnnprop(seed: int = 0, **changes: Any) -> RNNprop:
    """A small RNNprop in float64, whose updates are large enough to matter."""
    node = {**OPTIMIZER_FILES["rnnprop"], "hidden": 3, "layers": 2, "output_scale": 0.5, **changes}
    config = RNNpropConfig(**{key: value for key, value in node.items() if key != "name"})
    return config.build(plain(4), torch.Generator().manual_seed(seed)).double()


WARP_HIDDEN = 3
"""Units of the LSTM in small Warp-RNNs."""


def warp_rnn(layout: Layout, scale: float = 0.0, **changes: Any) -> WarpRNN:
    """A small Warp-RNN in float64, whose gates are open at a scale of 0, and random otherwise."""
    settings = parse_optimizer({**WARP_RNN, "hidden": WARP_HIDDEN, **changes})
    optimizer: WarpRNN = settings.build(layout, torch.Generator().manual_seed(0)).double()
    gates: Any = optimizer.gates.values()
    for gate in gates:
        weight = gate.project.weight
        weight.data = scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).double()
    return optimizer


def plain(coordinates: int) -> Layout:
    """The layout of a single vector."""
    return Layout({"theta": (coordinates,)})


def any_optimizer(stem: str, layout: Layout, dtype: torch.dtype = torch.float64) -> Any:
    """The optimizer of a YAML file: a hand-designed one at a middling rate, a learned one small and untrained."""
    node = {key: {"lr": 0.01, "hidden": 3}.get(key, value) for key, value in OPTIMIZER_FILES[stem].items()}
    if stem == "groups":
        node = groups_node(layout, {**OPTIMIZER_FILES["lstm"], "hidden": 3}, OPTIMIZER_FILES["sgd"])
    large = [name for name, shape in layout.shapes.items() if math.prod(shape) > 4096]
    if stem == "module_transform" and large:
        node["patterns"] = dict.fromkeys(large, "metacurvature")
    settings = parse_optimizer(node)
    if isinstance(settings, Optimizer):
        return settings
    learned: LearnedRule = settings.build(layout, torch.Generator().manual_seed(0))
    return learned.to(dtype)


def groups_node(layout: Layout, *optimizers: dict[str, Any]) -> dict[str, Any]:
    """The configuration of groups, an optimizer each, to which the layout's tensors are dealt out in turn."""
    dealt = [list(layout.shapes)[i :: len(optimizers)] for i in range(len(optimizers))]
    groups = {
        f"group{i}": {"patterns": names, "optimizer": node}
        for i, (names, node) in enumerate(zip(dealt, optimizers, strict=True))
        if names
    }
    return {"name": "groups", "groups": groups}


class PlainLSTM:
    """The LSTM optimizer once more, of nn.LSTMCell and the paper's own words, for one problem at a time.

    Its tensors `phi` are copies of an optimizer's parameters, in their order; its cells' gates are ordered as torch
    has them (input, forget, candidate, output).
    """

    def __init__(self, optimizer: LSTM):
        self.config: Any = optimizer.config
        named = {name: p.detach().clone().requires_grad_() for name, p in optimizer.named_parameters()}
        self.phi = list(named.values())
        self.weights = [named[f"weights.{layer}"] for layer in range(self.config.layers)]
        self.biases = [named[f"biases.{layer}"] for layer in range(self.config.layers)]
        self.readout_weight, self.readout_bias = named["readout_weight"], named["readout_bias"]
        self.state: list[tuple[Tensor, Tensor]] = []

    def detach(self) -> None:
        self.state = [(h.detach(), c.detach()) for h, c in self.state]

    def features(self, grads: Tensor) -> Tensor:
        if self.config.preprocessing == "none":
            return grads[:, None]
        p = self.config.p
        small = grads.abs() < math.exp(-p)
        first = torch.where(small, -1.0, torch.where(small, 1.0, grads.abs()).log() / p)
        second = torch.where(small, math.exp(p) * grads, grads.sign())
        return torch.stack([first, second], dim=1)

    def update(self, grads: Tensor) -> Tensor:
        """The update [coordinates] for gradients [coordinates]; the state lives in this object."""
        hidden = self.config.hidden
        x = self.features(grads)  # a row a coordinate
        if not self.config.coordinatewise:
            x = x.T.reshape(1, -1)  # one row, feature by feature
        if not self.state:
            self.state = [(x.new_zeros(len(x), hidden), x.new_zeros(len(x), hidden)) for _ in self.weights]
        order = torch.arange(4 * hidden).view(4, hidden)[[0, 1, 3, 2]].flatten()
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = weight.shape[1] - hidden
            parameters = {
                "weight_ih": weight[order, :inputs],
                "weight_hh": weight[order, inputs:],
                "bias_ih": bias[order],
                "bias_hh": torch.zeros_like(bias),
            }
            cell = nn.LSTMCell(inputs, hidden, dtype=x.dtype)
            self.state[layer] = functional_call(cell, parameters, (x, self.state[layer]))
            x = self.state[layer][0]
        return ((x @ self.readout_weight.T + self.readout_bias) * self.config.output_scale).flatten()


class Operations(TorchDispatchMode):
    """Records each operation that is dispatched, with the number of elements that it yields."""

    def __init__(self) -> None:
        super().__init__()
        self.record: list[tuple[Any, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)]
        self.record.append((func, sum(x.numel() for x in tensors)))
        return out

    def take(self) -> Counter[tuple[Any, int]]:
        """What was recorded since the last call, and how often."""
        taken, self.record = Counter(self.record), []
        return taken
