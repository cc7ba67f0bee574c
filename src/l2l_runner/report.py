"""python -m l2l_runner.report DIR…: one page of any set of runs and sweeps.

It composes no configuration and takes any number of folders, so it is an ordinary command, not one of Hydra's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from l2l_runner.errors import ConfigError, StorageError, UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}; --help shows what there is.")


def report(folders: Sequence[Path], out: Path) -> str:
    """Write the page of all runs in `folders` into `out`; what there is to say of it.

    Raises:
        StorageError: a folder holds no run, or the page cannot be written.
    """
    from l2l_runner.pages.reporting.page import write_report
    from l2l_runner.pages.reporting.runs import find_runs

    if (out / ".run").exists():
        raise StorageError(f"{out} belongs to a run: give the page a folder of its own with --out FOLDER.")
    runs, sweeps = find_runs(folders)
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
    """The console script l2l-report."""
    parser = Parser(
        prog="python -m l2l_runner.report",
        description="One self-contained HTML page, and the same in Markdown, of any set of runs and sweeps.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="of a run or a sweep, or that holds some")
    default = Path("outputs") / "report"
    parser.add_argument("--out", metavar="FOLDER", type=Path, default=default, help=f"for the page; {default}")
    try:
        arguments = parser.parse_args()
        print(report(arguments.folders, arguments.out))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
