"""The page of tokens: those that the visitor may revoke. A new secret is on one page only, the response to the form.

A session alone gives no secret: it would outlast the session, and break glass.
"""

from fastapi import Request, Response
from sqlmodel import Session

from registry.api.access import TokenCreate
from registry.durations import parse_duration
from registry.roles import Scope
from registry.server.access import tokens
from registry.server.database import db
from registry.server.http.dependencies import CursorDep, SessionDep
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, claim_form, confirm_identity, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep, Visitor
from registry.server.pages.settings.namespaces import SETTINGS

router = create_router()
TOKENS = SETTINGS + "/tokens"
PAGE_TOKENS = 50


@router.get(TOKENS)
def show_tokens(request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep) -> Response:
    """Show the tokens that the visitor may revoke, newest first."""
    return _render(request, session, visitor, cursor)


@router.post(TOKENS)
@limit_body(FORM_BYTES)
def create_token(request: Request, session: SessionDep, visitor: SignedInDep) -> Response:
    """Create a token and show its secret."""
    fields = read_fields(request, visitor)
    if not visitor.actor.has_scope(Scope.ADMIN):
        raise visitor.actor.lacks(Scope.ADMIN)
    confirm_identity(request, session, visitor, fields.get("token", ""))
    lifetime = fields.get("lifetime", "").strip()
    creation = to_request(
        TokenCreate, name=fields.get("name", ""), scopes=[scope for scope in Scope if f"scope_{scope}" in fields],
        namespaces=fields.get("namespaces", "").split(), adapters=fields.get("adapters", "").split(),
        subject=fields.get("subject", "").strip(), expires_in_seconds=parse_duration(lifetime) if lifetime else None,
    )  # fmt: skip
    claim_form(session, visitor, fields)
    view, secret = tokens.issue(session, visitor.actor, creation)
    return _render(request, session, visitor, "", created=view.name, secret=secret)


@router.post(TOKENS + "/{token_id}/revoke")
@limit_body(FORM_BYTES)
def revoke_token(request: Request, session: SessionDep, visitor: SignedInDep, token_id: str) -> Response:
    """Revoke a token: it ends for the next request on every server."""
    read_fields(request, visitor)
    tokens.revoke(session, visitor.actor, token_id)
    return redirect(TOKENS)


@router.post(TOKENS + "/{token_id}/rotate")
@limit_body(FORM_BYTES)
def rotate_token(request: Request, session: SessionDep, visitor: SignedInDep, token_id: str) -> Response:
    """Give a token a new secret and show it. The old one ends at once."""
    fields = read_fields(request, visitor)
    confirm_identity(request, session, visitor, fields.get("token", ""))
    claim_form(session, visitor, fields)
    view, secret = tokens.rotate(session, visitor.actor, token_id)
    return _render(request, session, visitor, "", created=view.name, secret=secret)


def _render(
    request: Request, session: Session, visitor: Visitor, cursor: str, *, created: str = "", secret: str = ""
) -> Response:
    page = tokens.list_tokens(session, visitor.actor, cursor=cursor, limit=PAGE_TOKENS)
    return render(
        request, "tokens.html", title="Tokens", page=page, cursor=cursor, created=created, secret=secret, now=db.now(),
        scopes=[scope for scope in Scope if visitor.actor.has_scope(scope)],
        may_create=bool(visitor.form_token) and visitor.actor.has_scope(Scope.ADMIN),
    )  # fmt: skip
