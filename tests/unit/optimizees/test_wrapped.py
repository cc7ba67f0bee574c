"""Problems around other problems: all that a problem can do is forwarded."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l2l_runner import streams
from l2l_runner.errors import ConfigError
from l2l_runner.optimizees import Imbalance, Problem, Reweighted, Scaled, Started, Wrapped
from problems import OPTIMIZEE_FILES, RUNTIME, optimizee, problems

METHODS = [name for name, member in inspect.getmembers(Problem, inspect.isfunction) if not name.startswith("_")]
WRAPPERS = {
    "wrapped": Wrapped,
    "scaled": lambda problem: Scaled(problem, 0.0),  # factors of one
    "started": lambda problem: Started(problem, problem.init()),
    "reweighted": Reweighted,
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_a_problem_is_forwarded(name: str) -> None:
    assert name in vars(Wrapped)
    assert inspect.signature(getattr(Wrapped, name)) == inspect.signature(getattr(Problem, name))


class Recorder(Problem):
    """Answers every call with the call itself."""

    def __init__(self) -> None:
        plain = problems("quadratic", 2)
        self.seeds, self.layout, self.tasks = plain.seeds, plain.layout, torch.tensor([1, 4])
        self.start = plain.init()

    def init(self) -> dict[str, Tensor]:
        return self.start


for _name in set(METHODS) - {"init"}:
    setattr(Recorder, _name, lambda self, *arguments, _name=_name: (_name, *arguments))
Recorder.__abstractmethods__ = frozenset()


@pytest.mark.parametrize("kind", WRAPPERS)
def test_what_a_wrapper_does_not_change_is_the_wrapped_problems(kind: str) -> None:
    problem: Any = Recorder()  # type: ignore[abstract]
    wrapped: Any = WRAPPERS[kind](problem)
    assert wrapped.seeds is problem.seeds
    assert wrapped.layout is problem.layout
    assert wrapped.tasks is problem.tasks
    params = problem.start
    for name, arguments in {
        "metrics": (),
        "pictures": (),
        "clean_loss": (),
        "example_losses": (3,),
        "loss": (3,),
    }.items():
        if (kind, name) != ("reweighted", "loss"):
            called, at, *others = getattr(wrapped, name)(params, *arguments)
            assert (called, *others) == (name, *arguments)
            assert torch.equal(at["theta"], params["theta"])
    assert wrapped.sources() == ("sources",)
    assert torch.equal(wrapped.init()["theta"], params["theta"])


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_stays_around_warped_and_taken_problems(kind: str) -> None:
    problem = problems("maze", 3)
    wrapped = WRAPPERS[kind](problem)
    assert type(wrapped.warped({"cell": nn.Identity()})) is type(wrapped)
    rows = torch.tensor([2, 0])
    taken = wrapped.take(rows)
    assert type(taken) is type(wrapped)
    assert torch.equal(taken.seeds, problem.seeds[rows])
    for name, value in wrapped.init().items():
        assert torch.equal(taken.init()[name], value[rows])


def test_a_scaled_artwork_has_its_pictures() -> None:
    plain = problems("art", 2)
    scaled = Scaled(plain, 2.0)
    assert scaled.sources().keys() == plain.sources().keys()
    torch.testing.assert_close(scaled.pictures(scaled.init()), plain.pictures(plain.init()))


def test_only_some_optimizees_have_clean_examples() -> None:
    names = [stem for stem in OPTIMIZEE_FILES if optimizee(stem).has_clean_examples]
    assert names == ["imbalance"]
    imbalance = optimizee("imbalance")
    assert imbalance.at_proportion(0.7).proportion == 0.7
    assert isinstance(imbalance.at_proportion(0.7), Imbalance)
    with pytest.raises(ConfigError, match="leaves no image of the rare class"):
        imbalance.at_proportion(0.9999)
    quadratic = optimizee("quadratic")
    with pytest.raises(NotImplementedError, match="optimizee=quadratic has no clean examples"):
        quadratic.at_proportion(0.7)
    problem = quadratic.sample(streams.seeds(0, "train", 0, 2), RUNTIME)
    with pytest.raises(NotImplementedError, match="has no clean examples"):
        problem.example_losses(problem.init(), 0)
    with pytest.raises(NotImplementedError, match="has no clean examples"):
        problem.clean_loss(problem.init())
