"""Sessions of the web pages: a browser signs in once with a token, and has the rights that the token has.

- The browser holds a random id. The database holds its SHA-256 and that of the token's secret, and neither of the two.
- The rights are read at each request, as for a request with the token itself.
- Every sign-in begins a new session, so an id that someone planted in a browser never becomes signed in.
"""

import secrets
from datetime import timedelta

from sqlalchemy import bindparam, delete
from sqlmodel import Session, col, select

from registry.api.access import TokenCreate
from registry.errors import Unauthenticated
from registry.roles import Scope
from registry.server.access import sign_in, tokens
from registry.server.access.sign_in import ActorCache
from registry.server.actors import EVERY_NAMESPACE, TRUSTED, Actor
from registry.server.database import db
from registry.server.database.models import PageSessionRow
from registry.server.secret import sha256_of

SESSION_SECONDS = 12 * 3600
LINK_TOKEN = "browser of this machine"  # noqa: S105 - a name, not a secret
_SELECT = select(PageSessionRow.secret_sha256).where(
    col(PageSessionRow.id_sha256) == bindparam("id_sha256"), col(PageSessionRow.expires_at) > bindparam("now")
)


def start(session: Session, secret: str, cache: ActorCache) -> str:
    """Begin a session with the rights of this secret and return its id. `Unauthenticated`."""
    actor = sign_in.authenticate(session, secret, cache)
    tokens.record_use(session, actor.token_id)
    session_id, now = secrets.token_urlsafe(32), db.now()
    expires_at = now + timedelta(seconds=SESSION_SECONDS)
    if actor.expires_at is not None:
        expires_at = min(expires_at, actor.expires_at)
    values = {"id_sha256": sha256_of(session_id), "secret_sha256": sha256_of(secret)}
    db.insert_new(session, PageSessionRow, values | {"created_at": now, "expires_at": expires_at})
    return session_id


def start_as_owner(session: Session, cache: ActorCache) -> str:
    """Begin a session of the user of this machine, with a token of its own that ends with it."""
    request = TokenCreate(
        name=LINK_TOKEN, scopes=[Scope.ADMIN], namespaces=[EVERY_NAMESPACE], expires_in_seconds=SESSION_SECONDS
    )
    _, secret = tokens.issue(session, TRUSTED, request)
    return start(session, secret, cache)


def find_actor(session: Session, session_id: str, cache: ActorCache) -> Actor | None:
    """Return whose session this is, with the rights of now; None if it has ended, or its token has."""
    parameters = {"id_sha256": sha256_of(session_id), "now": db.now()}
    secret_sha256 = session.exec(_SELECT, params=parameters).first()
    if secret_sha256 is None:
        return None
    try:
        return sign_in.authenticate_hash(session, secret_sha256, cache)
    except Unauthenticated:
        return None


def end(session: Session, session_id: str) -> None:
    """End a session. Ending it again changes nothing."""
    statement = delete(PageSessionRow).where(col(PageSessionRow.id_sha256) == sha256_of(session_id))
    session.connection().execute(statement)
