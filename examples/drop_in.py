"""Use a pretrained learned optimizer in an ordinary PyTorch loop, beside Adam at four learning rates.

Run it with `python examples/drop_in.py`; it takes seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import l2l_runner

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

optimizers = {"learned": lambda params: l2l_runner.LearnedOptimizer(params, "mnist")}
for lr in (0.003, 0.01, 0.03, 0.1):
    optimizers[f"adam {lr}"] = lambda params, lr=lr: torch.optim.Adam(params, lr)

for name, make in optimizers.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10))
    optimizer = make(model.parameters())
    for _ in range(100):
        batch = torch.randint(len(labels), (128,))
        optimizer.zero_grad()
        loss = cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
    print(f"{name:10} loss {cross_entropy(model(images), labels).item():.3f} after 100 steps")
