"""The addresses of repositories and commits that Hub clients print: in a browser they lead to the pages.

Requests of clients, which accept anything or send a token, go to the Hub API. Nothing is looked up here: the
page decides what its visitor may see.
"""

from fastapi import APIRouter, Response
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.types import Scope

from registry import hub
from registry.names import RESERVED
from registry.server.http.dependencies import NO_TOKEN, NameDep
from registry.server.pages.rendering import PageRoute, adapter_path, redirect

VIEWS = ("blob", "commit", "tree")
"""Words of these addresses before a revision."""


class BrowserRoute(PageRoute):
    """Matches what a browser opens, outside the paths of the server."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match a request that prefers HTML and has no token."""
        match, child = super().matches(scope)
        headers, params = Headers(scope=scope), child.get("path_params", {})
        is_address = params.get("namespace") not in RESERVED and params.get("view", VIEWS[0]) in VIEWS
        if match is Match.FULL and is_address and "text/html" in headers.get("accept", ""):
            return (Match.NONE, {}) if "authorization" in headers else (match, child)
        return Match.NONE, {}


router = APIRouter(route_class=BrowserRoute, include_in_schema=False, dependencies=[NO_TOKEN])


@router.get("/{namespace}/{name}")
def open_adapter(name: NameDep) -> Response:
    """Lead to the page of an adapter."""
    return redirect(adapter_path(str(name)))


@router.get("/{namespace}/{name}/{view}/{revision:path}")
def open_version(name: NameDep, revision: str) -> Response:
    """Lead to the page of a version; a path in the repository is left out."""
    selector = hub.revision(revision.removeprefix("refs/heads/").partition("/")[0])
    return redirect(adapter_path(str(name), selector or ""))
