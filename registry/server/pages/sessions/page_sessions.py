"""Sessions of the web pages: a browser signs in once, with a token or at an identity provider, and has its rights.

- The browser holds a random id. The database holds its SHA-256 and that of the token's secret, and neither of the two.
- The rights are read at each request, as for a request with the token itself.
- Every sign-in begins a new session, so an id that someone planted in a browser never becomes signed in.
"""

import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.api.access import TokenCreate
from registry.errors import Unauthenticated
from registry.roles import Scope
from registry.server.access import sign_in, token_exchange, tokens
from registry.server.access.issuers import IdentityToken
from registry.server.access.oidc_client import OidcClient
from registry.server.access.sign_in import ActorCache
from registry.server.actors import EVERY_NAMESPACE, TRUSTED, Actor
from registry.server.database import db
from registry.server.database.models.sign_in import PageSessionRow
from registry.token_secret import sha256_of

SESSION_SECONDS = 12 * 3600
LINK_TOKEN = "browser of this machine"  # noqa: S105 - a name, not a secret
CONFIRMED_SECONDS = 300
"""For how long the provider's second question counts."""
_SELECT = select(PageSessionRow).where(
    col(PageSessionRow.id_sha256) == bindparam("id_sha256"), col(PageSessionRow.expires_at) > bindparam("now")
)


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """Whose session it is. `provider`: by which they signed in, if by any. `is_confirmed`: it has just asked again.

    `by_link`: by the link of `adapter serve`, whose token no one can paste.
    """

    actor: Actor
    provider: str = ""
    is_confirmed: bool = False
    by_link: bool = False


def start(
    session: Session, secret: str, cache: ActorCache, *, provider: str = "", owns_token: bool = False,
    is_confirmed: bool = False,
) -> str:  # fmt: skip
    """Begin a session with the rights of this secret and return its id. `Unauthenticated`.

    `owns_token`: the token was made for the session and is revoked with it.
    """
    actor = sign_in.authenticate(session, secret, cache)
    tokens.record_use(session, actor.token_id)
    session_id, now = secrets.token_urlsafe(32), db.now()
    expires_at = now + timedelta(seconds=SESSION_SECONDS)
    if actor.expires_at is not None:
        expires_at = min(expires_at, actor.expires_at)
    values = {
        "id_sha256": sha256_of(session_id), "secret_sha256": sha256_of(secret), "provider": provider,
        "owns_token": owns_token, "created_at": now, "expires_at": expires_at,
        "confirmed_at": now if is_confirmed else None,
    }  # fmt: skip
    db.insert_new(session, PageSessionRow, values)
    return session_id


def start_as_owner(session: Session, cache: ActorCache) -> str:
    """Begin a session of the user of this machine, with a token of its own that ends with it."""
    request = TokenCreate(
        name=LINK_TOKEN, scopes=[Scope.ADMIN], namespaces=[EVERY_NAMESPACE], expires_in_seconds=SESSION_SECONDS
    )
    _, secret = tokens.issue(session, TRUSTED, request)
    return start(session, secret, cache, owns_token=True)


def start_for(
    session: Session, identity: IdentityToken, client: OidcClient, cache: ActorCache, *, is_confirmed: bool
) -> str:
    """Begin a session of a person whom an identity provider has named, with a token of its own. `Unauthenticated`."""
    secret = token_exchange.issue_for_browser(session, identity, client.session_seconds)
    return start(session, secret, cache, provider=client.name, owns_token=True, is_confirmed=is_confirmed)


def find(session: Session, session_id: str, cache: ActorCache) -> BrowserSession | None:
    """Return whose session this is, with the rights of now; None if it has ended, or its token has."""
    now = db.now()
    row = session.exec(_SELECT, params={"id_sha256": sha256_of(session_id), "now": now}).first()
    if row is None:
        return None
    try:
        actor = sign_in.authenticate_hash(session, row.secret_sha256, cache)
    except Unauthenticated:
        return None
    is_confirmed = row.confirmed_at is not None and now - row.confirmed_at < timedelta(seconds=CONFIRMED_SECONDS)
    return BrowserSession(actor, row.provider, is_confirmed, by_link=row.owns_token and not row.provider)


def end(session: Session, session_id: str) -> None:
    """End a session, and the token that was made for it. Ending it again changes nothing."""
    row = session.get(PageSessionRow, sha256_of(session_id))
    if row is not None:
        if row.owns_token:
            tokens.revoke_secret(session, row.secret_sha256)
        session.delete(row)
