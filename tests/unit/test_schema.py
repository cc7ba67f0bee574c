"""Settings that make no sense are refused in one sentence that names the key, the value and what was expected."""

from __future__ import annotations

import pytest

from composing import refusal

SMALL = ["unroll.steps=10", "unroll.length=4"]
BAD = [
    # Types.
    (["optimizee.dim=ten"], ["optimizee.dim", "'ten'", "integer"]),
    (["optimizee.dim=1.5"], ["optimizee.dim", "1.5", "integer"]),
    (["optimizee.dim=true"], ["optimizee.dim", "True", "integer"]),
    (["optimizee.dim=null"], ["optimizee.dim", "None", "integer"]),
    (["optimizee.dim=[3]"], ["optimizee.dim", "[3]", "integer"]),
    (["optimizee.dim="], ["optimizee.dim", "''", "integer"]),
    (["meta.lr=fast"], ["meta.lr", "'fast'", "number"]),
    (["evaluate=maybe"], ["evaluate", "'maybe'", "true or false"]),
    (["evaluate=1"], ["evaluate", "1", "true or false"]),
    (["optimizee=digits", "optimizee.hidden=20"], ["optimizee.hidden", "20", "list"]),
    (["optimizee=digits", "optimizee.hidden=[a]"], ["optimizee.hidden[0]", "'a'", "integer"]),
    (["optimizee=3"], ["optimizee=3", "quadratic"]),
    (["optimizee="], ["optimizee=", "quadratic"]),
    (["meta=null"], ["meta=null", "tbptt"]),
    (["evaluation.baselines=null"], ["evaluation.baselines"]),
    (["evaluation.baselines.adam=3"], ["evaluation.baselines.adam"]),
    (["data.root=null"], ["data.root"]),
    (["data.root="], ["data.root is ''", "a path"]),
    # Ranges.
    (["unroll.length=0"], ["unroll.length", "0", "≥ 1"]),
    (["unroll.steps=0"], ["unroll.steps", "0", "≥ 1"]),
    (["unroll.length=-3"], ["unroll.length", "-3", "≥ 1"]),
    (["meta.steps=-1"], ["meta.steps", "-1", "≥ 0"]),
    (["meta.validate_every=0"], ["meta.validate_every", "0", "≥ 1"]),
    (["optimizee=digits", "optimizee.hidden=[0]"], ["optimizee.hidden[0]", "0", "≥ 1"]),
    (["optimizee=digits", "optimizee.hidden=[4,-1]"], ["optimizee.hidden[1]", "-1", "≥ 1"]),
    (["optimizee.dim=0"], ["optimizee.dim", "0", "≥ 1"]),
    (["optimizee=rosenbrock", "optimizee.dim=1"], ["optimizee.dim", "1", "≥ 2"]),
    (["optimizer.hidden=0"], ["optimizer.hidden", "0", "≥ 1"]),
    (["optimizer.layers=0"], ["optimizer.layers", "0", "≥ 1"]),
    (["meta_batch=0"], ["meta_batch", "0", "≥ 1"]),
    (["optimizee.batch=0"], ["optimizee.batch", "0"]),
    (["optimizee.validation_problems=0"], ["optimizee.validation_problems", "0", "≥ 1"]),
    (["optimizee.test_problems=1"], ["optimizee.test_problems", "1", "≥ 2"]),
    (["evaluation.problems=1"], ["evaluation.problems", "1", "≥ 2"]),
    (["evaluation.tune.per_decade=0"], ["evaluation.tune.per_decade", "0", "≥ 1"]),
    (["evaluation.tune.low=1", "evaluation.tune.high=0.1"], ["evaluation.tune.low", "evaluation.tune.high"]),
    (["evaluation.tune.low=10", "evaluation.tune.high=1"], ["evaluation.tune.low", "evaluation.tune.high"]),
    (["meta.warmup=1"], ["meta.warmup", "1", "< 1"]),
    (["meta.scaling=-1"], ["meta.scaling", "-1", "≥ 0"]),
    (["meta=pes", "meta.pairs=0"], ["meta.pairs", "0", "≥ 1"]),
    (["meta=pes", "meta.sigma=0"], ["meta.sigma", "0", "> 0"]),
    (["meta=pes", "+meta.second_order=true"], ["meta.second_order", "sigma"]),
    (["meta.imitation=1.1"], ["meta.imitation", "1.1", "≥ 0 and ≤ 1"]),
    (["meta.expert_lr=0"], ["meta.expert_lr", "0", "> 0"]),
    (["meta=pes", "+meta.imitation=0.5"], ["meta.imitation", "pairs"]),
    (["meta.schedule=linear"], ["meta.schedule", "'linear'", "cosine"]),
    (["score=best"], ["score", "'best'", "final, sum"]),
    (["device.dtype=float16"], ["device.dtype", "'float16'", "float64"]),
    (["device.threads=0"], ["device.threads", "0", "≥ 1"]),
    (["seed=-1"], ["seed", "-1", "≥ 0"]),
    (["optimizer=sgd", "optimizer.lr=-0.1"], ["optimizer.lr", "-0.1", "> 0"]),
    (["optimizer=adam", "optimizer.beta1=1"], ["optimizer.beta1", "1", "< 1"]),
    # What is no number.
    (["meta.lr=nan"], ["meta.lr", "nan", "number"]),
    (["meta.lr=inf"], ["meta.lr", "inf", "number"]),
    (["meta.clip=nan"], ["meta.clip", "nan", "number"]),
    (["optimizee.init_scale=nan"], ["optimizee.init_scale", "nan", "number"]),
    (["optimizer=sgd", "optimizer.lr=nan"], ["optimizer.lr", "nan", "number"]),
    (["optimizee.dim=nan"], ["optimizee.dim", "nan", "integer"]),
    # Combinations.
    (["meta.second_order=true", "meta.engine=replay"], ["meta.engine=replay", "meta.second_order=true"]),
    (["meta.weights=final"], ["meta.weights=final", "unroll.length=4", "unroll.steps=10"]),
    (["meta.curriculum=[4,4]"], ["meta.curriculum is [4, 4]", "unroll.steps=10"]),
    (["meta.curriculum=[4,2]"], ["meta.curriculum is [4, 2]", "grow"]),
    (["meta.curriculum=[4,11]"], ["meta.curriculum is [4, 11]", "unroll.steps=10"]),
    (["meta.curriculum=[0]"], ["meta.curriculum[0]", "0", "≥ 1"]),
    (["meta.curriculum=5"], ["meta.curriculum", "5", "list"]),
    (["meta.advance=0"], ["meta.advance", "0", "≥ 1"]),
    (["evaluation.baselines.adam.name=lstm"], ["evaluation.baselines.adam"]),
    (
        ["+optimizer@evaluation.baselines.lstm=lstm"],
        ["evaluation.baselines.lstm.name", "'lstm'", "sgd, momentum, nag, rms, adam"],
    ),
]


@pytest.mark.parametrize(("arguments", "words"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_a_bad_setting_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    sentence = refusal([*SMALL, *arguments])
    assert "\n" not in sentence
    for word in words:
        assert word in sentence
