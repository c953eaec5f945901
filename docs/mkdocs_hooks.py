"""MkDocs hook: shows the top-level pages of the repository on the site, and points links at where they are there.

README.md becomes the home page; every other `NAME.md` beside it becomes `name.md`.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
TOP = {path.name: f"{path.stem.lower()}.md" for path in ROOT.glob("*.md")} | {
    "README.md": "index.md",
    "LICENSE": "license.md",
}


def on_files(files: Files, config: Any) -> Files:
    """Add the top-level pages to the site."""
    for name, uri in TOP.items():
        text = (ROOT / name).read_text()
        content = f"# License\n\n```text\n{text}```\n" if name == "LICENSE" else _rewrite(text, name, uri)
        files.append(File.generated(config, uri, content=content))
    for file in files:
        if file.src_uri.startswith("adr/0") or file.src_uri == TOP["LICENSE"]:
            file.inclusion = InclusionLevel.NOT_IN_NAV
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links from docs/ to a top-level page at its place on the site."""
    uri = page.file.src_uri
    return markdown if uri in TOP.values() else _rewrite(markdown, f"docs/{uri}", uri)


def _rewrite(text: str, source: str, uri: str) -> str:
    """The text with each relative link given from `uri`; `source` is the page's path in the repository."""

    def replace(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        target = TOP.get(target, target.removeprefix("docs/"))
        return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".") + match[3]

    return LINK.sub(replace, text)
