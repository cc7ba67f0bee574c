"""Files of tensors: read whole or not at all, and without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from l2l_runner.errors import reason

_FOLDER = 0x10  # the attribute of a folder in a ZIP archive


class TensorFileError(Exception):
    """The file cannot be read; the message says why, as a phrase."""


class UnsafeFileError(TensorFileError):
    """The file holds objects that only running code could restore."""


@contextmanager
def plain_defaults() -> Iterator[None]:
    """Create tensors in single precision on the CPU, whatever the defaults of the program around.

    What is read from a file must not depend on `torch.set_default_dtype`, or on a `torch.device("meta")` that is open.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)


@plain_defaults()
def read_tensors(path: Path) -> Any:
    """Read a file that torch.save wrote, onto the CPU.

    Raises:
        UnsafeFileError: it holds something else than tensors and plain values.
        TensorFileError: it is missing, damaged, or no such file.
    """
    try:
        if zipfile.is_zipfile(path):  # older versions of PyTorch wrote plain pickles, which have no checksums
            with zipfile.ZipFile(path) as archive:
                # torch.load ignores the checksums, and reads nothing of an entry that is marked as a folder.
                if archive.testzip() is not None or any(entry.external_attr & _FOLDER for entry in archive.infolist()):
                    raise TensorFileError("its checksums do not fit its content")
        return torch.load(path, map_location="cpu", weights_only=True)
    except TensorFileError:
        raise
    except pickle.UnpicklingError as error:
        raise UnsafeFileError("it holds something else than tensors and plain values") from error
    except Exception as error:  # parsers raise many types for damaged files
        raise TensorFileError(reason(error)) from error


def is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor of floating-point numbers on the CPU."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and value.is_floating_point()
    )
