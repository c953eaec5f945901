"""Who am I, and the list of adapters, in the Hub's dialect.

Invariants
- A filter is a tag; all must be there. `base_model:adapter:…` is the base by the name that it is registered under.
- Pages are linked by absolute URLs, which clients follow with their token: they lead where this client came from.

Example
    GET /api/models?filter=base_model:adapter:meta-llama/Llama-3.1-8B&limit=30
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from registry.api import PAGE_LIMIT
from registry.hub import shapes
from registry.roles import Scope
from registry.server import hub
from registry.server.routes.deps import Anyone, CursorDep, Puller, SessionDep
from registry.server.routes.hub import dialect
from registry.server.routes.hub.dialect import HubRoute

router = APIRouter(route_class=HubRoute, include_in_schema=False)
Words = Annotated[list[Annotated[str, Query(max_length=300)]], Query(max_length=32)]
Text = Annotated[str, Query(max_length=200)]


@router.get("/api/whoami-v2")
def whoami(actor: Anyone) -> dict[str, Any]:
    reach = actor.namespaces_with(Scope.PULL) or frozenset()
    role = "write" if actor.has_scope(Scope.PUSH) else "read"
    return {
        "type": "user",
        "name": actor.name,
        "fullname": actor.identity,
        "orgs": [{"type": "org", "name": namespace} for namespace in sorted(reach)],
        "auth": {"type": "access_token", "accessToken": {"displayName": actor.name, "role": role}},
    }


@router.get("/api/models")
def models(
    request: Request,
    session: SessionDep,
    actor: Puller,
    cursor: CursorDep,
    search: Text = "",
    author: Text = "",
    filters: Annotated[list[str], Query(alias="filter", max_length=32)] = [],  # noqa: B006
    expand: Words = [],  # noqa: B006
    limit: Annotated[int, Query(ge=1)] = PAGE_LIMIT,
) -> Response:
    asked = [word for text in filters for word in text.split(",") if word]
    found, rest = hub.search(
        session, actor, asked, author=author, text=search, cursor=cursor, limit=min(limit, PAGE_LIMIT)
    )
    answer = [shapes.info(one, siblings=False, expand=expand) for one in found]
    return JSONResponse(answer, headers=next_page(request, rest))


def next_page(request: Request, cursor: str) -> dict[str, str]:
    """The header that leads to what follows; empty at the end."""
    if not cursor:
        return {}
    query = [(key, value) for key, value in request.query_params.multi_items() if key != "cursor"]
    url = f"{dialect.base_url(request)}{request.url.path}?{urlencode([*query, ('cursor', cursor)])}"
    return {"Link": f'<{url}>; rel="next"'}
