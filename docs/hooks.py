"""What MkDocs calls while it builds the site: what is generated, and what lies elsewhere in the repository."""

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
_SECTION = re.compile(r"^<!-- (\S+): (.+) -->\n", re.MULTILINE)
_FENCES = {".py": "python", ".yaml": "yaml"}


def on_config(config: Any) -> None:
    """The results of the reproduction stand behind the page on it, where there are some."""
    if (ROOT / "docs" / RESULTS).exists():
        place = next(i for i, entry in enumerate(config.nav) if "reproduce.md" in entry.values())
        config.nav.insert(place + 1, {"The paper's figures": RESULTS})


def on_files(files: Any, config: Any) -> None:
    """Add a page for each file of the repository that a page links to."""
    from mkdocs.structure.files import File

    linked = {path for file in files.documentation_pages() for path in outside(file.src_uri, file.content_string)}
    for path in sorted(linked):
        files.append(File.generated(config, _place(path), content=_shown(path)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Sections of other files in their places, and links that are right on GitHub right on the site."""
    name = page.file.src_uri
    if name.startswith("files/"):
        return markdown
    mended = _moved(markdown, f"docs/{name}", name)
    if _REFERENCE in mended:
        mended = mended.replace(_REFERENCE, reference.page())
    return _SECTION.sub(lambda found: _moved(section(found[1], found[2]), found[1], name), mended)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings announce a block of code as in reStructuredText, which Markdown shows as two colons."""
    return html.replace("::</p>", ":</p>")


def outside(page: str, markdown: str) -> set[str]:
    """The files of the repository outside of docs/ that a page of docs/ links to, itself or in sections of others."""
    texts = [(f"docs/{page}", markdown), *((path, section(path, title)) for path, title in _SECTION.findall(markdown))]
    targets = {_target(source, link) for source, text in texts for link, _ in _LINK.findall(text)}
    return {path for path in targets if not path.startswith("docs/") and (ROOT / path).is_file()}


def section(path: str, title: str) -> str:
    """What stands below a heading of a Markdown file of the repository, up to the next one of its level.

    Raises:
        ValueError: there is no such heading.
    """
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", (ROOT / path).read_text(), re.M | re.S)
    if found is None:
        raise ValueError(f"{path} has no heading {title!r}, of which a page shows the section.")
    return found[2]


def _moved(markdown: str, source: str, page: str) -> str:
    """Markdown with its links, from where a file lies in the repository, as links of a page of the site."""

    def mend(found: re.Match[str]) -> str:
        path = _target(source, found[1])
        if not (ROOT / path).is_file():  # generated, or wrong, which MkDocs will say
            return found[0]
        return f"]({posixpath.relpath(_place(path), posixpath.dirname(page) or '.')}{found[2]})"

    return _LINK.sub(mend, markdown)


def _target(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"files/{path}" if path.endswith(".md") else f"files/{path}.md"


def _shown(path: str) -> str:
    text = (ROOT / path).read_text()
    if path.endswith(".md"):
        return text
    return f"# {path}\n\n````{_FENCES.get(Path(path).suffix, '')}\n{text}````\n"
