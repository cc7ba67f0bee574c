"""MkDocs hooks: add generated pages, and pages for files elsewhere in the repository that the docs link to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import reference

ROOT = Path(__file__).parents[1]
RESULTS = "reproduction/index.md"
_LINK = re.compile(r"\]\(([^)\s#:]+)((?:#[^)\s]*)?)\)")
_REFERENCE = "<!-- reference -->\n"
_FENCES = {".py": "python", ".yaml": "yaml"}


def on_config(config: Any) -> None:
    """Put the results of the reproduction behind the page about it, if there are any."""
    if (ROOT / "docs" / RESULTS).exists():
        index = next(i for i, entry in enumerate(config.nav) if "reproduce.md" in entry.values())
        config.nav.insert(index + 1, {"The paper's figures": RESULTS})


def on_files(files: Any, config: Any) -> None:
    """Add a page for each file of the repository that a page links to."""
    from mkdocs.structure.files import File

    linked = {path for file in files.documentation_pages() for path in outside(file.src_uri, file.content_string)}
    for path in sorted(linked):
        files.append(File.generated(config, _site_path(path), content=_shown(path)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Insert the configuration reference, and turn links that work on GitHub into links of the site."""
    name = page.file.src_uri
    if name.startswith("files/"):
        return markdown
    moved = _moved(markdown, f"docs/{name}", name)
    return moved.replace(_REFERENCE, reference.page()) if _REFERENCE in moved else moved


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Replace the two colons that announce a block of code in a docstring, which Markdown shows as they are."""
    return html.replace("::</p>", ":</p>")


def outside(page: str, markdown: str) -> set[str]:
    """Find the files of the repository, outside docs/, that a page of docs/ links to."""
    targets = {_target(f"docs/{page}", link) for link, _ in _LINK.findall(markdown)}
    return {path for path in targets if not path.startswith("docs/") and (ROOT / path).is_file()}


def _moved(markdown: str, source: str, page: str) -> str:
    """Rewrite the links of a file of the repository as links of a page of the site."""

    def mend(found: re.Match[str]) -> str:
        path = _target(source, found[1])
        if not (ROOT / path).is_file():  # generated, or wrong: MkDocs reports it
            return found[0]
        return f"]({posixpath.relpath(_site_path(path), posixpath.dirname(page) or '.')}{found[2]})"

    return _LINK.sub(mend, markdown)


def _target(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _site_path(path: str) -> str:
    """Return the path on the site of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(".md") else f"files/{path}.md"


def _shown(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{_FENCES.get(Path(path).suffix, '')}\n{text}````\n"
