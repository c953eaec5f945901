"""READMEs as HTML: Markdown is rendered, then everything but plain formatting is removed.

- A README is hostile input. nh3 keeps the tags and attributes below and nothing else, and closes what is left open.
- Images become their descriptions: a page sends no request to another server, and versions hold no images. Absolute
  links stay, those to headings, and relative ones to files of the version.
- Only the first `READ_LIMIT_BYTES` are read. What would become very long is shown as plain text.
"""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any
from urllib.parse import quote

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup, escape

READ_LIMIT_BYTES = 32 * 2**10
HTML_LIMIT = 90_000
"""Characters of a rendered README. With them a page stays below 150 KB."""
PLAIN_LIMIT = 30_000
CELLS_LIMIT = 10_000
"""Cells of a table. 32 KiB can describe 65,000, which take seconds."""
MARKERS_LIMIT = 2_000
"""Characters that may open or close something, and lines. For each the parser may look through the rest of the text."""
CACHED = 128
_DELIMITER_ROW = re.compile(r"^[ \t>]*[|:-][|: \t-]*$", re.MULTILINE)
_BIDI_CONTROL = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Elsewhere such a text is refused; a README is shown as it is."""
_TAGS = frozenset(
    {
        "a", "blockquote", "br", "code", "del", "details", "em", "h3", "h4", "h5", "h6", "hr", "kbd", "li", "ol", "p",
        "pre", "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul",
    }
)  # fmt: skip
_ATTRIBUTES = {"a": {"href"}, "ol": {"start"}} | {heading: {"id"} for heading in ("h3", "h4", "h5", "h6")}
ANCHOR = "readme-"
"""What ids of headings begin with, so that none is one of the page."""
_ANCHOR = re.compile(rf"{ANCHOR}[\w-]{{1,80}}\Z")
_SCROLLABLE = {tag: {"tabindex": "0"} for tag in ("pre", "table")}
"""What scrolls sideways on a narrow screen, by keyboard too."""
_SCHEMES = frozenset({"http", "https", "mailto"})
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n.*?^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
_HEADINGS_DOWN = 2
"""The page has two levels of headings above those of a README."""


@lru_cache(maxsize=CACHED)
def render_readme(data: bytes, files: frozenset[str] = frozenset(), folder: str = "") -> Markup:
    """Return the README as HTML that is safe to show. `folder`: the path below which pages have the version's files."""
    text = (
        data[:READ_LIMIT_BYTES]
        .decode("utf-8", "replace")
        .replace("\r\n", "\n")
        .replace("\0", "\N{REPLACEMENT CHARACTER}")
    )
    return Markup(_BIDI_CONTROL.sub(_name_control, _render(_FRONT_MATTER.sub("", text, count=1), files, folder)))  # noqa: S704  # safe


def _name_control(match: re.Match[str]) -> str:
    """Show what reverses the text after it, such as the name of a file, as its number."""
    return f"[U+{ord(match[0]):04X}]"


def _render(text: str, files: frozenset[str], folder: str) -> Markup:
    markers = max(sum(map(text.count, "[*_`>~<")), text.count("\n"))
    if markers > MARKERS_LIMIT or _count_cells(text) > CELLS_LIMIT:
        return Markup("<pre>{}</pre>").format(text[:PLAIN_LIMIT])
    html = nh3.clean(
        _MARKDOWN.render(text),
        tags=set(_TAGS),
        attributes=_ATTRIBUTES,
        attribute_filter=partial(_filter_attribute, files, folder),
        set_tag_attribute_values=_SCROLLABLE,
        url_schemes=set(_SCHEMES),
        link_rel="noopener noreferrer nofollow",
    )
    if len(html) > HTML_LIMIT:
        return Markup("<pre>{}</pre>").format(text[:PLAIN_LIMIT])
    return Markup(html)  # noqa: S704  # cleaned above


def _count_cells(text: str) -> int:
    """How many cells a table may have: rows are filled up to the columns of their head."""
    return max((row.count("|") + 1 for row in _DELIMITER_ROW.findall(text)), default=0) * text.count("\n")


def _filter_attribute(files: frozenset[str], folder: str, _tag: str, attribute: str, value: str) -> str | None:
    """Keep small numbers, ids of our own, and links: other relative ones would lead to other pages of the registry."""
    if attribute == "href":
        if value.startswith("#") and _ANCHOR.match(ANCHOR + value[1:].lower()):
            return f"#{ANCHOR}{value[1:].lower()}"
        path = value.removeprefix("./")
        if path in files:
            return f"{folder}/{quote(path)}"
        return value if value.lower().startswith(("https://", "http://", "mailto:")) else None
    if attribute == "id":
        return value if _ANCHOR.match(value) else None
    if attribute == "start":
        return value if value.isascii() and value.isdigit() and len(value) < 6 else None
    return value  # `rel`, which nh3 adds


def _describe_image(_self: RendererHTML, tokens: Sequence[Token], index: int, *_: Any) -> str:
    return f"<span>[image: {escape(tokens[index].content)}]</span>"


def _lower_headings(state: Any) -> None:
    for position, token in enumerate(state.tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + _HEADINGS_DOWN)}"
        if token.type == "heading_open":
            words = re.sub(r"[^\w -]", "", state.tokens[position + 1].content.lower())
            token.attrSet("id", ANCHOR + words.strip().replace(" ", "-")[:80])


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    markdown.add_render_rule("image", _describe_image)
    markdown.core.ruler.push("lower_headings", _lower_headings)
    return markdown


_MARKDOWN = _markdown()
