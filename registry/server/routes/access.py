"""Routes of access: tokens, who am I, and whether the server is well.

Invariants
- A token's secret is in one answer only, the one that made it.

Example
    GET /api/v1/whoami
"""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from registry import __version__
from registry.api.access import Health, TokenCreate, TokenCreated, TokenList, TokenRotate, TokenView, Whoami
from registry.api.namespaces import ExchangeRequest
from registry.digest import Digest
from registry.errors import RegistryError, Unauthenticated
from registry.server.access import token_exchange, tokens
from registry.server.database import schema
from registry.server.routes import deps, idempotent
from registry.server.routes.deps import (
    OPEN,
    Admin,
    Anyone,
    EngineDep,
    IssuersDep,
    KnownBlobsDep,
    ReadSessionDep,
    SessionDep,
)
from registry.server.storage.blobs import key_of

router = idempotent.router("access")


@router.post("/tokens", status_code=201)
def create_token(session: SessionDep, actor: Admin, request: TokenCreate, response: Response) -> TokenCreated:
    response.headers["Cache-Control"] = "no-store"
    view, secret = tokens.issue(session, actor, request)
    return TokenCreated(token=view, secret=secret)


@router.post("/tokens/exchange", status_code=201, dependencies=[OPEN])
def exchange_token(
    incoming: Request, session: ReadSessionDep, issuers: IssuersDep, request: ExchangeRequest, response: Response
) -> TokenCreated:
    """An identity token for a short token of ours: 201, or 401 whatever is wrong with it, and counted."""
    response.headers["Cache-Control"] = "no-store"
    try:
        view, secret = token_exchange.exchange_token(session, issuers, request)
    except Unauthenticated:
        deps.note_failure(incoming)
        raise
    return TokenCreated(token=view, secret=secret)


@router.get("/tokens")
def list_tokens(session: SessionDep, actor: Anyone) -> TokenList:
    """Those that the asker may end."""
    return TokenList(items=list(tokens.list_tokens(session, actor)))


@router.post("/tokens/{token_id}/rotate")
def rotate_token(
    session: SessionDep, actor: Anyone, token_id: str, request: TokenRotate, response: Response
) -> TokenCreated:
    response.headers["Cache-Control"] = "no-store"
    view, secret = tokens.rotate(session, actor, token_id, keep_seconds=request.keep_seconds)
    return TokenCreated(token=view, secret=secret)


@router.delete("/tokens/{token_id}")
def revoke_token(session: SessionDep, actor: Anyone, token_id: str) -> TokenView:
    return tokens.revoke(session, actor, token_id)


@router.get("/whoami")
def whoami(actor: Anyone) -> Whoami:
    return Whoami(
        actor=actor.identity,
        token_id=actor.token_id,
        scopes=sorted(actor.scopes),
        namespaces=sorted(actor.namespaces),
        expires_at=actor.expires_at,
        subject=actor.subject,
        roles={namespace: str(role) for namespace, role in sorted((actor.roles or {}).items())},
        adapters=sorted(actor.adapters),
    )


@router.get("/health", dependencies=[OPEN])
def health(engine: EngineDep, blobs: KnownBlobsDep, response: Response, store: bool = False) -> Health:
    """200 when the database answers and the store has been reached, else 503 and why; what is behind it and can what.

    With `store` the store is asked now, too: look-ups do without it, so no balancer need know that it is away.
    """
    state, reason, revision = "ok", "", ""
    capabilities: dict[str, Any] = {}
    try:
        revision = schema.revision_of(engine)
        capabilities = getattr(blobs, "capabilities", {})
        if store:
            blobs.stat(key_of(Digest.of(b"")))
    except RegistryError as e:
        state, reason, response.status_code = "unavailable", e.detail, 503
    return Health(
        status=state,
        reason=reason,
        version=__version__,
        database=engine.dialect.name,
        blobs=blobs.kind,
        schema_revision=revision,
        capabilities=capabilities,
    )
