"""The examples in public docstrings hold."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = ("api", "evaluation.statistics", "fields", "runs.results", "weights")
"""Modules with examples in their docstrings."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    failed, attempted = doctest.testmod(import_module(f"l2l_runner.{name}"), optionflags=doctest.ELLIPSIS)
    assert attempted > 0
    assert failed == 0
