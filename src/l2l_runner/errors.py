"""Errors that are the user's to mend: one sentence that says what was wrong, what was expected and how to mend it.

Everything else that is raised is a bug, and keeps its traceback.
"""


class UserError(Exception):
    """Base of all errors that the command line prints as one sentence and answers with their exit code."""

    exit_code = 1


class ConfigError(UserError):
    """A key, a value or a combination of choices that makes no sense."""


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, or does not fit."""


class DataError(UserError):
    """A data set that is not there and cannot be fetched."""

    exit_code = 3  # so that a script can go on with what needs no data


class StorageError(UserError):
    """A folder that cannot be written, or already belongs to another run."""


class FolderTaken(StorageError):
    """A folder that belongs to another run, in which nothing may be changed."""


class ProcessLost(UserError):
    """Another process of the same training is gone."""


def reason(error: BaseException) -> str:
    """The first line of another package's error, without its full stop: to be put into a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__
