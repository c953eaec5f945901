"""`Writers`: the threads of one process write to SQLite one after the other, each woken when its turn comes.

SQLite has one writer at a time, and has those who wait sleep and ask again, for up to 0.1 s each time: four pushes at
once spend a good part of their time asleep while nobody writes.

Invariants
- A turn is taken before BEGIN IMMEDIATE and given back when the connection is: a session gives its own back with its
  commit or rollback.
- It is only an order to wait in: other processes are still kept out by SQLite's own lock, and whoever waits for a turn
  longer than `WAIT_SECONDS` asks SQLite all the same.

Example
    >>> Writers(engine).begin(connection)
"""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, Engine, event

WAIT_SECONDS = 30


class Writers:
    """The turns of one engine, which end where its pool gets a connection back or loses it."""

    def __init__(self, engine: Engine) -> None:
        self._turn = threading.Lock()
        self._writing: Any = None
        """The driver's connection that has the turn."""
        for name in ("checkin", "invalidate", "close"):
            event.listen(engine, name, self._end)

    def begin(self, connection: Connection) -> None:
        """BEGIN IMMEDIATE on this connection, when nobody else of this process is writing."""
        own = connection.connection.dbapi_connection
        if own is not self._writing and self._turn.acquire(timeout=WAIT_SECONDS):
            self._writing = own
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            self._end(own)
            raise

    def _end(self, connection: Any, *_: Any) -> None:
        if connection is not None and connection is self._writing:
            self._writing = None
            self._turn.release()
