"""Token exchange: an identity token of a CI job or of an identity provider for a short-lived token of the registry.

- An identity token is accepted once: its `jti` is stored under a unique key until the identity token has expired. The
  new token lasts `LIFETIME_SECONDS` at most, and no longer than the identity token.
- An issuer with a `login_claim` signs people in: the token belongs to the subject in that claim and is bound by the
  subject's roles. Every other issuer is for CI jobs, which name one adapter and may push it if one of its trusted
  publishers matches, and nothing else. No owner's rule can change what a person, or the job of another adapter, gets.
- Every rejection has the same text, so no one learns which adapters trust whom.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import Session, col

from registry.api.access import ExchangeRequest, TokenCreate, TokenView
from registry.errors import Invalid
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.access import publishers, tokens
from registry.server.access.issuers import LEEWAY_SECONDS, IdentityToken, Issuers, rejected
from registry.server.actors import EVERY_NAMESPACE, TRUSTED, Actor, is_subject
from registry.server.database import db
from registry.server.database.models import TokenRow, UsedAssertionRow

EXCHANGE = "exchange"
"""Who is recorded as the creator of an exchanged token."""
LIFETIME_SECONDS = 15 * 60
# A `jti` must not be forgotten while its token is still valid.
MARGIN = timedelta(seconds=LEEWAY_SECONDS + 5)
PERSONAL_SCOPES = sorted({Scope.ADMIN, Scope.PROMOTE, Scope.PULL, Scope.PUSH})


def exchange_token(session: Session, issuers: Issuers, request: ExchangeRequest) -> tuple[TokenView, str]:
    """Return a new token and its secret. `Unauthenticated` for an identity token that is invalid or not trusted.

    `session` must not have begun a transaction.
    """
    identity = issuers.verify(request.assertion)
    adapter = AdapterName.parse(request.adapter) if request.adapter else None
    db.begin_writing(session)
    token_request = _token_request(session, identity, adapter)
    _store_jti(session, identity)
    row, secret = tokens.build_row(token_request, _issuing_actor(identity), subject=token_request.subject)
    db.insert_new(session, TokenRow, row.model_dump())
    by = Actor(token_request.name, row.id, frozenset(row.scopes), frozenset(row.namespaces), subject=row.subject)
    detail = {"issuer": identity.issuer, "sub": str(identity.claims["sub"])[:500], "adapters": row.adapters}
    audit.append(session, by, EventType.TOKEN_EXCHANGE, row.id, detail)
    return tokens.to_view(row), secret


def _token_request(session: Session, identity: IdentityToken, adapter: AdapterName | None) -> TokenCreate:
    """Return the token that these claims allow: a person's, or a trusted publisher's."""
    if identity.signs_in:
        if adapter is not None or not is_subject(identity.login):
            raise rejected()
        return TokenCreate(
            name=identity.login[:100],
            scopes=PERSONAL_SCOPES,
            namespaces=[EVERY_NAMESPACE],
            subject=identity.login,
            expires_in_seconds=LIFETIME_SECONDS,
        )
    if adapter is None:
        message = "adapter: an identity token of this issuer is exchanged for one adapter"
        raise Invalid("REQUEST_INVALID", message, next_step="name the adapter to push, with `--adapter NAME`")
    if not publishers.is_trusted(session, identity.issuer, identity.claims, adapter):
        raise rejected()
    return TokenCreate(
        name="".join(filter(str.isprintable, str(identity.claims["sub"])))[:100] or identity.issuer[:100],
        scopes=[Scope.PUSH],
        namespaces=[adapter.namespace],
        adapters=[str(adapter)],
        expires_in_seconds=LIFETIME_SECONDS,
    )


def _store_jti(session: Session, identity: IdentityToken) -> None:
    session.connection().execute(delete(UsedAssertionRow).where(col(UsedAssertionRow.expires_at) < db.now()))
    values = {"issuer": identity.issuer, "jti": identity.jti, "expires_at": identity.expires_at + MARGIN}
    if not db.insert_new(session, UsedAssertionRow, values):
        raise rejected()


def _issuing_actor(identity: IdentityToken) -> Actor:
    """Return the actor that issues the token; the token cannot outlast it."""
    expires_at = max(identity.expires_at, db.now() + timedelta(seconds=1))
    return Actor(EXCHANGE, "", TRUSTED.scopes, TRUSTED.namespaces, expires_at)
