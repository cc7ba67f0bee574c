"""Command lines that cannot be composed, or name what there is not, are refused in one sentence that names it."""

from __future__ import annotations

import pytest

from composing import refusal
from problems import OPTIMIZEE_FILES

REFUSED = [
    # Groups and keys.
    (["optimizee=foo"], ["optimizee=foo", ", ".join(OPTIMIZEE_FILES)]),
    (["optimizee=quadratc"], ["optimizee=quadratc", "Did you mean quadratic?"]),
    (["optimizer=adamw"], ["optimizer=adamw", "adam"]),
    (["unroll=medium"], ["unroll=medium", "short"]),
    (["device=tpu"], ["device=tpu", "cpu"]),
    (["experiment=none_such"], ["none_such", "paper_quadratic"]),
    (["optimizer.foo=1"], ["optimizer.foo"]),
    (["+optimizer.foo=1"], ["optimizer.foo", "hidden"]),
    (["++optimizer.foo=1"], ["optimizer.foo", "hidden"]),
    (["+optimzer.lr=1"], ["optimzer", "Did you mean optimizer?"]),
    (["optimzer.lr=1"], ["optimzer"]),
    (["+meta.step=3"], ["meta.step", "Did you mean steps?"]),
    (["+evaluation.tune.lows=3"], ["evaluation.tune.lows", "low"]),
    (["+unrol=short"], ["unrol"]),
    (["recipe=mnist_lstm"], ["recipe=mnist_lstm", "Did you mean mnist_lstm_tbptt?"]),
    (["optimizer=adam", "optimizer.hidden=3"], ["optimizer.hidden"]),
    (["~optimizee.dim"], ["optimizee.dim is missing"]),
    (["~meta.lr"], ["meta.lr is missing"]),
    (["optimizee.name=foo"], ["optimizee.name", "'foo'", "quadratic"]),
    (["meta.name=es"], ["meta.name", "'es'", "tbptt"]),
    # Hydra's grammar.
    (["optimizee.dim"], ["optimizee.dim"]),
    (["optimizee.dim=1,2"], ["optimizee.dim=1,2", "--multirun"]),
    (["optimizee.dim=["], ["["]),
    (["optimizee.dim=${nowhere}"], ["nowhere"]),
    (["data.root=${oc.env:NO_SUCH_VARIABLE_AT_ALL}"], ["NO_SUCH_VARIABLE_AT_ALL"]),
]


@pytest.mark.parametrize(("arguments", "words"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_cannot_be_composed_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    sentence = refusal(arguments)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
