"""Namespaces: create, show, set limits, make strict, grant and revoke roles.

A namespace is private until its owner makes it public, which gives everyone the role `reader`. Only administrators of
all namespaces create namespaces and set limits; owners give roles. Each change advances the access epoch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta

from sqlalchemy import delete, or_
from sqlmodel import Session, col, select

from registry import names
from registry.api import access as views
from registry.errors import Conflict, Invalid, TooLarge
from registry.events import EventType
from registry.roles import FOR_ALIASES, SUBJECT_LIMIT, GrantedRole, Role, Scope, in_words
from registry.server import audit
from registry.server.access import epoch, quotas, reserved_names
from registry.server.actors import (
    EVERY_NAMESPACE,
    EVERY_SUBJECT,
    Actor,
    is_subject,
    public_namespaces,
    unknown_namespace,
)
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import RoleRow
from registry.server.database.models.namespaces import NamespaceRow

ROLES_LIMIT = 1000
"""Roles in a namespace: administrators list those of all. Those of a group are of all its members."""
LIMITS = ("quota_bytes", "quota_versions", "pushes_per_hour")


def create(
    session: Session, actor: Actor, request: views.NamespaceCreate, delete_grace: timedelta = timedelta(0)
) -> views.NamespaceView:
    """Create a private namespace with an owner, also one that was deleted within the grace time, whose rules go on.

    `Conflict` (NAME_TAKEN, NAME_TOMBSTONED).
    """
    actor.require_everywhere(Scope.ADMIN)
    name = names.namespace(request.name)
    owner = request.owner or actor.subject
    if owner:
        _check_subject(owner)
    reserved_names.remove_tombstone(session, reserved_names.NAMESPACES, name, ended_after=db.now() - delete_grace)
    if not reserved_names.reserve_namespace(session, actor, name):
        raise Conflict("NAME_TAKEN", f"there is a namespace '{name}' already")
    if request.rehearsal:
        session.add(session.get_one(NamespaceRow, name).sqlmodel_update({"rehearsal": True}))
    if owner:
        _set_role(session, actor, name, owner, GrantedRole(Role.OWNER))
    return show(session, actor, name)


def show(session: Session, actor: Actor, name: str) -> views.NamespaceView:
    """Return one namespace. `NotFound` if the actor may not see it."""
    return _views(session, actor, [_find(session, actor, name)])[0]


def list_namespaces(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> views.NamespacePage:
    """Return the namespaces that the actor may see, by name."""
    statement = select(NamespaceRow).where(col(NamespaceRow.name) > cursor)
    readable = actor.namespaces_with(Scope.PULL)
    if readable is not None or actor.adapters:
        own = frozenset(name for name in readable or () if not actor.adapters)
        statement = statement.where(public_namespaces.is_one_of(col(NamespaceRow.name), own, actor))
    rows = session.exec(statement.order_by(col(NamespaceRow.name)).limit(limit + 1)).all()
    items = _views(session, actor, rows[:limit])
    return views.NamespacePage(items=items, next_cursor=items[-1].name if len(rows) > limit else "")


def update(session: Session, actor: Actor, name: str, request: views.NamespaceSet) -> views.NamespaceView:
    """Make a namespace public or private, or set its rules and limits; 0 removes a limit."""
    actor.require_in(Scope.ADMIN, name)
    values = request.model_dump(exclude_none=True)
    if any(key in values for key in LIMITS):
        actor.require_everywhere(Scope.ADMIN)
    row = _find(session, actor, name)
    if request.public and row.rehearsal:
        step = "rename what should be public into another namespace: `adapter rename`"
        raise Conflict("NAMESPACE_IN_USE", f"namespace '{name}' is a rehearsal, which cannot be public", next_step=step)
    limits = {key: values[key] or None for key in LIMITS if key in values}
    before = {key: getattr(row, key) for key in limits}
    for key, value in limits.items():
        setattr(row, key, value)
    rules = [rule for rule in views.NAMESPACE_RULES if values.get(rule.field) not in (None, getattr(row, rule.field))]
    for rule in rules:
        setattr(row, rule.field, values[rule.field])
    session.add(row)
    if request.public:
        _set_role(session, actor, name, EVERY_SUBJECT, GrantedRole(Role.READER))
    elif request.public is False:
        _delete_roles(session, actor, name, EVERY_SUBJECT)
    if limits != before:
        audit.append(session, actor, EventType.NAMESPACE_LIMIT, name, {"before": before, "after": limits})
    if rules:
        text = "; ".join(rule.text(values[rule.field]) for rule in rules)
        changed = {rule.field: values[rule.field] for rule in rules}
        audit.append(session, actor, EventType.NAMESPACE_RULES, name, changed | {"text": text})
    session.flush()
    return show(session, actor, name)


def find_with_rule(session: Session, rule: str, names: Iterable[str]) -> set[str]:
    """Those of these namespaces that have a rule of `NAMESPACE_RULES` on, such as `strict`."""
    is_one = any_of(col(NamespaceRow.name), parameter="names")
    statement = select(NamespaceRow.name).where(is_one, col(getattr(NamespaceRow, rule)))
    return set(session.exec(statement, params={"names": sorted(names)}))


def grant_role(
    session: Session, actor: Actor, name: str, subject: str, request: views.RoleGrant
) -> views.SubjectRoles:  # fmt: skip
    """Give a subject a role beside those that it has. The namespace `*` stands for all.

    The same role again only changes its aliases.
    """
    require_admin(session, actor, name)
    _check_subject(subject)
    granted = _read_grant(request)
    db.lock_names(session, f"roles of {name}")
    before = _find_roles(session, name, subject)
    others = select(RoleRow.subject).where(
        RoleRow.namespace == name, or_(col(RoleRow.subject) != subject, col(RoleRow.role) != granted.role)
    )
    if db.count_rows(session, others) >= ROLES_LIMIT:
        problem = f"namespace '{name}' has {ROLES_LIMIT} roles of subjects, which is the limit"
        raise TooLarge("QUOTA_EXCEEDED", problem, next_step="grant a role to a group")
    _set_role(session, actor, name, subject, granted)
    return _changed(session, name, subject, before)


def _read_grant(request: views.RoleGrant) -> GrantedRole:
    if request.role not in list(Role):
        raise Invalid("REQUEST_INVALID", f"role: {request.role[:40]!r} is not one of {', '.join(Role)}")
    role, aliases = Role(request.role), read_aliases(request.aliases)
    if aliases and role not in FOR_ALIASES:
        raise Invalid("REQUEST_INVALID", f"aliases: only {in_words(sorted(FOR_ALIASES))} can be for single aliases")
    return GrantedRole(role, aliases)


def read_aliases(texts: Iterable[str]) -> frozenset[str]:
    """The aliases that a role, token or trusted publisher may move. `Invalid` for `main`, which only a push moves."""
    aliases = frozenset(map(names.alias, texts))
    if names.NEWEST in aliases:
        raise Invalid("REQUEST_INVALID", f"aliases: '{names.NEWEST}' follows the newest version: only a push moves it")
    return aliases


def revoke_role(session: Session, actor: Actor, name: str, subject: str, role: str = "") -> views.SubjectRoles:
    """Remove a role of a subject, or all. Its tokens lose their rights here. Revoking it again changes nothing."""
    require_admin(session, actor, name)
    before = _find_roles(session, name, subject)
    _delete_roles(session, actor, name, subject, role)
    return _changed(session, name, subject, before)


def delete_namespace(session: Session, actor: Actor, name: str) -> None:
    """Delete an empty namespace and its roles; its name stays reserved. The caller checks that it is empty."""
    session.connection().execute(delete(RoleRow).where(col(RoleRow.namespace) == name))
    session.connection().execute(delete(NamespaceRow).where(col(NamespaceRow.name) == name))
    reserved_names.add_tombstone(session, reserved_names.NAMESPACES, name)
    epoch.advance(session)
    audit.append(session, actor, EventType.NAMESPACE_DELETE, name)


def _check_subject(subject: str) -> None:
    if not is_subject(subject):
        message = f"subject: {subject[:80]!r} must be 1 to {SUBJECT_LIMIT} visible ASCII characters"
        raise Invalid("REQUEST_INVALID", f"{message}, and no name of tokens or of the registry itself")


def require_admin(session: Session, actor: Actor, name: str) -> None:
    """Raise `Denied` or `NotFound` unless the actor administers this namespace, which exists, or all."""
    if name == EVERY_NAMESPACE:
        actor.require_everywhere(Scope.ADMIN)
        return
    actor.require_in(Scope.ADMIN, name)
    _find(session, actor, name)


def role_views(roles: Iterable[GrantedRole]) -> list[views.RoleView]:
    """Roles as the API shows them."""
    return [views.RoleView(role=role.role, aliases=sorted(role.aliases)) for role in roles]


def _changed(session: Session, name: str, subject: str, before: Sequence[RoleRow]) -> views.SubjectRoles:
    now = _find_roles(session, name, subject)
    return views.SubjectRoles(namespace=name, subject=subject, before=_role_views(before), roles=_role_views(now))


def _find_roles(session: Session, name: str, subject: str) -> list[RoleRow]:
    statement = select(RoleRow).where(RoleRow.namespace == name, RoleRow.subject == subject)
    return list(session.exec(statement.order_by(col(RoleRow.role)).execution_options(populate_existing=True)))


def _role_views(rows: Iterable[RoleRow]) -> list[views.RoleView]:
    return [db.to_view(row, views.RoleView) for row in rows]


def _find(session: Session, actor: Actor, name: str) -> NamespaceRow:
    row = session.get(NamespaceRow, name[:80]) if actor.may(Scope.PULL, name) else None
    if row is None:
        raise unknown_namespace(name)
    return row


def _set_role(session: Session, actor: Actor, name: str, subject: str, granted: GrantedRole) -> None:
    role, aliases = granted.role, sorted(granted.aliases)
    values = {"namespace": name, "subject": subject, "role": role, "aliases": aliases,
              "granted_at": db.now(), "granted_by": actor.identity}  # fmt: skip
    if not db.insert_new(session, RoleRow, values):
        row = session.get_one(RoleRow, (name, subject, role), populate_existing=True)
        if row.aliases == aliases:
            return
        session.add(row.sqlmodel_update(values))
        session.flush()
    epoch.advance(session)
    detail = {"subject": subject, "role": role, "aliases": aliases}
    audit.append(session, actor, EventType.NAMESPACE_GRANT, name, detail)


def _delete_roles(session: Session, actor: Actor, name: str, subject: str, role: str = "") -> None:
    for row in _find_roles(session, name, subject):
        if role in ("", row.role):
            session.delete(row)
            session.flush()
            epoch.advance(session)
            audit.append(session, actor, EventType.NAMESPACE_REVOKE, name, {"subject": subject, "role": row.role})


def _views(session: Session, actor: Actor, rows: Sequence[NamespaceRow]) -> list[views.NamespaceView]:
    roles: dict[str, dict[str, list[RoleRow]]] = {row.name: defaultdict(list) for row in rows}
    own = [row.name for row in rows if actor.may(Scope.ADMIN, row.name)]  # all others see whether it is public
    is_shown = or_(col(RoleRow.namespace).in_(own), col(RoleRow.subject) == EVERY_SUBJECT)
    statement = select(RoleRow).where(col(RoleRow.namespace).in_(list(roles)), is_shown)
    for role in session.exec(statement.order_by(col(RoleRow.subject), col(RoleRow.role))):
        roles[role.namespace][role.subject].append(role)
    usage = quotas.read_usage(session, list(roles))
    return [_view(actor, row, roles[row.name], *usage[row.name]) for row in rows]


def _view(
    actor: Actor, row: NamespaceRow, roles: dict[str, list[RoleRow]], size_bytes: int, versions: int
) -> views.NamespaceView:
    subjects = {subject: _role_views(of_one) for subject, of_one in roles.items() if subject != EVERY_SUBJECT}
    return db.to_view(
        row,
        views.NamespaceView,
        public=EVERY_SUBJECT in roles,
        used_bytes=size_bytes,
        used_versions=versions,
        roles=subjects if actor.may(Scope.ADMIN, row.name) else None,
    )
