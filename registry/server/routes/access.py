"""Routes of access: tokens, who am I, and whether the server is well.

Invariants
- A token's secret is in one answer only, the one that made it.
"""

from __future__ import annotations

from fastapi import Request, Response

from registry import __version__
from registry.api.access import Health, TokenCreate, TokenCreated, TokenList, TokenRotate, TokenView, Whoami
from registry.api.namespaces import ExchangeRequest
from registry.digest import Digest
from registry.errors import RegistryError, Unauthenticated
from registry.server.access import token_exchange, tokens
from registry.server.database import schema
from registry.server.http import dependencies, routing
from registry.server.http.dependencies import (
    NO_TOKEN,
    Admin,
    AnyActor,
    BlobsHandleDep,
    EngineDep,
    IssuersDep,
    ReadSessionDep,
    SessionDep,
)
from registry.server.storage.blobs import key_of

router = routing.create_router("access")


@router.post("/tokens", status_code=201)
def create_token(session: SessionDep, actor: Admin, request: TokenCreate, response: Response) -> TokenCreated:
    """Create a token. Its secret is in this answer only."""
    response.headers["Cache-Control"] = "no-store"
    view, secret = tokens.issue(session, actor, request)
    return TokenCreated(token=view, secret=secret)


@router.post("/tokens/exchange", status_code=201, dependencies=[NO_TOKEN])
def exchange_token(
    incoming: Request, session: ReadSessionDep, issuers: IssuersDep, request: ExchangeRequest, response: Response
) -> TokenCreated:
    """Exchange the identity token of a CI job for a short-lived token."""
    response.headers["Cache-Control"] = "no-store"
    try:
        view, secret = token_exchange.exchange_token(session, issuers, request)
    except Unauthenticated:
        dependencies.record_failure(incoming)
        raise
    return TokenCreated(token=view, secret=secret)


@router.get("/tokens")
def list_tokens(session: SessionDep, actor: AnyActor) -> TokenList:
    """List the tokens that the caller may revoke."""
    return TokenList(items=list(tokens.list_tokens(session, actor)))


@router.post("/tokens/{token_id}/rotate")
def rotate_token(
    session: SessionDep, actor: AnyActor, token_id: str, request: TokenRotate, response: Response
) -> TokenCreated:
    """Replace the secret of a token. The old one works for `keep_seconds` more."""
    response.headers["Cache-Control"] = "no-store"
    view, secret = tokens.rotate(session, actor, token_id, keep_seconds=request.keep_seconds)
    return TokenCreated(token=view, secret=secret)


@router.delete("/tokens/{token_id}")
def revoke_token(session: SessionDep, actor: AnyActor, token_id: str) -> TokenView:
    """Revoke a token."""
    return tokens.revoke(session, actor, token_id)


@router.get("/whoami")
def show_caller(actor: AnyActor) -> Whoami:
    """Show who the token belongs to and what it may do."""
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


@router.get(
    "/health",
    responses={503: {"model": Health, "description": "The database or the store is away"}},
    dependencies=[NO_TOKEN],
)
def check_health(engine: EngineDep, blobs: BlobsHandleDep, response: Response, store: bool = False) -> Health:
    """200 if the database answers and the store was reached, else 503 with the reason.

    With `store`, the store is asked now. Load balancers leave it out: look-ups work without the store.
    """
    state, reason, revision = "ok", "", ""
    capabilities: dict[str, bool] = {}
    try:
        revision = schema.revision_of(engine)
        capabilities = blobs.describe()
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
