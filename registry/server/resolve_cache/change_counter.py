"""`ChangeCounter`: whether anything was committed that an event describes. One short statement for all who wait.

Serving nodes renew their leases many times a second, which changes no desired state. A request that waits for a change
reads the counter first, and its desired state only when the counter has moved.

The counter moves with every committed event and verdict. It is read after the stamp under which it is remembered, so it
is never older than that stamp.
"""

from __future__ import annotations

import threading

from sqlalchemy import Engine, func
from sqlmodel import col, select

from registry.server.database import db
from registry.server.database.models import EventRow, VerdictRow

Counts = tuple[int, int]
"""The number of events, and the id of the newest verdict."""


class ChangeCounter:
    """Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._latest: tuple[object, Counts] | None = None

    def peek(self, stamp: object | None) -> Counts | None:
        """Return the counts at this stamp if they were read already; without a statement."""
        latest = self._latest
        return latest[1] if latest is not None and stamp is not None and latest[0] == stamp else None

    def read(self, stamp: object | None) -> Counts:
        """Return the counts at this stamp."""
        with self._lock:
            counts = self.peek(stamp)
            if counts is None:
                counts = self._query()
                self._latest = (stamp, counts)
        return counts

    def _query(self) -> Counts:
        numbered = select(func.coalesce(func.max(EventRow.position), 0)).scalar_subquery()
        pending = select(func.count()).select_from(EventRow).where(col(EventRow.position).is_(None)).scalar_subquery()
        verdict = select(func.coalesce(func.max(VerdictRow.id), 0)).scalar_subquery()
        with db.session(self._engine, write=False) as session:
            events, verdicts = session.exec(select(numbered + pending, verdict)).one()
        return events, verdicts
