"""PyTorch modules by import path, as a configuration names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any, cast, get_type_hints

from torch import nn

from l2l_runner.errors import ConfigError, reason


def module_maker(target: object, key: str) -> Callable[..., nn.Module]:
    """Return the class or function at an import path, which must make modules.

    Checkpoints hold import paths too, so nothing else may ever be called.

    Args:
        target: the path.
        key: of the configuration, for the error message.

    Raises:
        ConfigError: there is nothing at the path, or something that makes no modules.
    """
    expected = "expected the import path of an nn.Module, such as torchvision.models.resnet18"
    if not isinstance(target, str):
        raise ConfigError(f"{key} is {target!r}; {expected}.")
    try:
        name, *parts = target.split(".")
        found: Any = import_module(name)
        for part in parts:
            name = f"{name}.{part}"
            # An attribute comes first: torchvision.models.googlenet is a function, and the name of a file too.
            found = getattr(found, part) if hasattr(found, part) else import_module(name)
    except Exception as error:  # importing runs somebody else's code
        raise ConfigError(f"{key} is {target!r}, which isn't there ({reason(error)}).") from error
    try:
        made = found if inspect.isclass(found) else get_type_hints(found).get("return")
    except (TypeError, NameError):
        made = None
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise ConfigError(
            f"{key} is {target!r}; {expected}, or of a function whose annotation says that it returns one."
        )
    return cast(Callable[..., nn.Module], found)
