"""What all pages share: one look, pictures inside them, losses and times as one reads them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from l2l_runner.evaluation.statistics import with_ci
from l2l_runner.files import write_atomically
from l2l_runner.plots.plotting import LABELS

PAGES = ("index.html", "index.md")
BASE = Path(__file__).parent / "templates"
"""What the pages' own templates extend."""


def write_pages(root: Path, templates: Path, **content: Any) -> None:
    """Write index.html, with all pictures in it, and index.md, beside them, into `root`.

    Args:
        root: the folder; paths of pictures are relative to it.
        templates: where index.html and index.md of this kind of page are.
        content: what they show.
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
        write_atomically(root / page, environment.get_template(page).render(COMPARED=COMPARED, **content).encode())


COMPARED = ("optimizer", "learning rate", "sum of losses", "final loss", "diverged")
"""What `comparison_rows` have."""


def comparison_rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The optimizers of a comparison's summary, a row each, to be printed."""
    return [
        {
            "optimizer": LABELS.get(name, name),
            "lr": "learned" if entry["lr"] is None else f"{entry['lr']:.3g}",
            "sum": with_ci(entry["sum"]),
            "final": with_ci(entry["final"]),
            "diverged": entry["diverged"],
        }
        for name, entry in comparison["optimizers"].items()
    ]


def duration(seconds: float) -> str:
    """Seconds as one reads them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def cell(text: Any) -> str:
    """Any text as a cell of a table in Markdown."""
    line = " ".join(str(text).split())
    for special in "\\|`*_<>[]":
        line = line.replace(special, "\\" + special)
    return line


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
