"""What the documentation shows: files, commands, pages."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

from running import ROOT

DOCS = ROOT / "docs"
TEXTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
HOW_TOS = [page for page in PAGES if page.startswith("docs/howto/")]

needs_site = pytest.mark.skipif(
    not all(find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
    reason="the site is built with the packages of the extra docs: pip install -e '.[docs]'",
)


def files_of(page: str) -> dict[str, str]:
    """Return the files that a page shows whole, by name."""
    found = re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return dict(found)


def commands_of(page: str) -> list[list[str]]:
    """Return the commands that a page shows, in blocks and in lists of its text, word by word."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"^(?:- .*|  )`((?:python|torchrun) .*)`$", text, re.MULTILINE)
    lines = (shlex.split(line, comments=True) for block in blocks for line in _joined(block))
    return [words for words in lines if words]


def _joined(block: str) -> list[str]:
    return block.replace("\\\n", " ").splitlines()


def written(page: str, folder: Path) -> Path:
    """Write the files that a page shows whole into a folder, and return the folder."""
    for name, text in files_of(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


HOW_TO_COMMANDS = [(page, command) for page in HOW_TOS for command in commands_of(page)]
