"""Signing in: whose a secret is. One statement, and no answer that tells in which way a secret is not valid.

Invariants
- An actor is read anew for each request. The look-up alone may go on with a remembered one, because it reads the
  generation of access in its own statement and asks again when that has grown: a revocation counts at once, everywhere.
- An expired token is expired to the second, remembered or not.
- Wrong secrets are counted for each source, and for each beginning of a secret, wherever they come from: beyond a limit
  they are told to wait. A valid one never is by that.

Example
    >>> signin.verify(session, secret, Memory()).name
    'ci'
"""

from __future__ import annotations

import threading
import time
from collections import deque
from datetime import datetime

from sqlalchemy import and_, bindparam, or_
from sqlmodel import Session, col, select

from registry.errors import Unauthenticated, Unavailable
from registry.server.access import epoch
from registry.server.actors import EVERYBODY, Actor, Role
from registry.server.database import db
from registry.server.database.models.content import RoleRow, TokenRow
from registry.server.secret import STARTS, sha256_of, well_formed

MINUTE_SECONDS = 60.0


class Memory:
    """What one process remembers: actors by the hash of their secret, and the public namespaces, by generation."""

    ENTRIES_LIMIT = 4096

    def __init__(self) -> None:
        self._actors: dict[str, Actor] = {}
        self._public: tuple[int, frozenset[str]] = (-1, frozenset())

    def find(self, secret: str) -> Actor | None:
        """The actor as it was last read. Only for who compares its generation with the one of now."""
        actor = self._actors.get(sha256_of(secret))
        expired = actor is not None and actor.expires_at is not None and actor.expires_at <= db.now()
        return None if expired else actor

    def keep(self, secret: str, actor: Actor) -> None:
        if len(self._actors) >= self.ENTRIES_LIMIT:
            self._actors = {}
        self._actors[sha256_of(secret)] = actor

    def public(self, session: Session, generation: int) -> frozenset[str]:
        """The namespaces from which everybody may pull; read once for each generation."""
        if self._public[0] != generation:
            found = session.exec(select(RoleRow.namespace).where(col(RoleRow.subject) == EVERYBODY)).all()
            self._public = (generation, frozenset(found))
        return self._public[1]


def verify(session: Session, secret: str, memory: Memory) -> Actor:
    """The actor of a secret. `Unauthenticated` (UNAUTHORIZED), without saying which way it is not valid."""
    rows = _rows(session, sha256_of(secret)) if well_formed(secret) else []
    if not rows or _is_over(rows[0][0], db.now()):
        raise Unauthenticated(
            "UNAUTHORIZED",
            "this token is unknown, expired or revoked",
            next_step="run `adapter login URL` with a valid token, or set ADAPTER_TOKEN",
        )
    row, _, _, generation = rows[0]
    session.info["token"] = row  # for whoever notes its use
    roles = {namespace: Role(role) for _, namespace, role, _ in rows if namespace and role}
    actor = Actor(
        row.name,
        row.id,
        frozenset(row.scopes),
        frozenset(row.namespaces),
        row.expires_at,
        row.subject,
        roles if row.subject else None,
        frozenset(row.adapters),
        memory.public(session, generation),
        generation,
    )
    if row.secret_sha256 == sha256_of(secret):
        memory.keep(secret, actor)
    return actor


_BEFORE_ROTATION = and_(
    col(TokenRow.previous_sha256) == bindparam("sha256"), col(TokenRow.previous_until) > bindparam("moment")
)
_TOKEN = (
    select(TokenRow, RoleRow.namespace, RoleRow.role, epoch.generation())
    .outerjoin(RoleRow, and_(col(TokenRow.subject) != "", col(RoleRow.subject) == col(TokenRow.subject)))
    .where(or_(col(TokenRow.secret_sha256) == bindparam("sha256"), _BEFORE_ROTATION))
)
"""Put together once: every request asks this."""


def _rows(session: Session, sha256: str) -> list[tuple[TokenRow, str | None, str | None, int]]:
    """The token of this hash, once for each role of its subject, with the generation of access."""
    return list(session.exec(_TOKEN, params={"sha256": sha256, "moment": db.now()}).all())


def _is_over(row: TokenRow, moment: datetime) -> bool:
    return row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= moment)


class Failures:
    """Wrong secrets of the last minute, by source and by how they begin. In one process: this is about floods and about
    who knows a part of a secret; a guess at a whole one is hopeless anyway."""

    COUNTED_LIMIT = 10_000
    PREFIX = 12
    """Letters of a secret that count as its beginning: `lra_` and eight more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], deque[float]] = {}

    def note(self, source: str, secret: str = "") -> None:
        """One more. `Unavailable` (RATE_LIMITED) instead of the plain refusal, once they are too many."""
        told = [("wrong tokens from your address", source)]
        if secret.startswith(STARTS) and len(secret) >= self.PREFIX:
            told.append(("wrong tokens that begin like this one", sha256_of(secret[: self.PREFIX])))
        moment = time.monotonic()
        with self._lock:
            waits = [(what, self._one_more(what, which, moment)) for what, which in told]
        for what, seconds in waits:
            if seconds > 0:
                raise limited(what, self._limit, seconds)

    def _one_more(self, what: str, which: str, moment: float) -> float:
        """Count it; for how many seconds whoever sent it should wait."""
        seen = self._seen.pop((what, which), None)
        if seen is None:
            while len(self._seen) >= self.COUNTED_LIMIT:  # whoever has been quiet for longest
                del self._seen[next(iter(self._seen))]
            seen = deque(maxlen=self._limit + 1)
        self._seen[what, which] = seen
        while seen and moment - seen[0] > MINUTE_SECONDS:
            seen.popleft()
        seen.append(moment)
        return MINUTE_SECONDS - (moment - seen[0]) if 0 < self._limit < len(seen) else 0.0


class Pace:
    """How many requests each token has left: a bucket for each, filled again with time. In one process."""

    TOKENS_LIMIT = 10_000

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, token_id: str) -> None:
        """One request of this token. `Unavailable` (RATE_LIMITED) when its bucket is empty."""
        if not self._per_minute:
            return
        moment = time.monotonic()
        if len(self._left) >= self.TOKENS_LIMIT:
            self._left = {}
        left, since = self._left.get(token_id, (float(self._per_minute), moment))
        left = min(float(self._per_minute), left + (moment - since) * self._per_minute / MINUTE_SECONDS)
        if left < 1:
            raise limited("requests with this token", self._per_minute, (1 - left) * MINUTE_SECONDS / self._per_minute)
        self._left[token_id] = (left - 1, moment)


def limited(what: str, limit: int, seconds: float, per: str = "minute") -> Unavailable:
    """The answer to who comes too often."""
    wait = max(1, round(seconds + 0.5))
    return Unavailable(
        "RATE_LIMITED",
        f"{what}: over the limit of {limit} in a {per}",
        next_step=f"try again in {wait} seconds",
        retry_after_seconds=wait,
    )
