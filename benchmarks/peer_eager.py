"""What a good PyTorch user writes (nn.LSTM, autograd, Adam), and the seed repository's way.

Both optimise a coordinatewise LSTM on detached gradients. Each evaluates the loss of every step once, for the
gradient that the LSTM reads and for the meta-loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.problems import META_LR, OUTPUT_SCALE, Arrays
from benchmarks.torch_problem import TorchProblem, log_sign, tensors
from benchmarks.variant import Estimate


class LSTMOptimizer(nn.Module):
    """nn.LSTM and a linear read-out."""

    def __init__(self, network: Arrays):
        super().__init__()
        weights = tensors(network, torch.from_numpy(network["readout_weight"]).dtype)
        hidden, layers = network["readout_weight"].shape[1], sum(name.startswith("weight") for name in network)
        dtype = weights["readout_weight"].dtype
        self.lstm = nn.LSTM(weights["weight0"].shape[1] - hidden, hidden, layers, dtype=dtype)
        self.readout = nn.Linear(hidden, 1, dtype=dtype)
        with torch.no_grad():
            self.readout.weight.copy_(weights["readout_weight"])
            self.readout.bias.copy_(weights["readout_bias"])
            for layer in range(layers):
                weight, bias = reordered(weights[f"weight{layer}"]), reordered(weights[f"bias{layer}"])
                getattr(self.lstm, f"weight_ih_l{layer}").copy_(weight[:, :-hidden])
                getattr(self.lstm, f"weight_hh_l{layer}").copy_(weight[:, -hidden:])
                getattr(self.lstm, f"bias_ih_l{layer}").copy_(bias)
                getattr(self.lstm, f"bias_hh_l{layer}").zero_()

    def forward(self, grads: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = self.lstm(log_sign(grads.reshape(1, -1)), state)
        return OUTPUT_SCALE * self.readout(out).view_as(grads), state

    def named_grads(self) -> dict[str, Tensor]:
        """Return the parameters' gradients, with the names and shapes of problems.network."""
        named = {"readout_weight": self.readout.weight.grad, "readout_bias": self.readout.bias.grad}
        for layer in range(self.lstm.num_layers):
            parts = [getattr(self.lstm, f"weight_{part}_l{layer}").grad for part in ("ih", "hh")]
            named[f"weight{layer}"] = reordered(torch.cat(parts, dim=1))
            named[f"bias{layer}"] = reordered(getattr(self.lstm, f"bias_ih_l{layer}").grad)
        return {name: grad.clone() for name, grad in named.items() if grad is not None}


def reordered(rows: Tensor) -> Tensor:
    """Exchange the rows of the output gate and the candidate, which nn.LSTM has in the other order."""
    i, f, one, other = rows.chunk(4)
    return torch.cat([i, f, other, one])


class Eager:
    """A truncated window with plain autograd."""

    def __init__(self, network: Arrays, problem: Arrays, steps: int, threads: int):
        self.threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.optimizer = LSTMOptimizer(network)
        self.problem = TorchProblem(problem, self.optimizer.readout.weight.dtype)
        self.steps = steps
        self.adam = torch.optim.Adam(self.optimizer.parameters(), lr=META_LR)

    def close(self) -> None:
        torch.set_num_threads(self.threads_before)

    def window(self) -> float:
        self.adam.zero_grad()
        losses = self.unroll()
        self.adam.step()
        return float(losses.sum(0).mean())

    def unroll(self) -> Tensor:
        """Compute the losses [steps, problems], and leave the meta-gradient in the parameters' .grad."""
        params = self.problem.start.clone().requires_grad_()
        loss = self.problem.losses(params, 0)
        state, losses = None, []
        for step in range(self.steps):
            (grads,) = torch.autograd.grad(loss.sum(), params, retain_graph=True)
            update, state = self.optimizer(grads, state)
            params = params + update
            loss = self.problem.losses(params, step + 1)
            losses.append(loss)
        trajectory = torch.stack(losses)
        trajectory.sum(0).mean().backward()
        return trajectory.detach()

    def estimate(self) -> Estimate:
        self.adam.zero_grad()
        losses = self.unroll()
        return Estimate(losses.numpy(), {name: grad.numpy() for name, grad in self.optimizer.named_grads().items()})


class Seed(Eager):
    """The seed repository's way to the same numbers, written anew from its description.

    Gradients of θ are had by backward(retain_graph=True) of the losses' running sum, which walks back through the
    whole history at every step: the cost of a window grows with the square of its length.
    """

    def unroll(self) -> Tensor:
        params = self.problem.start.clone().requires_grad_()
        total = self.problem.losses(params, 0)
        first, state, losses = total.detach(), None, []
        for step in range(self.steps):
            total.sum().backward(retain_graph=True)
            assert params.grad is not None
            update, state = self.optimizer(params.grad.detach(), state)
            params = params + update
            params.retain_grad()
            loss = self.problem.losses(params, step + 1)
            total = total + loss
            losses.append(loss.detach())
        self.optimizer.zero_grad()
        (total - first).mean().backward()
        return torch.stack(losses)
