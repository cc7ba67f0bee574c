"""Plots in processes of their own: what they import, and whose backend they take."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_plots_and_readers_import_neither_torch_nor_scipy() -> None:
    code = "import sys, l2l_runner.plots, l2l_runner.runs.reading; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense"])
def test_an_inherited_backend_that_is_not_installed_does_not_matter(backend: str) -> None:
    code = "import os\nfrom l2l_runner.plots import style\nfrom matplotlib.figure import Figure\n"
    code += "assert style.png(Figure(), 50)\nprint(os.environ['MPLBACKEND'])"
    run = [sys.executable, "-c", code]
    ended = subprocess.run(run, env={**os.environ, "MPLBACKEND": backend}, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.strip()) == (0, backend), ended.stderr
