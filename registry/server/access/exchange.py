"""Exchange: an identity token of a CI job or of an identity provider for a short token of ours.

Invariants
- An identity token is taken once: its `jti` is kept, under a key that a race cannot pass twice, until it is over.
- What it gives lasts `LIFETIME_SECONDS` at most, and not longer than the identity token.
- A CI job gets the right to push the adapters whose trusted publishers it matches, and nothing beside them. A person
  gets a token of the subject that the issuer's `login_claim` names: the subject's roles say what it may do.
- Every refusal is the same sentence, so nobody learns which adapters trust whom.

Example
    >>> exchange.token_for(session, issuers, ExchangeRequest(assertion=jwt))
"""

from __future__ import annotations

import re
from datetime import timedelta

from sqlalchemy import delete
from sqlmodel import Session, col

from registry.api.access import SUBJECT_LIMIT, TokenCreate, TokenView
from registry.api.namespaces import ExchangeRequest
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import publishers, tokens
from registry.server.access.issuers import LEEWAY_SECONDS, Believed, Issuers, refused
from registry.server.actors import EVERYWHERE, TRUSTED, Actor
from registry.server.database import db
from registry.server.database.models.content import TokenRow, UsedAssertionRow

LIFETIME_SECONDS = 15 * 60
MARGIN = timedelta(seconds=LEEWAY_SECONDS + 5)
"""A `jti` is kept longer than its token is believed by this: it must not be forgotten while it still counts."""
PERSONAL_SCOPES = ["admin", "promote", "pull", "push"]
_SUBJECT = re.compile(r"[!-~]+\Z")


def token_for(session: Session, issuers: Issuers, request: ExchangeRequest) -> tuple[TokenView, str]:
    """A token and its secret; `session` has only begun. `Unauthenticated` for what is not believed or not trusted."""
    told = issuers.believe(request.assertion)
    wanted = AdapterName.parse(request.adapter) if request.adapter else None
    db.begin_writing(session)
    asked = _asked(session, told, wanted)
    _use_up(session, told)
    row, secret = tokens.make(asked, _until(told), subject=asked.subject)
    db.insert_new(session, TokenRow, row.model_dump())
    by = Actor(asked.name, row.id, frozenset(row.scopes), frozenset(row.namespaces), subject=row.subject)
    detail = {"issuer": told.issuer, "sub": str(told.claims["sub"])[:500], "adapters": row.adapters[:100]}
    audit.append(session, by, "token.exchange", row.id, detail)
    return tokens.view(row), secret


def _asked(session: Session, told: Believed, wanted: AdapterName | None) -> TokenCreate:
    """The token that these claims are good for: of trusted publishers first, else of a person."""
    trusted = [n for n in publishers.trusted(session, told.issuer, told.claims) if wanted in (None, n)]
    name = "".join(filter(str.isprintable, str(told.claims["sub"])))[:100] or told.issuer[:100]
    if trusted:
        return TokenCreate(
            name=name,
            scopes=["push"],
            namespaces=sorted({adapter.namespace for adapter in trusted}),
            adapters=[str(adapter) for adapter in trusted][:100],
            expires_in_seconds=LIFETIME_SECONDS,
        )
    if wanted is not None or not told.login or len(told.login) > SUBJECT_LIMIT or not _is_a_subject(told.login):
        raise refused()
    return TokenCreate(
        name=told.login[:100],
        scopes=PERSONAL_SCOPES,
        namespaces=[EVERYWHERE],
        subject=told.login,
        expires_in_seconds=LIFETIME_SECONDS,
    )


def _is_a_subject(login: str) -> bool:
    return bool(_SUBJECT.match(login)) and login != EVERYWHERE


def _use_up(session: Session, told: Believed) -> None:
    session.connection().execute(delete(UsedAssertionRow).where(col(UsedAssertionRow.expires_at) < db.now()))
    values = {"issuer": told.issuer, "jti": told.jti, "expires_at": told.expires_at + MARGIN}
    if not db.insert_new(session, UsedAssertionRow, values):
        raise refused()


def _until(told: Believed) -> Actor:
    """Who makes the token: the registry, for not longer than the identity token lasts."""
    soon = max(told.expires_at, db.now() + timedelta(seconds=1))
    return Actor("exchange", "", TRUSTED.scopes, TRUSTED.namespaces, soon)
