"""The page of tokens: those that the visitor may revoke. A new secret is on one page only, the response to the form.

A session alone gives no secret: it would outlast the session, and break glass.

Who signed in at an identity provider makes a token for themself here, and so signs in `adapter login`. The command
makes the secret and opens the page with its SHA-256 only, so the secret never leaves the machine of the command.
"""

import re
from typing import Annotated

from fastapi import Query, Request, Response
from sqlmodel import Session

from registry.api.access import TokenCreate, TokenView
from registry.durations import parse_duration
from registry.errors import Denied, Invalid
from registry.roles import Scope
from registry.server.access import token_exchange, tokens
from registry.server.database import db
from registry.server.http.dependencies import CursorDep, SessionDep
from registry.server.http.issuers import find_issuers
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, claim_form, confirm_identity, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep, Visitor
from registry.server.pages.settings.namespaces import SETTINGS
from registry.token_secret import command_code

router = create_router()
TOKENS = SETTINGS + "/tokens"
OWN = TOKENS + "/own"
PAGE_TOKENS = 50
SHA256 = "^([0-9a-f]{64})?$"
CommandSecret = Annotated[str, Query(alias="sha256", max_length=64, pattern=SHA256)]
"""The SHA-256 of the secret that a command has made for itself; empty for a token whose secret the page shows."""


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


@router.get(OWN)
def show_own_token(
    request: Request, visitor: SignedInDep, sha256: CommandSecret = "",
    machine: Annotated[str, Query(alias="for", max_length=80)] = "",
) -> Response:  # fmt: skip
    """Show the form for a token of the visitor themself, or for the command that has opened this page."""
    return _render_own(request, visitor, sha256=sha256, name=machine)


@router.post(OWN)
@limit_body(FORM_BYTES)
def create_own_token(request: Request, session: SessionDep, visitor: SignedInDep) -> Response:
    """Create a token of the visitor themself. Its secret is shown, unless a command has made it."""
    fields = read_fields(request, visitor)
    limit = _own_limit(request, visitor)
    if not limit or not visitor.is_confirmed:
        raise Denied("DENIED", "this needs a sign-in of the last minutes", next_step="open the page again")
    if not re.match(SHA256, fields.get("sha256", "")):
        raise Invalid("REQUEST_INVALID", "sha256: it is no SHA-256 in hex")
    sha256, lifetime = fields.get("sha256", ""), fields.get("lifetime", "").strip()
    seconds = min(limit, parse_duration(lifetime) if lifetime else limit)
    creation = to_request(
        TokenCreate, name=fields.get("name", ""), scopes=token_exchange.PERSONAL_SCOPES, expires_in_seconds=seconds
    )
    claim_form(session, visitor, fields)
    view, secret = tokens.issue_own(session, visitor.actor, creation, secret_sha256=sha256)
    return _render_own(request, visitor, sha256=sha256, name=view.name, secret=secret, created=view)


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


def _own_limit(request: Request, visitor: Visitor) -> int:
    """How many seconds a token may last that the visitor makes for themself; 0 if they may make none."""
    issuer = find_issuers(request).clients.get(visitor.provider)
    return issuer.client.token_seconds if issuer and issuer.client and visitor.actor.subject else 0


def _render_own(
    request: Request, visitor: Visitor, *, sha256: str, name: str, secret: str = "", created: TokenView | None = None
) -> Response:
    return render(
        request, "own_token.html", title="Sign in a command" if sha256 else "A token for yourself", sha256=sha256,
        code=command_code(sha256), name=name, secret=secret, created=created, limit=_own_limit(request, visitor),
    )  # fmt: skip
