"""`whoami` and the list of adapters in the Hub API."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from registry.api import PAGE_LIMIT
from registry.hub import shapes
from registry.roles import Scope
from registry.server.http.dependencies import AnyActor, CursorDep, Puller, SessionDep
from registry.server.hub import repositories
from registry.server.routes.hub import clients
from registry.server.routes.hub.route import HubRoute

router = APIRouter(route_class=HubRoute, include_in_schema=False)
Expand = Annotated[list[Annotated[str, Query(max_length=300)]], Query(max_length=32)]
Text = Annotated[str, Query(max_length=200)]


@router.get("/api/whoami-v2")
def whoami(actor: AnyActor) -> dict[str, Any]:
    """The name and the namespaces of the token."""
    namespaces = actor.namespaces_with(Scope.PULL) or frozenset()
    role = "write" if actor.has_scope(Scope.PUSH) else "read"
    return {
        "type": "user",
        "name": actor.name,
        "fullname": actor.identity,
        "orgs": [{"type": "org", "name": namespace} for namespace in sorted(namespaces)],
        "auth": {"type": "access_token", "accessToken": {"displayName": actor.name, "role": role}},
    }


@router.get("/api/models")
def list_models(
    request: Request,
    session: SessionDep,
    actor: Puller,
    cursor: CursorDep,
    search: Text = "",
    author: Text = "",
    filters: Annotated[list[str], Query(alias="filter", max_length=32)] = [],  # noqa: B006
    expand: Expand = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1)] = PAGE_LIMIT,
) -> Response:
    """Adapters that have all tags of `filter`. `base_model:adapter:NAME` matches a base by its registered name."""
    words = [word for text in filters for word in text.split(",") if word]
    page, next_cursor = repositories.search(
        session, actor, words, author=author, text=search, cursor=cursor, limit=min(limit, PAGE_LIMIT)
    )
    items = [shapes.info(repository, siblings=False, expand=expand) for repository in page]
    return JSONResponse(items, headers=next_page_header(request, next_cursor))


def next_page_header(request: Request, cursor: str) -> dict[str, str]:
    """The Link header to the next page; empty on the last one.

    Clients send their token to this URL, so it leads to the host at which this client reached the server.
    """
    if not cursor:
        return {}
    query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    url = f"{clients.base_url(request)}{request.url.path}?{urlencode([*query, ('cursor', cursor)])}"
    return {"Link": f'<{url}>; rel="next"'}
