"""Rows that ended long ago, which garbage collection deletes: pushes, responses, exchanged tokens, deliveries.

Each statement deletes at most `BATCH` rows of one table, in a transaction of its own.
"""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, Engine, and_, delete, func, tuple_
from sqlmodel import Session, SQLModel, col, select

from registry.events import DeliveryState
from registry.server.access.token_exchange import EXCHANGE
from registry.server.database import db
from registry.server.database.models import (
    DeliveryRow,
    IdempotencyRow,
    PageSessionRow,
    PushRow,
    TokenRow,
    UsedAssertionRow,
)
from registry.server.storage.references import PushState

BATCH = 500
KEEP_ENDED = timedelta(days=7)
"""How long ended pushes, responses to mutations and exchanged tokens are kept, for clients that retry."""
KEEP_DELIVERIES = timedelta(days=30)


def _conditions() -> dict[str, tuple[type[SQLModel], ColumnElement[bool]]]:
    """Return the count in the report → the table, and which of its rows may be deleted."""
    now = db.now()
    old = now - KEEP_ENDED
    exchanged = and_(col(TokenRow.created_by) == EXCHANGE, col(TokenRow.expires_at) < old)
    delivered = and_(col(DeliveryRow.state) != DeliveryState.WAITING, col(DeliveryRow.ended_at) < now - KEEP_DELIVERIES)
    return {
        "pushes_deleted": (PushRow, and_(col(PushRow.state) != PushState.OPEN, col(PushRow.expires_at) < old)),
        "responses_deleted": (IdempotencyRow, col(IdempotencyRow.created_at) < old),
        "tokens_deleted": (TokenRow, exchanged),
        "assertions_deleted": (UsedAssertionRow, col(UsedAssertionRow.expires_at) < now),
        "sessions_deleted": (PageSessionRow, col(PageSessionRow.expires_at) < now),
        "deliveries_deleted": (DeliveryRow, delivered),
    }


def count(session: Session) -> dict[str, int]:
    """Return how many rows of each kind may be deleted."""
    return {
        name: session.exec(select(func.count()).select_from(table).where(condition)).one()
        for name, (table, condition) in _conditions().items()
    }


def delete_batch(engine: Engine) -> dict[str, int]:
    """Delete up to `BATCH` rows of each kind; return how many.

    The rows are picked in a common table expression: PostgreSQL may run a plain subquery again for each row.
    """
    counts = {}
    for name, (table, condition) in _conditions().items():
        keys = list(table.__table__.primary_key.columns)  # type: ignore[attr-defined]
        picked = select(*keys).where(condition).limit(BATCH).with_for_update(skip_locked=True).cte("picked")
        statement = delete(table).where(tuple_(*keys).in_(select(*picked.c)))
        with db.session(engine) as session:
            counts[name] = session.connection().execute(statement).rowcount
    return counts
