"""Reserved names: names that look alike count as one, and the name of something deleted goes to nothing else.

- A name is reserved in the transaction that creates its adapter or namespace, by its skeleton (`names.skeleton`). A
  reservation is never removed; when its adapter or namespace ends, it becomes a tombstone. That ends by a restore, when
  an adapter is renamed back, and when the name of a deleted adapter is released (`adapter_deletion`).
- An error names the other adapter or namespace only to those who may see it.
- A name `ORG/NAME` that a base had, as its name or as an alias, ends in the same way. Only administrators and workers
  of the whole registry may use it again: to everyone else's configurations it still means the old base.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from sqlalchemy import update
from sqlmodel import Session, col, select

from registry import names
from registry.errors import Conflict
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models.namespaces import NamespaceRow, TakenNameRow

NAMESPACES = ""
"""The `owner` of a namespace's name. The owner of an adapter's name is its namespace."""
_BASES = "@"
"""The `owner` of a base's name is this sign and its organization, in lower case. No namespace begins with it."""
_EVER = datetime(1, 1, 1, tzinfo=UTC)

# Built once: every push executes it.
_SELECT_SIMILAR = select(TakenNameRow).where(
    any_of(col(TakenNameRow.owner), parameter="owners"), any_of(col(TakenNameRow.skeleton), parameter="skeletons")
)


def check_available(session: Session, actor: Actor, name: AdapterName) -> None:
    """Check whether `reserve_adapter` would fail, before any byte is sent. `Conflict` as there."""
    for conflict in find_conflicts(session, actor, [name]).values():
        raise conflict


def find_conflicts(session: Session, actor: Actor, adapters: Sequence[AdapterName]) -> dict[AdapterName, Conflict]:
    """Those of these adapters whose names, or those of their namespaces, cannot be reserved."""
    rows = _find_taken(session, [key for name in adapters for key in _keys(name)])
    conflicts: dict[AdapterName, Conflict] = {}
    for adapter in adapters:
        for owner, name in _keys(adapter):
            row = rows.get((owner, names.skeleton(name)))
            if row is not None and (row.ended_at is not None or row.name != name):
                conflicts.setdefault(adapter, _conflict(actor, row, name))
    return conflicts


def _keys(adapter: AdapterName) -> tuple[tuple[str, str], ...]:
    """The owners and names that an adapter reserves: its namespace's, and its own."""
    return (NAMESPACES, adapter.namespace), (adapter.namespace, adapter.name)


def _find_taken(session: Session, keys: Iterable[tuple[str, str]]) -> dict[tuple[str, str], TakenNameRow]:
    """(owner, skeleton) → the reservation, of these owners and names."""
    exact_keys = {(owner, names.skeleton(name)) for owner, name in keys}
    params = {"owners": sorted({key[0] for key in exact_keys}), "skeletons": sorted({key[1] for key in exact_keys})}
    rows = session.exec(_SELECT_SIMILAR.execution_options(populate_existing=True), params=params)
    return {key: row for row in rows if (key := (row.owner, row.skeleton)) in exact_keys}


def reserve_adapter(session: Session, actor: Actor, name: AdapterName) -> None:
    """Reserve the name of a new adapter and of its new namespace. `Conflict` (NAME_TAKEN, NAME_TOMBSTONED)."""
    for conflict in reserve_adapters(session, actor, [name]).values():
        raise conflict


def reserve_adapters(session: Session, actor: Actor, adapters: Sequence[AdapterName]) -> dict[AdapterName, Conflict]:
    """Reserve the names of new adapters and namespaces; return those that cannot be: then the caller rolls back."""
    namespaces = [
        {"name": namespace, "created_at": db.now(), "created_by": actor.identity}
        for namespace in sorted({name.namespace for name in adapters})
    ]
    new = sorted(row.name for row in db.insert_new_rows(session, NamespaceRow, namespaces, returning=_NAMESPACE_NAME))
    keys = [*((NAMESPACES, namespace) for namespace in new), *sorted((n.namespace, n.name) for n in adapters)]
    db.insert_new_rows(session, TakenNameRow, [_values(*key) for key in keys], returning=_SKELETON)
    created = [audit.build(session, actor, EventType.NAMESPACE_CREATE, namespace) for namespace in new]
    db.bulk_insert(session, created)
    return find_conflicts(session, actor, adapters)


_NAMESPACE_NAME = (col(NamespaceRow.name),)
_SKELETON = (col(TakenNameRow.skeleton),)


def reserve_namespace(session: Session, actor: Actor, namespace: str) -> bool:
    """Create the row of a namespace and reserve its name, unless it exists; return whether it is new."""
    values = {"name": namespace, "created_at": db.now(), "created_by": actor.identity}
    if not db.insert_new(session, NamespaceRow, values):
        return False
    if not _insert(session, NAMESPACES, namespace):
        row = session.get_one(TakenNameRow, (NAMESPACES, names.skeleton(namespace)), populate_existing=True)
        if row.ended_at is not None or row.name != namespace:
            raise _conflict(actor, row, namespace)
    audit.append(session, actor, EventType.NAMESPACE_CREATE, namespace)
    return True


def _values(owner: str, name: str) -> dict[str, str]:
    return {"owner": owner, "skeleton": names.skeleton(name), "name": name}


def _insert(session: Session, owner: str, name: str) -> bool:
    return db.insert_new(session, TakenNameRow, _values(owner, name))


def restore_adapter(session: Session, name: AdapterName) -> None:
    """Reserve the name of an adapter that is imported from the bucket. Nothing is refused: it existed before."""
    values = {"name": name.namespace, "created_at": db.now(), "created_by": "registry"}
    db.insert_new(session, NamespaceRow, values)
    _insert(session, NAMESPACES, name.namespace)
    _insert(session, name.namespace, name.name)


def add_tombstone(session: Session, owner: str, name: str) -> None:
    """Mark a name as ended. Nothing else gets it, or a name that looks like it."""
    _insert(session, owner, name)
    statement = update(TakenNameRow).where(
        col(TakenNameRow.owner) == owner, col(TakenNameRow.skeleton) == names.skeleton(name)
    )
    session.connection().execute(statement.values(ended_at=db.now()))


def remove_tombstone(session: Session, owner: str, name: str, *, ended_after: datetime = _EVER) -> None:
    """Give a name back to what had it, and is restored or goes on. Nothing else can have taken it meanwhile."""
    statement = update(TakenNameRow).where(
        col(TakenNameRow.owner) == owner, col(TakenNameRow.skeleton) == names.skeleton(name),
        col(TakenNameRow.name) == name, col(TakenNameRow.ended_at) > ended_after,
    )  # fmt: skip
    session.connection().execute(statement.values(ended_at=None))


def add_base_tombstone(session: Session, name: str) -> None:
    """Mark the name or alias of a base as ended. One without an organization is for administrators anyway."""
    if "/" in name:
        add_tombstone(session, *_base_key(name))


def check_base_available(session: Session, name: str) -> None:
    """`Conflict` (NAME_TOMBSTONED) for a name that another base had, or that looks like one."""
    owner, word = _base_key(name)
    row = session.get(TakenNameRow, (owner, names.skeleton(word)))
    if row is not None and row.ended_at is not None:
        message = "was the name or an alias of another base, or looks like one"
        reason = Finding("name.tombstoned", name, message)
        next_step = "choose another name, or ask an administrator to add the base"
        raise Conflict("NAME_TOMBSTONED", f"base name '{name}' {message}", findings=[reason], next_step=next_step)


def _base_key(name: str) -> tuple[str, str]:
    organization, _, word = name.lower().partition("/")
    return _BASES + organization, word


def has_tombstone(session: Session, name: AdapterName) -> bool:
    """Whether an adapter of exactly this name was deleted or renamed."""
    row = session.get(TakenNameRow, (name.namespace, names.skeleton(name.name)))
    return row is not None and row.ended_at is not None and row.name == name.name


def _conflict(actor: Actor, row: TakenNameRow, name: str) -> Conflict:
    kind = "adapter" if row.owner else "namespace"
    full_name = f"{row.owner}/{name}" if row.owner else name
    if row.ended_at is not None:
        message = "was deleted or renamed, or looks like one that was; such a name is never used again"
        reason = Finding("name.tombstoned", full_name, message)
        step = f"choose another, or if nobody else ever pulled it: `adapter delete {full_name} --release-name`"
        next_step = step if row.owner and row.name == name else ""
        return Conflict(
            "NAME_TOMBSTONED", f"{kind} name '{full_name}' {message}", findings=[reason], next_step=next_step
        )
    visible = actor.may(Scope.PULL, row.owner, row.name) if row.owner else actor.may(Scope.PULL, row.name)
    other = f"'{row.name}'" if visible else "an existing one"
    message = f"looks too much like {other}"
    return Conflict(
        "NAME_TAKEN",
        f"{kind} name '{full_name}' {message}",
        findings=[Finding("name.too_similar", full_name, message)],
        next_step="choose a name that differs in more than separators, l, i, 1, o and 0",
    )
