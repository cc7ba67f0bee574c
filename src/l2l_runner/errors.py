"""Errors that users can fix: one sentence that says what was wrong, what was expected and how to fix it.

Every other exception is a bug and keeps its traceback.
"""


class UserError(Exception):
    """Base of the errors that the command line prints as one sentence before it exits with their exit code."""

    exit_code = 1


class ConfigError(UserError):
    """An invalid key, value or combination of choices."""


class CheckpointError(UserError):
    """A missing or damaged checkpoint, or one that does not fit."""


class DataError(UserError):
    """A data set that is missing and cannot be downloaded."""

    exit_code = 3  # so that a script can continue with what needs no data


class StorageError(UserError):
    """A folder that cannot be written, or already belongs to another run."""


class FolderTaken(StorageError):
    """A folder that belongs to another run, which must stay as it is."""


class ProcessLost(UserError):
    """Another process of the same training has died."""


def reason(error: BaseException) -> str:
    """Return the first line of another package's error, without its full stop, for use within a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
