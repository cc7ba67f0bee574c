"""Learn learning rates while a network trains, by one-step hypergradients.

Each backward pass computes the derivative of the new loss with respect to the rates of the previous step. An ordinary
Adam updates the rates.

Run it with `python examples/learned_rates.py`. It takes seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from l2l_runner.optim import LearnableOptimizer, MetaSGD


def train(meta_lr: float) -> tuple[float, LearnableOptimizer]:
    """Train for 300 steps; return the accuracy on 360 test images, and the optimizer. meta_lr 0 fixes the rates."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    test, rest = order[:360], order[360:]

    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = LearnableOptimizer(model, lambda param: MetaSGD(param, per="tensor"), lr=0.01)
    meta_optimizer = torch.optim.Adam(optimizer.parameters(), lr=meta_lr)
    for _ in range(300):
        batch = rest[torch.randint(len(rest), (64,))]
        optimizer.zero_grad()
        meta_optimizer.zero_grad()
        cross_entropy(model(images[batch]), labels[batch]).backward()  # gradients for the model, and for the rates
        meta_optimizer.step()
        optimizer.step()
    return (model(images[test]).argmax(1) == labels[test]).float().mean().item(), optimizer


def main() -> None:
    """Train with fixed and with learned rates."""
    fixed, _ = train(meta_lr=0.0)
    learned, optimizer = train(meta_lr=0.1)
    print(f"accuracy with the rate 0.01 fixed: {fixed:.3f}, learned: {learned:.3f}")
    for (name, _), transform in zip(optimizer.info["model"].named_parameters(), optimizer.transforms, strict=True):
        print(f"  {name:9} {optimizer.lr * transform.rate.item():.3f}")


if __name__ == "__main__":
    main()
