"""The contract of a learned rule: what a rule that writes nothing but `init` and `update` can do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.layout import Layout
from l2l_runner.meta import TBPTT
from l2l_runner.optimizers import HAND_DESIGNED, LearnedRule, State
from problems import UPDATE_RULES, any_optimizer, problems, scattered
from rules import F64, Momentum


class Decay(Momentum):
    """Its updates depend on the parameters."""

    def update(self, grads: Tensor, state: State, params: Tensor) -> tuple[Tensor, State]:
        return super().update(grads + self.momentum * params, state, params)


LEARNED_RULES = [stem for stem in UPDATE_RULES if stem not in HAND_DESIGNED]


@pytest.mark.parametrize("stem", LEARNED_RULES)
def test_the_default_replay_is_each_rules_own(stem: str) -> None:
    problem = problems("digits" if stem == "groups" else "quadratic", 3)
    rule = any_optimizer(stem, problem.layout)
    assert isinstance(rule, LearnedRule)
    generator = torch.Generator().manual_seed(1)
    for parameter in rule.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=F64, generator=generator)
    grads, cotangents = torch.randn(2, 4, 3, problem.layout.size, dtype=F64, generator=generator)
    params = scattered(problem)
    state = rule.init(params)
    with torch.no_grad():
        _, state = rule.update(grads[-1], state, params)  # a state that isn't zero
    mine, default = rule.replay(grads, state, cotangents), LearnedRule.replay(rule, grads, state, cotangents)
    assert len(mine) == len(default) == len(list(rule.parameters()))
    for one, other in zip(mine, default, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert any(one.abs().max() > 1e-6 for one in mine)


@pytest.mark.parametrize("settings", [{}, {"chunk": 5}, {"coordinates": 10**6}], ids=["whole", "chunks", "all"])
def test_a_rule_of_two_methods_is_replayed(settings: dict[str, Any]) -> None:
    rule, problem = Momentum(), problems("quadratic", 3)
    replayed = list(TBPTT(length=3, steps=8, **settings).estimates(rule, problem))
    differentiated = list(TBPTT(length=3, steps=8, engine="graph").estimates(_Used(), problem))
    for one, other in zip(replayed, differentiated, strict=True):
        torch.testing.assert_close(one.grads[:2], other.grads, rtol=1e-10, atol=1e-12)
        assert not one.grads[2].any()


class _Used(Momentum):
    """Without the parameter that no update depends on, which the graph's derivatives refuse."""

    def __init__(self) -> None:
        super().__init__()
        del self.unused


def test_a_sample_of_a_rule_of_two_methods_is_unbiased(monkeypatch: pytest.MonkeyPatch) -> None:
    # Over a fine grid of offsets, the mean of the estimates is the gradient.
    rule, problem, offsets = Momentum(), problems("quadratic", 3), 100
    (whole,) = TBPTT(length=4, steps=4).estimates(rule, problem)
    mean = torch.zeros(2, dtype=F64)
    for i in range(offsets):
        offset = torch.tensor([[(i + 0.5) / offsets]], dtype=F64)
        monkeypatch.setattr(streams, "uniform", lambda *args, offset=offset, **kwargs: offset)
        (estimate,) = TBPTT(length=4, steps=4, coordinates=5).estimates(rule, problem)
        mean += torch.stack(estimate.grads[:2]) / offsets  # type: ignore[arg-type]
    torch.testing.assert_close(mean, torch.stack(whole.grads[:2]), rtol=0.01, atol=0)  # type: ignore[arg-type]


def test_a_replay_has_no_parameters_to_read() -> None:
    rule, problem = Decay(), problems("quadratic", 2)
    with pytest.raises(RuntimeError, match="meta"):
        list(TBPTT(length=2, steps=2).estimates(rule, problem))


def test_the_other_methods_have_defaults() -> None:
    rule, layout = Momentum(), Layout({"theta": (4,)})
    assert rule.fitted(layout) is rule
    assert rule.rule_of("weight") is rule
    assert [part.rule for part in rule.parts()] == [rule]
    assert rule.recording(torch.zeros(1, 4), 1) is None
    assert rule.rates() == {}
    assert rule.kernel_name == "torch"
    for name in ("auto", "torch"):
        rule.use_kernel(name)
    for name in ("cpp", "triton"):
        with pytest.raises(ConfigError, match=rf"kernel={name} computes LSTM optimizers only.*kernel=auto"):
            rule.use_kernel(name)
    sgd = any_optimizer("sgd", layout)
    assert (sgd.fitted(layout), sgd.rule_of("weight"), sgd.parts()) == (sgd, sgd, ())
    sgd.use_kernel("cpp")  # nothing of it is for a kernel to compute
