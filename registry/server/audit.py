"""The audit log: append an event in the caller's transaction, and read events back in order.

Invariants
- An event is in the transaction of the change that it tells of: both are stored or neither.
- Events are only appended. `detail` is canonical JSON (no floats) of at most `DETAIL_LIMIT_BYTES`.
- No secret and no file content is ever in an event.

Example
    >>> audit.append(session, actor, "alias.move", "acme/support:prod", {"to": 4})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlmodel import Session, col, select

from registry.digest import canonical_json
from registry.server import db
from registry.server.actors import Actor
from registry.server.tables import EventRow
from registry.wire.access import EventPage, EventView

DETAIL_LIMIT_BYTES = 16 * 2**10


def append(
    session: Session,
    actor: Actor,
    action: str,
    object: str,
    detail: Mapping[str, Any] | None = None,
    request_id: str = "",
) -> EventRow:
    """Add one event. `action` is `noun.verb`; `object` is the name of what changed.

    Without `request_id` the one of the request that owns the session is taken.
    """
    told = dict(detail or {})
    size_bytes = len(canonical_json(told))
    if size_bytes > DETAIL_LIMIT_BYTES:
        told = {"cut": f"{size_bytes} bytes of detail are over {DETAIL_LIMIT_BYTES}"}
    row = EventRow(
        at=db.now(),
        actor=actor.name,
        token_id=actor.token_id,
        action=action,
        object=object,
        detail=told,
        request_id=request_id or str(session.info.get("request_id", "")),
    )
    session.add(row)
    return row


def page(session: Session, *, after: int = 0, limit: int) -> EventPage:
    """Events in order, from the one that follows `after`."""
    rows = session.exec(
        select(EventRow).where(col(EventRow.seq) > after).order_by(col(EventRow.seq)).limit(limit + 1)
    ).all()
    items = [
        EventView(
            seq=row.seq or 0,
            at=row.at,
            actor=row.actor,
            action=row.action,
            object=row.object,
            detail=row.detail,
            request_id=row.request_id,
        )
        for row in rows[:limit]
    ]
    return EventPage(items=items, next_cursor=str(items[-1].seq) if len(rows) > limit else "")
