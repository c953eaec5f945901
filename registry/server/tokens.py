"""Tokens: issue, hash, verify, list, revoke. Whose a secret is, is an `Actor` (registry.server.actors).

    secret = "lra_" + 32 base62 characters (190 bits) + 6 base62 characters of CRC-32, which secret scanners check

Invariants
- A secret is shown once, when it is made; the database has its SHA-256 only.
- Nobody gives a right that they do not hold.
- A token that is unknown, expired or revoked gets one and the same answer.
- A verified token is remembered for `REMEMBER_SECONDS`, so a revocation counts after that at the latest.

Example
    >>> view, secret = tokens.issue(session, actor, TokenCreate(name="ci", scopes=["push"], namespaces=["acme"]))
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import string
import time
import zlib
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import names
from registry.errors import Conflict, Denied, Invalid, NotFound, Unauthenticated
from registry.server import audit, db
from registry.server.actors import EVERYWHERE, SCOPES, TRUSTED
from registry.server.actors import Actor as Actor
from registry.server.tables import TokenRow
from registry.wire.access import TokenCreate, TokenView

REMEMBER_SECONDS = 1.0
USE_NOTED_EVERY = timedelta(minutes=10)
FIRST_TOKEN = "first-admin"  # noqa: S105 - a name, not a secret
_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_GRAMMAR = re.compile(r"lra_[0-9A-Za-z]{38}\Z")


def new_secret() -> str:
    text = "".join(secrets.choice(_ALPHABET) for _ in range(32))
    return f"lra_{text}{_checksum(text)}"


def _checksum(text: str) -> str:
    number = zlib.crc32(text.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def well_formed(secret: str) -> bool:
    """Grammar and checksum: a mistyped secret is told apart from a revoked one without asking the database."""
    return bool(_GRAMMAR.match(secret)) and _checksum(secret[4:36]) == secret[36:]


def sha256_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def issue(session: Session, actor: Actor, request: TokenCreate, *, token_id: str = "") -> tuple[TokenView, str]:
    """A new token and its secret. `Denied` for rights that the actor does not hold itself."""
    unknown = sorted(set(request.scopes) - set(SCOPES))
    if unknown or not request.scopes:
        raise Invalid("REQUEST_INVALID", f"scopes: {unknown or 'none'} given; a token has some of {', '.join(SCOPES)}")
    if not request.namespaces:
        raise Invalid("REQUEST_INVALID", "namespaces: none given; '*' means all")
    for namespace in request.namespaces:
        if namespace != EVERYWHERE:
            names.namespace(namespace)
        for scope in request.scopes:
            if not actor.may(scope, namespace):
                raise Denied("DENIED", f"token {actor.name!r} cannot give the scope '{scope}' in '{namespace}'")
    secret, made_at = new_secret(), db.now()
    lasts = request.expires_in_seconds
    row = TokenRow(
        id=token_id or "tok_" + secrets.token_hex(8),
        name=request.name,
        secret_sha256=sha256_of(secret),
        scopes=sorted(set(request.scopes)),
        namespaces=sorted(set(request.namespaces)),
        created_at=made_at,
        created_by=actor.name,
        expires_at=made_at + timedelta(seconds=lasts) if lasts else None,
    )
    if not db.insert_new(session, TokenRow, row.model_dump()):
        raise Conflict("TOKEN_EXISTS", f"there is a token {row.id!r} already")
    audit.append(session, actor, "token.issue", row.id, {"name": row.name, "scopes": row.scopes})
    return view(row), secret


def bootstrap(engine: Engine) -> str | None:
    """On the first start of a registry, the secret of its first token, which may do everything; else None.

    Two processes that start at once make one token: its id is fixed.
    """
    with db.session(engine) as session:
        if session.exec(select(TokenRow.id).limit(1)).first():
            return None
        request = TokenCreate(name="admin", scopes=["admin"])
        with contextlib.suppress(Conflict):
            return issue(session, TRUSTED, request, token_id=FIRST_TOKEN)[1]
        return None


def verify(session: Session, secret: str) -> Actor:
    """The actor of a secret. `Unauthenticated` (UNAUTHORIZED), without saying which way it is not valid."""
    row = None
    if well_formed(secret):
        row = session.exec(select(TokenRow).where(TokenRow.secret_sha256 == sha256_of(secret))).first()
    if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= db.now()):
        raise Unauthenticated(
            "UNAUTHORIZED",
            "this token is unknown, expired or revoked",
            next_step="run `adapter login URL` with a valid token, or set ADAPTER_TOKEN",
        )
    return Actor(row.name, row.id, frozenset(row.scopes), frozenset(row.namespaces), row.expires_at)


class Remembered:
    """Actors of the last second by the hash of their secret, so that a busy client costs no look-up each time."""

    ENTRIES_LIMIT = 4096

    def __init__(self) -> None:
        self._actors: dict[str, tuple[float, Actor]] = {}

    def find(self, secret: str) -> Actor | None:
        until, actor = self._actors.get(sha256_of(secret), (0.0, None))
        return actor if until > time.monotonic() else None

    def keep(self, secret: str, actor: Actor) -> None:
        if len(self._actors) >= self.ENTRIES_LIMIT:
            self._actors = {}
        self._actors[sha256_of(secret)] = (time.monotonic() + REMEMBER_SECONDS, actor)

    def forget(self, token_id: str) -> None:
        self._actors = {k: v for k, v in list(self._actors.items()) if v[1].token_id != token_id}


def note_use(session: Session, token_id: str) -> None:
    """Keep when a token was last used, to ten minutes: `session` reads, and writes only when it must."""
    row = session.get(TokenRow, token_id)
    if row is not None and (row.last_used_at is None or db.now() - row.last_used_at > USE_NOTED_EVERY):
        db.begin_writing(session)
        row.last_used_at = db.now()
        session.add(row)


def revoke(session: Session, actor: Actor, token_id: str) -> TokenView:
    """Ends a token now. Twice is the same as once."""
    row = session.get(TokenRow, token_id)
    if row is None:
        raise NotFound("TOKEN_UNKNOWN", f"there is no token {token_id[:80]!r}")
    if row.revoked_at is None:
        row.revoked_at = db.now()
        session.add(row)
        audit.append(session, actor, "token.revoke", row.id, {"name": row.name})
    return view(row)


def every(session: Session) -> Sequence[TokenView]:
    """All tokens, newest first, without their secrets."""
    rows = session.exec(select(TokenRow).order_by(col(TokenRow.created_at).desc(), col(TokenRow.id))).all()
    return [view(row) for row in rows]


def view(row: TokenRow) -> TokenView:
    return TokenView(
        id=row.id,
        name=row.name,
        scopes=row.scopes,
        namespaces=row.namespaces,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
