"""Settings that make no sense are refused in one sentence that names the key, the value and what was expected."""

from __future__ import annotations

import pytest

from composing import parsed, parsed_eval, refusal

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
    (["kernel=fast"], ["kernel", "fast", "torch", "cpp", "auto"]),
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


REWEIGHT = ["meta=reweight", "optimizee=imbalance", "optimizer=sgd", "meta.proportions=[0.8,0.9]"]
REWEIGHT += ["optimizee.data=digits", "optimizee.images=60"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["meta.proportions=[]"], ["meta.proportions", "one or more"]),
        (["meta.proportions=[0.9,0.9]"], ["meta.proportions", "all different"]),
        (["meta.proportions=0.9"], ["meta.proportions", "0.9", "list"]),
        (["meta.proportions=[0.9,1.0]"], ["meta.proportions[1]", "1.0", "< 1"]),
        (["meta.proportions=[0.8,0.995]"], ["optimizee.images=60", "0.995", "rare class"]),
        (["meta.runs=0"], ["meta.runs", "0", "≥ 1"]),
        (["meta.read_every=0"], ["meta.read_every", "0", "≥ 1"]),
        (["optimizee.classes=[9]"], ["optimizee.classes", "[9]", "two different digits"]),
        (["optimizee.classes=[4,4]"], ["optimizee.classes", "[4, 4]", "two different digits"]),
        (["optimizee.classes=[4,10]"], ["optimizee.classes[1]", "10", "< 10"]),
        (["optimizee.proportion=0.3"], ["optimizee.proportion", "0.3", "≥ 0.5"]),
        (["optimizee.data=cifar"], ["optimizee.data", "'cifar'", "mnist, digits"]),
        (["optimizee.side=15"], ["optimizee.side", "15", "≥ 16"]),
        (["optimizee.clean=0"], ["optimizee.clean", "0", "≥ 1"]),
        (["optimizer=lstm"], ["meta=reweight", "hand-designed", "optimizer=lstm", "learns updates", "sgd or adam"]),
    ],
)
def test_a_bad_setting_of_reweighting_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    sentence = refusal([*REWEIGHT, *arguments])
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_only_some_optimizees_can_be_reweighted() -> None:
    sentence = refusal(["meta=reweight", "optimizer=sgd"])
    for word in ("meta=reweight", "optimizee=quadratic", "optimizee=imbalance"):
        assert word in sentence


@pytest.mark.parametrize(
    ("meta", "given", "named"),
    [
        ("online", ["optimizer=hypergradient", "evaluate=false"], "meta=online ignores evaluate here:"),
        ("online", ["optimizer=hypergradient", "meta_batch=3", "evaluate=true"], "ignores evaluate and meta_batch"),
        ("reweight", ["optimizee=imbalance", "optimizer=sgd", "score=sum"], "meta=reweight ignores score here:"),
        (
            "warpgrad",
            ["optimizee=omniglot", "optimizer=warp", "meta.algorithm=online", "meta.every=2", "meta.batch=3"],
            "meta=warpgrad ignores meta.batch and meta.every here:",
        ),
    ],
)
def test_keys_that_a_run_ignores_are_refused(meta: str, given: list[str], named: str) -> None:
    sentence = refusal([f"meta={meta}", *given])
    assert named in sentence
    assert sentence.endswith("leave that out.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["checkpoint is missing", "checkpoint="]),
        (["checkpoint="], ["checkpoint is empty"]),
        (["checkpoint=", "optimizee.dim=5"], ["checkpoint is empty"]),
        (["checkpoint=nowhere.pt"], ["nowhere.pt", "no checkpoint"]),
        (["checkpoint=nowhere.pt", "optimizee.dim=5"], ["nowhere.pt", "no checkpoint"]),
        (["checkpoint=."], ["best.pt", "no checkpoint"]),
        (["checkpoint=null"], ["no checkpoint"]),
        (["checkpoint=quadratic", "optimizee=foo"], ["optimizee=foo", "quadratic"]),
        (["checkpoint=quadratic", "optimizee.dim=ten"], ["optimizee.dim", "'ten'"]),
        (["checkpoint=quadratic", "optimizee.foo=1"], ["optimizee.foo"]),
        (["checkpoint=quadratic", "+optimizee.foo=1"], ["optimizee.foo"]),
        (["checkpoint=quadratic", "steps=0"], ["steps", "0"]),
        (["checkpoint=quadratic", "problems=1"], ["problems", "1"]),
        (["checkpoint=quadratic", "seed=-1"], ["seed", "-1"]),
        (["checkpoint=quadratic", "score=best"], ["score", "'best'"]),
        (["checkpoint=quadratic", "tune.low=20"], ["tune.low is 20; expected less than tune.high"]),
        (["checkpoint=quadratic", "baselines.adam.lr=0"], ["baselines.adam.lr", "0"]),
        (["checkpoint=quadratic", "optimizer.hidden=3"], ["optimizer"]),
        (["checkpoint=quadratic", "meta.steps=3"], ["meta"]),
        (["checkpoint=quadratic", "foo=3"], ["foo"]),
    ],
)
def test_a_bad_evaluation_is_one_sentence(arguments: list[str], words: list[str]) -> None:
    sentence = refusal(arguments, parsed_eval)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_what_is_small_is_no_refusal() -> None:
    """Every row above is refused for what it says, because what it is added to is not."""
    parsed(*SMALL)
    parsed(*REWEIGHT)
    parsed_eval("checkpoint=quadratic", "optimizee.dim=5")
