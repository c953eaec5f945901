"""Rules that an adapter or its namespace sets, such as the gate of an alias: each has a table of either owner."""

from typing import Any

from sqlmodel import Session, SQLModel, select

from registry import names
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db

Owner = AdapterName | str
"""An adapter, or the name of a namespace."""


def namespace_of(owner: Owner) -> str:
    """The namespace of an adapter, or the one that the owner is."""
    return owner.namespace if isinstance(owner, AdapterName) else owner


def lock_owner(session: Session, actor: Actor, owner: Owner) -> dict[str, Any]:
    """The owner's part of a rule's key, for an administrator. Changes of one adapter's rules wait for each other."""
    if isinstance(owner, AdapterName):
        actor.require(Scope.ADMIN, owner)
        return {"adapter_id": versions.find_adapter(session, actor, owner, lock=True).id}
    actor.require_in(Scope.ADMIN, names.namespace(owner))
    return {"namespace": owner}


def replace_rule(
    session: Session, actor: Actor, table: type[SQLModel], key: dict[str, Any], rule: tuple[str, dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Write a rule into its column, or delete it (None); return the one before. An equal one stays as it is."""
    column, value = rule
    statement = select(table).filter_by(**key).with_for_update()
    row = session.exec(statement).first()
    values = {column: value, "set_at": db.now(), "set_by": actor.identity}
    while row is None and value is not None and not db.insert_new(session, table, key | values):
        row = session.exec(statement).first()  # lost a race for a namespace's rule
    before: dict[str, Any] | None = getattr(row, column) if row is not None else None
    if row is not None and value is None:
        session.delete(row)
    elif row is not None and before != value:
        session.add(row.sqlmodel_update(values))
    session.flush()
    return before
