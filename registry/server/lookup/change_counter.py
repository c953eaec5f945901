"""`Pulse`: has anything been committed that an event tells of? One short statement, for everybody who waits.

A fleet renews its leases many times a second, which changes nothing on a roster. Whoever waits for a change looks at
the pulse first, and at what it waits for only when that has moved.

Invariants
- It moves with every committed event and verdict: numbered events and those without a number only ever grow in sum.
- It is read after the stamp that it is kept for, so it is never older than that.
"""

from __future__ import annotations

import threading

from sqlalchemy import Engine, func
from sqlmodel import col, select

from registry.server.database import db
from registry.server.database.models import EventRow, VerdictRow

Beat = tuple[int, int]


class Pulse:
    """Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: tuple[object, Beat] | None = None

    def known(self, stamp: object | None) -> Beat | None:
        """The pulse at this stamp, if somebody has read it; without a statement."""
        kept = self._kept
        return kept[1] if kept is not None and stamp is not None and kept[0] == stamp else None

    def read(self, stamp: object | None) -> Beat:
        with self._lock:
            found = self.known(stamp)
            if found is None:
                found = self._read()
                self._kept = (stamp, found)
        return found

    def _read(self) -> Beat:
        numbered = select(func.coalesce(func.max(EventRow.position), 0)).scalar_subquery()
        without = select(func.count()).select_from(EventRow).where(col(EventRow.position).is_(None)).scalar_subquery()
        verdict = select(func.coalesce(func.max(VerdictRow.id), 0)).scalar_subquery()
        with db.session(self._engine, write=False) as session:
            events, verdicts = session.exec(select(numbered + without, verdict)).one()
        return events, verdicts
