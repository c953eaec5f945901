"""Routes of access: tokens, who am I, the audit log's events, and whether the server is well.

Invariants
- A token's secret is in one answer only, the one that made it.

Example
    GET /api/v1/whoami
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from registry import __version__
from registry.errors import RegistryError
from registry.server import audit, db, tokens
from registry.server.routes.deps import (
    OPEN,
    PAGE,
    Admin,
    Anyone,
    BlobsDep,
    EngineDep,
    LimitDep,
    RememberedDep,
    SessionDep,
)
from registry.server.routes.once import OnceRoute
from registry.wire.access import EventPage, Health, TokenCreate, TokenCreated, TokenList, TokenView, Whoami

router = APIRouter(tags=["access"], route_class=OnceRoute)


@router.post("/tokens", status_code=201)
def create_token(session: SessionDep, actor: Admin, request: TokenCreate, response: Response) -> TokenCreated:
    response.headers["Cache-Control"] = "no-store"
    view, secret = tokens.issue(session, actor, request)
    return TokenCreated(token=view, secret=secret)


@router.get("/tokens")
def list_tokens(session: SessionDep, actor: Admin) -> TokenList:
    actor.demand_everywhere("admin")
    return TokenList(items=list(tokens.every(session)))


@router.delete("/tokens/{token_id}")
def revoke_token(session: SessionDep, actor: Admin, remembered: RememberedDep, token_id: str) -> TokenView:
    actor.demand_everywhere("admin")
    remembered.forget(token_id)
    return tokens.revoke(session, actor, token_id)


@router.get("/whoami")
def whoami(actor: Anyone) -> Whoami:
    return Whoami(
        actor=actor.name,
        token_id=actor.token_id,
        scopes=sorted(actor.scopes),
        namespaces=sorted(actor.namespaces),
        expires_at=actor.expires_at,
    )


@router.get("/events")
def events(
    session: SessionDep, actor: Admin, after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0, limit: LimitDep = PAGE
) -> EventPage:
    actor.demand_everywhere("admin")
    return audit.page(session, after=after, limit=limit)


@router.get("/health", dependencies=[OPEN])
def health(engine: EngineDep, blobs: BlobsDep, response: Response) -> Health:
    """200 when the database and the store answer, else 503; says which stores are behind it and what they can do."""
    state, revision = "ok", ""
    capabilities: dict[str, Any] = {}
    try:
        revision = db.schema_revision(engine)
        capabilities = getattr(blobs, "capabilities", {})
    except RegistryError:
        state, response.status_code = "unavailable", 503
    return Health(
        status=state,
        version=__version__,
        database=engine.dialect.name,
        blobs=blobs.kind,
        schema_revision=revision,
        capabilities=capabilities,
    )
