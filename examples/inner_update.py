"""Update a module's parameters inside the graph, as MAML does.

An nn.Parameter cannot be updated inside the graph. It is a leaf, where a graph begins, but the result of a
computation such as p − lr·g has a history. So the values must leave the module: `named_parameters` returns them,
ordinary tensor arithmetic updates them, and `torch.func.functional_call` computes the module with them. This works
with any module.

Run it with `python examples/inner_update.py`. It needs only PyTorch and takes seconds.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

Params = dict[str, Tensor]
Points = tuple[Tensor, Tensor]


def adapted(module: nn.Module, params: Params, points: Points, lr: float = 0.02, create_graph: bool = True) -> Params:
    """Take three steps of gradient descent on a task's points; the result is differentiable in `params`."""
    x, y = points
    for _ in range(3):
        loss = mse_loss(functional_call(module, params, (x,)), y)
        grads = torch.autograd.grad(loss, tuple(params.values()), create_graph=create_graph)
        params = {name: p - lr * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return params


def outer_loss(module: nn.Module, params: Params, train: Points, test: Points, create_graph: bool = True) -> Tensor:
    """Compute the loss on new points of a task, after adaptation to its other points."""
    params = adapted(module, params, train, create_graph=create_graph)
    return mse_loss(functional_call(module, params, (test[0],)), test[1])


def sine() -> tuple[Points, Points]:
    """Draw a task: ten points of a sine wave for training and ten for testing, with random amplitude and phase."""
    amplitude, phase = 1 + 2 * torch.rand(1), math.pi * torch.rand(1)
    x = 10 * torch.rand(20, 1) - 5
    y = amplitude * torch.sin(x + phase)
    return (x[:10], y[:10]), (x[10:], y[10:])


def main() -> None:
    """Show what fails, what works, that the gradient is right, and MAML as a use of it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(1, 40), nn.Tanh(), nn.Linear(40, 1)).double()
    torch.set_default_dtype(torch.float64)
    train, test = sine()

    print("The module itself refuses:")
    try:
        module[0].weight = module[0].weight - 0.1 * torch.ones(40, 1)
    except TypeError as error:
        print(f"  {error}")

    start = dict(module.named_parameters())
    before = {name: p.detach().clone() for name, p in start.items()}
    outer_loss(module, start, train, test).backward()  # fills .grad of the module's own parameters
    exact = torch.cat([p.grad.flatten() for p in module.parameters()])
    first_order = torch.autograd.grad(outer_loss(module, start, train, test, create_graph=False), start.values())

    direction = torch.randn(exact.shape)
    parts = dict(zip(start, direction.split([p.numel() for p in start.values()]), strict=True))

    def moved(h: float) -> Tensor:
        return outer_loss(module, {name: p + h * parts[name].view_as(p) for name, p in start.items()}, train, test)

    print("The gradient through three inner steps, along a random direction:")
    print(f"  functional_call      {exact @ direction:.6f}")
    print(f"  finite differences   {(moved(1e-5) - moved(-1e-5)).item() / 2e-5:.6f}")
    print(f"  without inner graph  {torch.cat([g.flatten() for g in first_order]) @ direction:.6f}")
    unchanged = all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    print(f"The module's own parameters are what they were: {unchanged}")

    print("MAML: an ordinary Adam moves the start, so that three steps suffice for a new sine wave:")
    adam = torch.optim.Adam(module.parameters(), lr=0.02)
    for step in range(401):
        loss = torch.stack([outer_loss(module, start, *sine()) for _ in range(4)]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % 100 == 0:
            with torch.random.fork_rng():  # the same new waves each time
                torch.manual_seed(1)
                losses = [outer_loss(module, start, *sine()).item() for _ in range(100)]
            print(f"  meta-step {step:3}: {sum(losses) / 100:.3f}")


if __name__ == "__main__":
    main()
