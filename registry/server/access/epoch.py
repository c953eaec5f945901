"""The generation of access: one number that grows whenever a right is given or taken.

Invariants
- It grows in the transaction of the change, so whoever reads it later sees the change, too, on every replica.
- Who remembers an actor reads the generation in the statement that it sends anyway, and asks again when it has grown.

Example
    >>> state.changed(session)
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, update
from sqlmodel import Session, col, select

from registry.server.database import db
from registry.server.database.models.content import AccessStateRow

_ID = 1


def changed(session: Session) -> None:
    """Call it once a right was given or taken. Such changes wait for each other."""
    if not db.insert_new(session, AccessStateRow, {"id": _ID, "generation": 1}):
        grown = update(AccessStateRow).values(generation=col(AccessStateRow.generation) + 1)
        session.connection().execute(grown)


def generation() -> ColumnElement[int]:
    """The generation as a column of any statement; 0 before the first change."""
    found = select(AccessStateRow.generation).where(col(AccessStateRow.id) == _ID).scalar_subquery()
    return func.coalesce(found, 0)
