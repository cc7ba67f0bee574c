"""Meta-train learned optimizers, compare them fairly, keep what they learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2l_runner.api import compare as compare
    from l2l_runner.api import meta_train as meta_train
    from l2l_runner.drop_in import LearnedOptimizer as LearnedOptimizer
    from l2l_runner.weights import Card as Card
    from l2l_runner.weights import pretrained as pretrained

__version__ = "0.1.0"

_PUBLIC = {
    "meta_train": "api",
    "compare": "api",
    "LearnedOptimizer": "drop_in",
    "Card": "weights",
    "pretrained": "weights",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers to others when it is asked for, because PyTorch takes seconds."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
