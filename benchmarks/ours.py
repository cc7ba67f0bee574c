"""The project's own engines and kernels, set up as by `python -m l2l_runner.train`."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.problems import META_LR, OUTPUT_SCALE, Arrays, P
from benchmarks.torch_problem import TorchProblem, tensors
from benchmarks.variant import Estimate, Unavailable
from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout, Params
from l2l_runner.meta import TBPTT
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers import SGD, LSTMConfig
from l2l_runner.optimizers.lstm import LSTM
from l2l_runner.runtime import machine_settings
from l2l_runner.unroll import start, unroll


class BenchProblem(Problem):
    """The bench's optimizee as a Problem of this project."""

    def __init__(self, arrays: Arrays, dtype: torch.dtype):
        self.inner = TorchProblem(arrays, dtype)
        self.layout = Layout({"theta": (self.inner.start.shape[1],)})
        self.seeds = streams.seeds(0, "bench", 0, len(self.inner.start))

    def init(self) -> Params:
        return {"theta": self.inner.start}

    def loss(self, params: Params, step: int) -> Tensor:
        return self.inner.losses(params["theta"], step)


def learned(network: Arrays, kernel: str) -> LSTM:
    """Build the LSTM optimizer with these weights.

    Raises:
        Unavailable: the kernel does not run on this machine.
    """
    hidden, layers = network["readout_weight"].shape[1], sum(name.startswith("weight") for name in network)
    config = LSTMConfig(
        hidden=hidden,
        layers=layers,
        coordinatewise=True,
        preprocessing="log_sign",
        p=P,
        output_scale=OUTPUT_SCALE,
    )
    weights = tensors(network, torch.from_numpy(network["readout_weight"]).dtype)
    optimizer = config.build(Layout({"theta": (1,)}), streams.generator(0, "optimizer")).to(
        weights["readout_weight"].dtype
    )
    with torch.no_grad():
        for name, parameter in optimizer.named_parameters():
            parameter.copy_(weights[_plain(name)])
    if hasattr(optimizer, "use_kernel"):
        try:
            optimizer.use_kernel(kernel)
        except ConfigError as error:
            raise Unavailable(str(error)) from error
    elif kernel != "torch":
        raise Unavailable(f"there is no kernel {kernel}")
    return optimizer


def _plain(name: str) -> str:
    """Rename weights.0 to weight0 and biases.0 to bias0."""
    return name.replace("weights.", "weight").replace("biases.", "bias")


class Ours:
    """TBPTT with an engine and a kernel, and a step of Adam."""

    def __init__(self, network: Arrays, problem: Arrays, steps: int, threads: int, engine: str, kernel: str):
        self.settings = machine_settings(threads)
        self.settings.__enter__()  # until the worker ends
        self.optimizer = learned(network, kernel)
        self.problem = BenchProblem(problem, self.optimizer.readout_weight.dtype)
        self.estimator = TBPTT(length=steps, steps=steps, engine=engine)
        self.adam = torch.optim.Adam(self.optimizer.parameters(), lr=META_LR)

    def close(self) -> None:
        self.settings.__exit__(None, None, None)

    def window(self) -> float:
        (estimate,) = self.estimator.estimates(self.optimizer, self.problem)
        for parameter, grad in zip(self.optimizer.parameters(), estimate.grads, strict=True):
            parameter.grad = grad
        self.adam.step()
        return estimate.meta_loss.item()

    def estimate(self) -> Estimate:
        (estimate,) = self.estimator.estimates(self.optimizer, self.problem)
        names = [_plain(name) for name, _ in self.optimizer.named_parameters()]
        grads = {name: grad.numpy() for name, grad in zip(names, estimate.grads, strict=True)}
        return Estimate(estimate.losses.numpy(), grads)


class Forward(Ours):
    """The same trajectory without a meta-gradient: evaluation."""

    def window(self) -> float:
        return float(self._losses().sum(0).mean())

    def _losses(self) -> Tensor:
        points = unroll(self.problem, self.optimizer, start(self.problem, self.optimizer), self.estimator.steps)
        return torch.stack([point.loss for _, point in points])

    def estimate(self) -> Estimate:
        return Estimate(self._losses().numpy(), {})


class OptimizeeAlone:
    """The optimizee with SGD: the cost of a window that is not the learned optimizer's."""

    def __init__(self, network: Arrays, problem: Arrays, steps: int, threads: int):
        self.settings = machine_settings(threads)
        self.settings.__enter__()
        self.problem = BenchProblem(problem, torch.from_numpy(network["readout_weight"]).dtype)
        self.steps, self.sgd = steps, SGD(lr=1e-4, weight_decay=0.0)

    def close(self) -> None:
        self.settings.__exit__(None, None, None)

    def window(self) -> float:
        points = unroll(self.problem, self.sgd, start(self.problem, self.sgd), self.steps)
        return float(torch.stack([point.loss for _, point in points]).sum(0).mean())

    def estimate(self) -> Estimate:
        raise NotImplementedError("the optimizee alone has no meta-gradient")
