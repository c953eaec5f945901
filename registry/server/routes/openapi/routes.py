"""Routes of the OpenAPI document: `/openapi.json`, and `/docs`, a page without scripts and requests to other hosts.

Both are open to everyone: they hold the static contract and nothing of this server's data or settings.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Header, Request, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.routing import BaseRoute

from registry.api import PREFIX
from registry.digest import Digest
from registry.server.http import routing
from registry.server.http.conditional import etag_matches
from registry.server.http.dependencies import NO_TOKEN
from registry.server.routes.openapi.document import document

router = APIRouter(route_class=routing.SingleThreadRoute, include_in_schema=False, dependencies=[NO_TOKEN])
IfNoneMatch = Annotated[str, Header(max_length=1000)]
_FOLDER = Path(__file__).parent
STYLE = (_FOLDER / "page.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
SECURITY_HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_CODE = re.compile(r"`([^`]+)`")


class ApiDocument:
    """The document of an application. It is built when it is first requested, so that a start does not wait for it."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = [route for route in routes if getattr(route, "path", "").startswith(PREFIX)]

    @cached_property
    def content(self) -> dict[str, Any]:
        """The OpenAPI document."""
        return document(self._routes)

    @cached_property
    def json(self) -> bytes:
        """The document as JSON."""
        return json.dumps(self.content, ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def html(self) -> bytes:
        """The document as a page."""
        return render(self.content).encode()

    @cached_property
    def etag(self) -> str:
        """An ETag of the document."""
        return f'"{Digest.of(self.json).hex}"'


@lru_cache(maxsize=4)
def document_of(app: FastAPI) -> ApiDocument:
    """The document of an application."""
    return ApiDocument(app.routes)


@router.get("/openapi.json")
def read_document(request: Request, if_none_match: IfNoneMatch = "") -> Response:
    """Read the OpenAPI document of the REST API."""
    content = document_of(request.app)
    return _respond(content.json, "application/json", content.etag, {}, if_none_match)


@router.get("/docs")
def show_page(request: Request, if_none_match: IfNoneMatch = "") -> Response:
    """Show the document as a page."""
    content = document_of(request.app)
    return _respond(content.html, "text/html; charset=utf-8", content.etag, SECURITY_HEADERS, if_none_match)


def _respond(body: bytes, media_type: str, etag: str, headers: dict[str, str], if_none_match: str) -> Response:
    headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **headers}
    if etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


def _to_html(text: str) -> Markup:
    """Convert text with `code` in backticks, and with empty lines between paragraphs."""
    paragraphs = (_CODE.sub(r"<code>\1</code>", str(escape(part))) for part in text.split("\n\n"))
    return Markup("".join(f"<p>{part}</p>" for part in paragraphs))  # noqa: S704  # escaped above


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
_ENVIRONMENT.filters |= {"marked": _to_html, "name": lambda reference: reference.rsplit("/", 1)[-1]}


def render(content: dict[str, Any]) -> str:
    """Render an OpenAPI document as a page."""
    by_tag: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in content["tags"]}
    for path, operations in content["paths"].items():
        for method, operation in operations.items():
            by_tag[operation["tags"][0]].append({"method": method.upper(), "path": path, **operation})
    template = _ENVIRONMENT.get_template("page.html")
    return template.render(**content, by_tag=by_tag, style=Markup(STYLE))  # noqa: S704  # our own file
