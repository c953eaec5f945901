"""Namespaces: make, look, set limits, grant and revoke roles.

Invariants
- A namespace is private until its owner makes it public; that is the role `reader` of everybody, and no more.
- Only administrators of all namespaces make namespaces and set limits; owners decide who may do what inside.
- An event tells of each change, in its transaction, and `state` makes every replica read it.

Example
    >>> namespaces.grant(session, actor, "acme", "alice@example.org", Role.PUSHER)
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import delete
from sqlmodel import Session, col, select

from registry import names
from registry.api.access import SUBJECT_LIMIT
from registry.api.namespaces import NamespaceCreate, NamespacePage, NamespaceSet, NamespaceView
from registry.errors import Conflict, Invalid
from registry.server import audit
from registry.server.access import admission, epoch, reserved_names
from registry.server.actors import EVERYBODY, EVERYWHERE, Actor, Role, unknown_namespace
from registry.server.database import db
from registry.server.database.models.content import NamespaceRow, RoleRow

_SUBJECT = re.compile(r"[!-~]+\Z")
LIMITS = ("quota_bytes", "quota_versions", "pushes_per_hour")


def create(session: Session, actor: Actor, request: NamespaceCreate) -> NamespaceView:
    """A new namespace, private, with its owner. `Conflict` (NAME_TAKEN, NAME_TOMBSTONED)."""
    actor.demand_everywhere("admin")
    name = names.namespace(request.name)
    owner = request.owner or actor.subject
    if owner:
        _demand_subject(owner)
    if not reserved_names.claim_namespace(session, actor, name):
        raise Conflict("NAME_TAKEN", f"there is a namespace '{name}' already")
    if owner:
        _put(session, actor, name, owner, Role.OWNER)
    return show(session, actor, name)


def show(session: Session, actor: Actor, name: str) -> NamespaceView:
    return _views(session, actor, [_row(session, actor, name)])[0]


def page(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> NamespacePage:
    """The namespaces that the actor may look into, by name."""
    statement = select(NamespaceRow).where(col(NamespaceRow.name) > cursor)
    reach = actor.reach("pull")
    if reach is not None or actor.adapters:
        own = {name for name in reach or () if not actor.adapters}
        statement = statement.where(col(NamespaceRow.name).in_(sorted(own | actor.public)))
    rows = session.exec(statement.order_by(col(NamespaceRow.name)).limit(limit + 1)).all()
    items = _views(session, actor, rows[:limit])
    return NamespacePage(items=items, next_cursor=items[-1].name if len(rows) > limit else "")


def change(session: Session, actor: Actor, name: str, request: NamespaceSet) -> NamespaceView:
    """Make it public or private, or set its limits (0 takes one away)."""
    actor.demand_in("admin", name)
    given = request.model_dump(exclude_none=True)
    limits = {key: given[key] or None for key in LIMITS if key in given}
    if limits:
        actor.demand_everywhere("admin")
    row = _row(session, actor, name)
    for key, value in limits.items():
        setattr(row, key, value)
    session.add(row)
    if request.public:
        _put(session, actor, name, EVERYBODY, Role.READER)
    elif request.public is False:
        _take(session, actor, name, EVERYBODY)
    if limits:
        audit.append(session, actor, "namespace.limit", name, limits)
    session.flush()
    return show(session, actor, name)


def grant(session: Session, actor: Actor, name: str, subject: str, role: str) -> NamespaceView:
    """Give a subject this role instead of the one that it has. The namespace `*` is all of them."""
    _demand(session, actor, name)
    _demand_subject(subject)
    if role not in list(Role):
        raise Invalid("REQUEST_INVALID", f"role: {role[:40]!r} is not one of {', '.join(Role)}")
    _put(session, actor, name, subject, Role(role))
    return _of(session, actor, name)


def revoke(session: Session, actor: Actor, name: str, subject: str) -> NamespaceView:
    """Take a subject's role. What its tokens gave here they give no more. Twice is the same as once."""
    _demand(session, actor, name)
    _take(session, actor, name, subject)
    return _of(session, actor, name)


def remove(session: Session, actor: Actor, name: str) -> None:
    """An empty namespace ends: its roles go, its name is never given again. Whether it is empty, `removal` asks."""
    session.connection().execute(delete(RoleRow).where(col(RoleRow.namespace) == name))
    session.connection().execute(delete(NamespaceRow).where(col(NamespaceRow.name) == name))
    reserved_names.bury(session, reserved_names.NAMESPACES, name)
    epoch.changed(session)
    audit.append(session, actor, "namespace.delete", name)


def _demand_subject(subject: str) -> None:
    if len(subject) > SUBJECT_LIMIT or not _SUBJECT.match(subject) or subject == EVERYBODY:
        message = f"subject: {subject[:80]!r} is not 1 to {SUBJECT_LIMIT} visible ASCII characters, or is '*'"
        raise Invalid("REQUEST_INVALID", message)


def _demand(session: Session, actor: Actor, name: str) -> None:
    if name == EVERYWHERE:
        actor.demand_everywhere("admin")
        return
    actor.demand_in("admin", name)
    _row(session, actor, name)


def _of(session: Session, actor: Actor, name: str) -> NamespaceView:
    if name != EVERYWHERE:
        return show(session, actor, name)
    rows = session.exec(select(RoleRow).where(col(RoleRow.namespace) == name).order_by(col(RoleRow.subject))).all()
    return NamespaceView(name=name, created_at=db.now(), roles={row.subject: row.role for row in rows})


def _row(session: Session, actor: Actor, name: str) -> NamespaceRow:
    row = session.get(NamespaceRow, name[:80]) if actor.may("pull", name) else None
    if row is None:
        raise unknown_namespace(name)
    return row


def _put(session: Session, actor: Actor, name: str, subject: str, role: Role) -> None:
    values = {"namespace": name, "subject": subject, "role": role, "granted_at": db.now(), "granted_by": actor.identity}
    if not db.insert_new(session, RoleRow, values):
        row = session.get_one(RoleRow, (name, subject), populate_existing=True)
        if row.role == role:
            return
        session.add(row.sqlmodel_update(values))
        session.flush()
    epoch.changed(session)
    audit.append(session, actor, "namespace.grant", name, {"subject": subject, "role": role})


def _take(session: Session, actor: Actor, name: str, subject: str) -> None:
    row = session.get(RoleRow, (name, subject))
    if row is not None:
        session.delete(row)
        session.flush()
        epoch.changed(session)
        audit.append(session, actor, "namespace.revoke", name, {"subject": subject})


def _views(session: Session, actor: Actor, rows: Sequence[NamespaceRow]) -> list[NamespaceView]:
    wanted = (
        select(RoleRow).where(col(RoleRow.namespace).in_([row.name for row in rows])).order_by(col(RoleRow.subject))
    )
    granted: dict[str, dict[str, str]] = {row.name: {} for row in rows}
    for role in session.exec(wanted):
        granted[role.namespace][role.subject] = role.role
    used = admission.used(session, list(granted))
    return [_view(actor, row, granted[row.name], *used[row.name]) for row in rows]


def _view(actor: Actor, row: NamespaceRow, granted: dict[str, str], size_bytes: int, versions: int) -> NamespaceView:
    return NamespaceView(
        name=row.name,
        public=EVERYBODY in granted,
        created_at=row.created_at,
        created_by=row.created_by,
        **{key: getattr(row, key) for key in LIMITS},
        used_bytes=size_bytes,
        used_versions=versions,
        roles={s: r for s, r in granted.items() if s != EVERYBODY} if actor.may("admin", row.name) else None,
    )
