"""The explicit randomness against a reference in plain Python integers, and its statistics."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from l2l_runner import streams

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

int64 = st.integers(-(2**63), 2**63 - 1)
run_seeds = st.integers(0, 2**70)  # larger than 64 bits: a run's seed is any natural number
words = st.text(max_size=12)


def mix(z: int) -> int:
    """SplitMix64's finaliser, as published."""
    z &= MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def signed(z: int) -> int:
    return z - (1 << 64) if z >> 63 else z


def reference_seed(run_seed: int, stream: str, item: int) -> int:
    return signed(mix((item + 1) * GOLDEN + key(f"{run_seed}/{stream}")))


def reference_uniform(seed: int, number: int, purpose: str, step: int) -> float:
    start = mix(mix(seed + key(purpose)) + step * GOLDEN)
    return (mix(start + (number + 1) * GOLDEN) >> 11) / 2**53


def test_reference_is_the_published_generator():
    # The first outputs of SplitMix64 from state 1234567, as its other implementations list them.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix(1234567 + i * GOLDEN) for i in range(1, 6)] == published


@given(st.lists(int64, min_size=1, max_size=20))
@settings(deadline=None)
def test_mix_is_exact_for_every_int64(values):
    ours = streams._mix(torch.tensor(values, dtype=torch.int64)).tolist()
    assert ours == [signed(mix(value)) for value in values]


@pytest.mark.parametrize(
    "value", [0, 1, -1, 2**63 - 1, -(2**63)], ids=["zero", "one", "minus-one", "largest", "smallest"]
)
def test_mix_at_the_ends_of_int64(value):
    assert streams._mix(torch.tensor([value])).tolist() == [signed(mix(value))]


@given(run_seeds, words, st.integers(0, 2**50), st.integers(1, 30))
@settings(deadline=None)
def test_seeds_equal_the_reference(run_seed, stream, start, count):
    ours = streams.seeds(run_seed, stream, start, count)
    assert ours.dtype == torch.int64
    assert ours.tolist() == [reference_seed(run_seed, stream, start + i) for i in range(count)]


@given(st.lists(int64, min_size=1, max_size=4), st.integers(1, 6), words, st.integers(0, 2**40))
@settings(deadline=None)
def test_uniform_equals_the_reference(seeds, count, purpose, step):
    ours = streams.uniform(torch.tensor(seeds), count, purpose, step)
    assert ours.dtype == torch.float64
    assert ours.tolist() == [[reference_uniform(seed, i, purpose, step) for i in range(count)] for seed in seeds]


@given(st.lists(int64, min_size=1, max_size=4), st.integers(1, 6), words, st.integers(0, 2**40))
@settings(deadline=None)
def test_normal_equals_the_reference(seeds, count, purpose, step):
    ours = streams.normal(torch.tensor(seeds), count, purpose, step)
    for row, seed in zip(ours.tolist(), seeds, strict=True):
        numbers = [reference_uniform(seed, i, purpose, step) for i in range(2 * count)]
        expected = [
            math.sqrt(-2 * math.log(1 - radius)) * math.cos(2 * math.pi * angle)
            for radius, angle in zip(numbers[:count], numbers[count:], strict=True)
        ]
        assert row == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.lists(int64, min_size=1, max_size=4), st.integers(1, 6), st.integers(1, 2**31), words, st.integers(0, 2**40))
@settings(deadline=None)
def test_integers_equal_the_reference_and_lie_in_range(seeds, count, high, purpose, step):
    ours = streams.integers(torch.tensor(seeds), count, high, purpose, step)
    expected = [[int(reference_uniform(seed, i, purpose, step) * high) for i in range(count)] for seed in seeds]
    assert ours.tolist() == expected
    assert ours.min() >= 0
    assert ours.max() < high


def test_values_are_those_of_earlier_versions():
    # Runs can be repeated and resumed only as long as these stay what they are.
    seeds = streams.seeds(0, "train", 0, 2)
    assert seeds.tolist() == [-2412428688077063948, -2215969927818773494]
    assert streams.uniform(seeds, 2, "weight").tolist() == [
        [0.23261943417453912, 0.4093119965806822],
        [0.5161218014824284, 0.039058215256823736],
    ]
    assert streams.integers(seeds, 3, 60000, "minibatch", 7).tolist() == [[5007, 49622, 39522], [15151, 24645, 56896]]
    assert streams.normal(seeds, 1, "start").flatten().tolist() == pytest.approx(
        [1.2633321784342577, 0.49370923194125815], rel=1e-9
    )


NAMES = ("train", "validation", "test")


@pytest.mark.parametrize("run_seed", [0, 1, 12345])
def test_streams_are_disjoint_over_many_items(run_seed):
    everything = torch.cat([streams.seeds(run_seed, name, 0, 100_000) for name in NAMES])
    assert len(everything.unique()) == 300_000


@given(run_seeds)
@settings(max_examples=50, deadline=None)
def test_streams_are_disjoint_for_every_seed(run_seed):
    # The training stream is long: its items far from the start must not meet the others either.
    parts = [streams.seeds(run_seed, name, start, 500) for name in NAMES for start in (0, 10**6)]
    assert len(torch.cat(parts).unique()) == 500 * len(parts)


@given(run_seeds, run_seeds)
@settings(deadline=None)
def test_runs_of_different_seeds_share_no_problem(one, other):
    if one == other:
        other += 1
    both = torch.cat([streams.seeds(seed, name, 0, 200) for seed in (one, other) for name in NAMES])
    assert len(both.unique()) == len(both)


@given(run_seeds, st.integers(0, 10**9), st.integers(1, 50), st.data())
@settings(deadline=None)
def test_an_item_is_the_same_in_any_batch(run_seed, start, count, data):
    item = data.draw(st.integers(start, start + count - 1))
    alone = streams.seeds(run_seed, "train", item, 1)
    assert streams.seeds(run_seed, "train", start, count)[item - start] == alone[0]


DRAWS = {
    "uniform": streams.uniform,
    "normal": streams.normal,
    "integers": lambda seeds, count, purpose, step: streams.integers(seeds, count, 1000, purpose, step),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_problem_draws_the_same_in_any_batch_and_order(draw):
    seeds = streams.seeds(3, "train", 0, 8)
    together = draw(seeds, 5, "minibatch", 2)
    order = torch.tensor([6, 1, 4])
    assert torch.equal(draw(seeds[order], 5, "minibatch", 2), together[order])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_draw_follows_from_seed_purpose_and_step_alone(draw):
    seeds = streams.seeds(3, "train", 0, 4)
    first = draw(seeds, 5, "minibatch", 2)
    draw(seeds, 5, "minibatch", 3)
    torch.rand(3)
    assert torch.equal(draw(seeds, 5, "minibatch", 2), first)


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("change", ["seed", "purpose", "step"])
def test_another_seed_purpose_or_step_gives_other_numbers(draw, change):
    seeds = streams.seeds(3, "train", 0, 4)
    first = draw(seeds, 8, "a", 2)
    others = {"seed": (seeds + 1, 8, "a", 2), "purpose": (seeds, 8, "b", 2), "step": (seeds, 8, "a", 3)}
    assert (draw(*others[change]) != first).double().mean() > 0.9


def test_uniform_is_uniform():
    values = streams.uniform(streams.seeds(0, "train", 0, 200), 1000, "test").flatten()
    assert values.min() >= 0
    assert values.max() < 1
    assert values.mean().item() == pytest.approx(0.5, abs=4 * (1 / 12 / 200_000) ** 0.5)
    assert values.var().item() == pytest.approx(1 / 12, abs=1e-3)
    assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-3


def test_normal_is_normal():
    values = streams.normal(streams.seeds(0, "train", 0, 200), 1000, "test").flatten()
    assert values.mean().item() == pytest.approx(0, abs=4 / 200_000**0.5)
    assert values.var().item() == pytest.approx(1, abs=0.015)
    assert stats.skew(values.numpy()) == pytest.approx(0, abs=0.025)
    assert stats.kurtosis(values.numpy()) == pytest.approx(0, abs=0.05)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3


def test_integers_are_equally_likely():
    values = streams.integers(streams.seeds(0, "train", 0, 100), 1000, 10, "test").flatten()
    assert stats.chisquare(values.bincount(minlength=10).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("apart", ["problems", "steps", "purposes", "numbers"])
def test_draws_are_uncorrelated(apart):
    # Seeds of neighbouring items, neighbouring steps and so on differ in few bits; their numbers must not show it.
    seeds = streams.seeds(0, "train", 0, 20_001)
    one = streams.uniform(seeds, 2, "a", 0)
    pairs = {
        "problems": (one[:-1, 0], one[1:, 0]),
        "steps": (one[:, 0], streams.uniform(seeds, 2, "a", 1)[:, 0]),
        "purposes": (one[:, 0], streams.uniform(seeds, 2, "b", 0)[:, 0]),
        "numbers": (one[:, 0], one[:, 1]),
    }
    correlation = torch.corrcoef(torch.stack(pairs[apart]))[0, 1]
    assert abs(correlation) < 4 / 20_000**0.5


@pytest.mark.parametrize("bits", [0, -1], ids=["no-bit-set", "all-bits-set"])
def test_extreme_bits_stay_in_range(bits, monkeypatch):
    # Too rare to be met by drawing: the smallest and the largest number that the generator can yield.
    monkeypatch.setattr(streams, "_bits", lambda seeds, count, purpose, step: torch.full((len(seeds), count), bits))
    seeds = torch.tensor([1])
    uniform = streams.uniform(seeds, 4, "test")
    assert ((uniform >= 0) & (uniform < 1)).all()
    assert streams.normal(seeds, 4, "test").isfinite().all()
    for high in (1, 3, 10, 1437, 60_000, 2**20, 2**31 - 1):
        integers = streams.integers(seeds, 4, high, "test")
        assert ((integers >= 0) & (integers < high)).all()


def test_torch_generators_follow_from_seed_and_stream():
    def draw(seed, stream):
        return torch.rand(5, generator=streams.generator(seed, stream)).tolist()

    assert draw(0, "optimizer") == draw(0, "optimizer")
    assert draw(0, "optimizer") != draw(1, "optimizer")
    assert draw(0, "optimizer") != draw(0, "other")
