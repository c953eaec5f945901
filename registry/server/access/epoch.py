"""The access epoch: one number that grows with every change of a right, and when a version is withheld.

It grows in the transaction of the change. A process that remembers an actor reads the epoch in a statement that it
sends anyway, and reads the actor again when the epoch has grown, so a revocation takes effect at once on every replica.
"""

from sqlalchemy import ColumnElement, func, update
from sqlmodel import Session, col, select

from registry.server.database import db
from registry.server.database.models import AccessStateRow

_ID = 1


def advance(session: Session) -> None:
    """Start a new epoch. Call it when a right is given or taken or a version withheld; concurrent callers wait."""
    if not db.insert_new(session, AccessStateRow, {"id": _ID, "generation": 1}):
        statement = update(AccessStateRow).values(generation=col(AccessStateRow.generation) + 1)
        session.connection().execute(statement)


def current() -> ColumnElement[int]:
    """The epoch as a column for any statement; 0 before the first change."""
    generation = select(AccessStateRow.generation).where(col(AccessStateRow.id) == _ID).scalar_subquery()
    return func.coalesce(generation, 0)
