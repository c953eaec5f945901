"""Public namespaces, from which everyone may pull, as a condition: a statement does not grow with their number."""

from typing import Any

from sqlalchemy import ColumnElement, or_
from sqlmodel import col, select

from registry.server.actors import EVERY_SUBJECT, Actor
from registry.server.database.models import RoleRow

SELECT_PUBLIC = select(RoleRow.namespace).where(col(RoleRow.subject) == EVERY_SUBJECT)


def is_one_of(namespace: Any, own: frozenset[str], actor: Actor) -> ColumnElement[bool]:
    """The condition that this column has one of the actor's own namespaces, or one that is public."""
    condition: ColumnElement[bool] = namespace.in_(sorted(own))
    return or_(condition, namespace.in_(SELECT_PUBLIC)) if actor.public else condition
