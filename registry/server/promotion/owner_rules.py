"""Rules that an adapter or its namespace sets: gates of aliases, and retention."""

from typing import Any

from sqlmodel import Session, select

from registry import names
from registry.names import AdapterName
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.models.owner_rules import RuleRow

Owner = AdapterName | str
"""An adapter, or the name of a namespace."""


def namespace_of(owner: Owner) -> str:
    """The namespace of an adapter, or the one that the owner is."""
    return owner.namespace if isinstance(owner, AdapterName) else owner


def key_of(owner: int | str | None) -> dict[str, Any]:
    """The owner's part of a rule's key: the id of an adapter, or the name of a namespace."""
    is_namespace = isinstance(owner, str)
    return {"adapter_id": None if is_namespace else owner, "namespace": owner if is_namespace else None}


def lock_owner(session: Session, actor: Actor, owner: Owner) -> dict[str, Any]:
    """The owner's part of a rule's key, for an administrator. Changes of one adapter's rules wait for each other."""
    if isinstance(owner, AdapterName):
        actor.require(Scope.ADMIN, owner)
        return key_of(versions.find_adapter(session, actor, owner, lock=True).id)
    actor.require_in(Scope.ADMIN, names.namespace(owner))
    return key_of(owner)


def replace_rule(
    session: Session, actor: Actor, key: dict[str, Any], value: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Write the rule of this owner, kind and alias, or delete it (None); return the one before, which may be equal."""
    statement = select(RuleRow).filter_by(**key).with_for_update()
    row = session.exec(statement).first()
    values = {"rule": value, "set_at": db.now(), "set_by": actor.identity}
    while row is None and value is not None and not db.insert_new(session, RuleRow, key | values):
        row = session.exec(statement).first()  # lost a race for a namespace's rule
    before = row.rule if row is not None else None
    if row is not None and value is None:
        session.delete(row)
    elif row is not None and before != value:
        session.add(row.sqlmodel_update(values))
    session.flush()
    return before
