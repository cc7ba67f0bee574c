"""python -m l2l_runner.report DIR…: one page of any set of runs and sweeps.

It takes any number of folders and composes no configuration, so it is an ordinary command without Hydra.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from l2l_runner.errors import ConfigError, StorageError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; --help lists the arguments.")


def report(folders: Sequence[Path], out: Path) -> str:
    """Write the page of all runs in `folders` into `out`; return the messages for the user.

    Raises:
        StorageError: a folder holds no run, or the page cannot be written.
    """
    from l2l_runner.pages.reporting.contents import read_runs
    from l2l_runner.pages.reporting.page import write_report

    if (out / ".run").exists():
        raise StorageError(f"{out} belongs to a run: give the page a folder of its own with --out FOLDER.")
    runs, sweeps = read_runs(folders)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_report(out, runs, sweeps)
    except OSError as error:
        raise StorageError(
            f"{error.filename or out} could not be written ({error.strerror}): choose another folder with --out FOLDER."
        ) from error
    damaged = [f"run {run.number}, {run.name}, is damaged: {run.detail}" for run in runs if run.status == "damaged"]
    return "\n".join([*damaged, str(out / "index.html"), str(out / "index.md")])


def main() -> None:
    """Run the console script l2l-report."""
    parser = Parser(
        prog="python -m l2l_runner.report",
        description="Report any set of runs and sweeps on one self-contained HTML page, and in Markdown.",
    )
    parser.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help="folder of a run, of a sweep, or of several"
    )
    default = Path("outputs") / "report"
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, default=default, help=f"folder for the page (default: {default})"
    )
    try:
        arguments = parser.parse_args()
        print(report(arguments.folders, arguments.out))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
