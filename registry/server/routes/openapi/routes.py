"""Routes of the OpenAPI document: `/openapi.json`, and `/docs`, a page of it that needs no script and no other host.

Invariants
- Both are open to everybody: they hold the static contract and nothing of this server's data or settings.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from registry.server.http import routing
from registry.server.http.dependencies import NO_TOKEN
from registry.server.http.etags import etag_matches
from registry.server.routes.openapi import page
from registry.server.routes.openapi.document import ApiDocument

router = APIRouter(route_class=routing.SingleThreadRoute, include_in_schema=False, dependencies=[NO_TOKEN])
IfNoneMatch = Annotated[str, Header(max_length=1000)]


@router.get("/openapi.json")
def read_document(request: Request, if_none_match: IfNoneMatch = "") -> Response:
    """The OpenAPI document of the REST API."""
    content: ApiDocument = request.app.state.api_document
    return _answer(content.json, "application/json", content.etag, {}, if_none_match)


@router.get("/docs")
def show_page(request: Request, if_none_match: IfNoneMatch = "") -> Response:
    """The document as a page."""
    content: ApiDocument = request.app.state.api_document
    return _answer(content.html, "text/html; charset=utf-8", content.etag, page.SECURITY_HEADERS, if_none_match)


def _answer(body: bytes, media_type: str, etag: str, headers: dict[str, str], if_none_match: str) -> Response:
    headers = {"ETag": etag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", **headers}
    if etag_matches(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)
