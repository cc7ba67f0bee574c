"""Files that are whole or not there: atomic writes, and JSON without NaN."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from l2l_runner.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, wholly or not at all, even if the machine stops meanwhile.

    Raises:
        StorageError: the folder cannot be written, or is full; the file that was there before is untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        kept = "; the previous file is untouched" if path.exists() else ""
        raise StorageError(
            f"{path} could not be written ({error.strerror}){kept}: make room or permit writing there, then resume."
        ) from error


def jsonable(value: Any) -> Any:
    """Return the value with null for every number that is not finite, because JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value


def with_nan(value: Any) -> Any:
    """Return the value with NaN for every null: the inverse of `jsonable`."""
    if value is None:
        return math.nan
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    return [with_nan(item) for item in value] if isinstance(value, list) else value


def write_json(path: Path, content: Any) -> None:
    """Write a value as JSON, atomically.

    Raises:
        StorageError: as `write_atomically`.
    """
    write_atomically(path, json.dumps(jsonable(content), indent=1).encode() + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else None
