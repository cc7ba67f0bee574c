"""What all pages share: their look, embedded pictures, tables of comparisons, and readable times."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from l2l_runner.files import write_atomically
from l2l_runner.plots.style import label_of
from l2l_runner.runs.results import Summary

PAGES = ("index.html", "index.md")
BASE = Path(__file__).parent / "templates"
"""Folder of the templates that those of the pages extend."""


def write_pages(root: Path, templates: Path, **content: Any) -> None:
    """Write index.html, with all pictures embedded, and index.md, with links to them.

    Args:
        root: the folder of the pages; paths of pictures are relative to it.
        templates: the folder of the templates index.html and index.md.
        content: the variables of the templates.

    Raises:
        StorageError: a page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, BASE]),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name is not None and name.endswith(".html"),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "cell": cell, "embedded": lambda name: _embedded(root / name)}
    for page in PAGES:
        write_atomically(root / page, environment.get_template(page).render(**content).encode())


def comparison_header(gain: str | None = None) -> tuple[str, ...]:
    """Return the header of `comparison_rows`, for losses or for a gain."""
    return (
        "optimizer",
        "learning rate",
        f"sum of {f'{gain}s' if gain else 'losses'}",
        f"final {gain or 'loss'}",
        "diverged",
    )


def comparison_rows(summary: Summary) -> list[dict[str, Any]]:
    """Return a row per optimizer of a comparison, to be printed."""
    return [
        {
            "optimizer": label_of(name),
            "lr": "learned" if entry.lr is None else f"{entry.lr:.3g}",
            "sum": entry.sum.shown(summary.sign),
            "final": entry.final.shown(summary.sign),
            "diverged": entry.diverged,
        }
        for name, entry in summary.optimizers.items()
    ]


def duration(seconds: float) -> str:
    """Return a time in seconds as text in seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cell(text: Any) -> str:
    """Return text as a cell of a Markdown table, special characters escaped."""
    line = " ".join(str(text).split())
    for special in "\\|`*_<>[]":
        line = line.replace(special, "\\" + special)
    return line


def _embedded(path: Path) -> str:
    """Return a picture as a data URL."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
