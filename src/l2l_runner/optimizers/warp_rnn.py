"""The Warp-RNN of WarpGrad (Flennerhag et al. 2020, arXiv 1909.00025).

A recurrent cell adapts to a task by Adam. It is gated by an LSTM that is constant during the adaptation; this LSTM is
meta-learned, by the gradients of the same losses that the cell adapts by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2l_runner.errors import ConfigError
from l2l_runner.fields import above, at_least, named
from l2l_runner.layout import Layout, Site
from l2l_runner.optimizees.base import Problem
from l2l_runner.optimizers.base import GATES, LearnedConfig, LearnedRule, State, drawn_from
from l2l_runner.optimizers.hand_designed import Adam

Memory = tuple[Tensor, Tensor]
"""An LSTM's hidden and cell state, each [rows, hidden]."""


@dataclass(frozen=True, kw_only=True)
class WarpRNNConfig(LearnedConfig):
    """Adam on the parameters of networks whose recurrent cells are gated by learned LSTMs.

    Attributes:
        lr: Adam's learning rate.
        clip: largest norm of a problem's gradient; null for none.
        hidden: units of each LSTM.
    """

    name: str = named("warp_rnn")
    lr: float = above(0)
    clip: float | None = above(0)
    hidden: int = at_least(1)

    @property
    def learns(self) -> frozenset[str]:
        return frozenset({GATES})

    def build(self, layout: Layout, generator: torch.Generator) -> WarpRNN:
        cells = {name: site for name, site in layout.sites.items() if site.hidden}
        if not cells:
            raise ConfigError(
                "optimizer=warp_rnn gates recurrent cells, and the optimizee has none: use optimizee=maze, or another "
                "optimizer."
            )
        with drawn_from(generator):
            return WarpRNN(self, cells)


class Gates(nn.Module):
    """The gates of a cell h' = tanh(c ⊙ W(a ⊙ x) + d ⊙ U(b ⊙ h) + e ⊙ bias): (a, b, c, d, e) = 1 + P tanh(Q m).

    m is the hidden state of an LSTM that reads (x, h). P starts at zero, so that the gates start at one. For a cell
    17 → 100 and an LSTM of 100 units, W, U and bias have 11,800 parameters and the gates 139,300: 87,600 in the LSTM,
    10,000 in Q [100, 100] and 41,700 in P [417, 100].
    """

    def __init__(self, site: Site, hidden: int):
        super().__init__()
        self.lstm = nn.LSTMCell(site.channels + site.hidden, hidden)
        self.squash = nn.Linear(hidden, hidden, bias=False)
        self.project = nn.Linear(hidden, site.channels + 4 * site.hidden, bias=False)
        nn.init.zeros_(self.project.weight)

    @property
    def open(self) -> bool:
        """Whether all gates are one, for any input."""
        return not self.project.weight.any()

    def forward(self, x: Tensor, hidden: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        """Return the factors [rows, channels + 4 · hidden] of x, h, both products and the bias, and the next memory.

        Args:
            x: [rows, channels].
            hidden: [rows, hidden], of the gated cell.
            memory: of the LSTM; None before the first step.
        """
        memory = self.lstm(torch.cat((x, hidden), dim=-1), memory)
        return 1 + self.project(torch.tanh(self.squash(memory[0]))), memory


class WarpRNN(LearnedRule):
    """Adam, and the gates of the cells that it trains.

    What is learned reaches the losses through the problem, not through the updates.

    Attributes:
        gates: by the cells' names.
    """

    def __init__(self, config: WarpRNNConfig, cells: dict[str, Site]):
        super().__init__()
        self.cells, self.clip = cells, config.clip
        self.rule = Adam(lr=config.lr, weight_decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8)
        self.gates = nn.ModuleDict({name: Gates(site, config.hidden) for name, site in cells.items()})

    def adapt(self, problem: Problem) -> Problem:
        """Return the problems with gated cells; unchanged, which costs less, while all gates are constantly one."""
        gates: Sequence[Gates] = list(self.gates.values())  # type: ignore[arg-type]
        idle = not any(p.requires_grad for p in self.parameters()) and all(gate.open for gate in gates)
        return problem if idle else problem.warped(dict(self.gates.items()))

    def fitted(self, layout: Layout) -> WarpRNN:
        if any(layout.sites.get(name) != site for name, site in self.cells.items()):
            expected = ", ".join(f"{name} {site.channels} → {site.hidden}" for name, site in self.cells.items())
            raise ConfigError(
                f"This optimizer gates the recurrent cells {expected}, but the optimizee has others: evaluate it on "
                "the optimizee that it was trained on."
            )
        return self

    def init(self, params: Tensor) -> State:
        return self.rule.init(params)

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        if self.clip is not None:
            grads = grads * (self.clip / (grads.norm(dim=1, keepdim=True) + 1e-12)).clamp(max=1)
        return self.rule.update(grads, state, params)
