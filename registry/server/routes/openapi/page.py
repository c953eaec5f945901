"""Renders the OpenAPI document as one HTML page: no script, no request to another host, readable offline."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
SECURITY_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_CODE = re.compile(r"`([^`]+)`")


def _marked(text: str) -> Markup:
    """Plain text with `code` in backticks, and empty lines between paragraphs."""
    paragraphs = (_CODE.sub(r"<code>\1</code>", str(escape(part))) for part in text.split("\n\n"))
    return Markup("".join(f"<p>{part}</p>" for part in paragraphs))  # noqa: S704  # escaped above


def _name(reference: str) -> str:
    return reference.rsplit("/", 1)[-1]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": _marked, "name": _name}
    return environment


_ENVIRONMENT = _environment()


def render(content: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    by_tag: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in content["tags"]}
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append({"method": method.upper(), "path": path, **operation})
    template = _ENVIRONMENT.get_template("page.html")
    return template.render(**content, by_tag=by_tag, style=Markup(STYLE))  # noqa: S704  # our own file
