"""Sign-in: find the actor of a secret with one statement.

Every request reads its actor from the database. Only the resolve cache remembers actors: it reads the access epoch in
its own statement and signs in again when the epoch has grown. The holder of a secret that was valid learns why it no
longer is; all others get one response.
"""

from collections import defaultdict
from collections.abc import Iterable

from sqlalchemy import BindParameter, and_, bindparam, or_
from sqlmodel import Session, col, select

from registry.errors import Unauthenticated
from registry.roles import PULLING, GrantedRole, Role, Scope
from registry.server.access import epoch
from registry.server.actors import EXCHANGE, OLD_SECRET_SCOPES, Actor, is_subject
from registry.server.actors.public_namespaces import SELECT_PUBLIC
from registry.server.database import db
from registry.server.database.models import RoleRow, TokenRow
from registry.token_secret import is_well_formed, sha256_of


class ActorCache:
    """Remembers actors by the hash of their secret, and the public namespaces by access epoch."""

    ENTRIES_LIMIT = 4096

    def __init__(self) -> None:
        self._actors: dict[str, Actor] = {}
        self._public: tuple[int, frozenset[str]] = (-1, frozenset())

    def get(self, secret: str) -> Actor | None:
        """Return the actor as it was last read, unless it has expired. The caller must check its epoch."""
        actor = self._actors.get(sha256_of(secret))
        return None if actor is None or (actor.expires_at is not None and actor.expires_at <= db.now()) else actor

    def put(self, secret: str, actor: Actor) -> None:
        """Remember the actor of a secret."""
        if len(self._actors) >= self.ENTRIES_LIMIT:
            self._actors = {}
        self._actors[sha256_of(secret)] = actor

    def public_namespaces(self, session: Session, epoch: int) -> frozenset[str]:
        """Return the namespaces from which everyone may pull. They are read once per epoch."""
        if self._public[0] != epoch:
            self._public = (epoch, frozenset(session.exec(SELECT_PUBLIC).all()))
        return self._public[1]


_SHA256: BindParameter[str] = bindparam("sha256")
# Built once, because every request executes it: the token, once per role of its subject, and the access epoch.
_SELECT_TOKEN = (
    select(TokenRow, RoleRow, epoch.current())
    .outerjoin(RoleRow, and_(col(TokenRow.subject) != "", col(RoleRow.subject) == col(TokenRow.subject)))
    .where(or_(col(TokenRow.secret_sha256) == _SHA256, col(TokenRow.previous_sha256) == _SHA256))
)


def authenticate(session: Session, secret: str, cache: ActorCache) -> Actor:
    """Return the actor of a secret and leave its row in `session.info["token"]`. `Unauthenticated` (UNAUTHORIZED)."""
    actor = authenticate_hash(session, sha256_of(secret) if is_well_formed(secret) else "", cache)
    if not actor.superseded:
        cache.put(secret, actor)
    return actor


def authenticate_hash(session: Session, sha256: str, cache: ActorCache) -> Actor:
    """Return the actor of the secret with this hash, as `authenticate` does; an empty hash is of no secret."""
    rows = session.exec(_SELECT_TOKEN, params={"sha256": sha256}).all() if sha256 else []
    problem = _problem_of(rows[0][0], sha256) if rows else "is unknown"
    if problem:
        next_step = "run `adapter login URL` with a valid token, or set ADAPTER_TOKEN"
        raise Unauthenticated("UNAUTHORIZED", f"this token {problem}", next_step=next_step)
    row, _, current_epoch = rows[0]
    session.info["token"] = row
    granted = [role for _, role, _ in rows if role is not None]
    if row.groups:
        granted += session.exec(select(RoleRow).where(col(RoleRow.subject).in_(row.groups)))
    superseded = row.secret_sha256 != sha256
    scopes = _scopes_of_old_secret(row.scopes) if superseded else frozenset(row.scopes)
    return Actor(
        row.name, row.id, scopes, frozenset(row.namespaces), row.expires_at, row.subject,
        roles=_by_namespace(granted) if row.subject else None, adapters=frozenset(row.adapters),
        aliases=frozenset(row.aliases),
        public=cache.public_namespaces(session, current_epoch), epoch=current_epoch,
        superseded=superseded, groups=frozenset(row.groups), is_publisher=row.created_by == EXCHANGE,
    )  # fmt: skip


def _by_namespace(rows: Iterable[RoleRow]) -> dict[str, tuple[GrantedRole, ...]]:
    roles: dict[str, set[GrantedRole]] = defaultdict(set)
    for row in rows:
        roles[row.namespace].add(GrantedRole(Role(row.role), frozenset(row.aliases)))
    return {namespace: tuple(sorted(of_one, key=str)) for namespace, of_one in roles.items()}


def _problem_of(row: TokenRow, sha256: str) -> str:
    """Return why the secret with this hash is not valid any more; empty if it is."""
    now = db.now()
    if row.revoked_at is not None:
        return "was revoked"
    if row.subject and not is_subject(row.subject):
        return "belongs to a subject that has a reserved name"
    if row.expires_at is not None and row.expires_at <= now:
        return "has expired"
    if row.secret_sha256 != sha256 and (row.previous_until is None or row.previous_until <= now):
        return "was rotated: use its new secret"
    return ""


def _scopes_of_old_secret(scopes: Iterable[str]) -> frozenset[str]:
    """Return the scopes that a token of these scopes leaves to its rotated secret."""
    if {Scope.PUSH, Scope.ADMIN} & set(scopes):
        return OLD_SECRET_SCOPES
    return frozenset({Scope.PULL}) if PULLING & set(scopes) else frozenset()
