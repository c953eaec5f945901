"""`Writers`: the threads of one process write to SQLite one after the other, each woken when its turn comes.

SQLite has one writer at a time, and has those who wait sleep and ask again, for up to 0.1 s each time: four pushes at
once spend a good part of their time asleep while nobody writes.

Invariants
- A turn is taken before BEGIN IMMEDIATE and given back when the transaction has ended or its connection is closed.
- It is only an order to wait in: other processes are still kept out by SQLite's own lock, and whoever waits for a turn
  longer than `WAIT_SECONDS` asks SQLite all the same.

Example
    >>> Writers(engine).begin(connection)
"""

from __future__ import annotations

import threading
from typing import Any

from sqlalchemy import Connection, Engine

WAIT_SECONDS = 30


class Writers:
    """The turns of one engine. It looks at how the engine's dialect ends transactions, for a turn ends with one."""

    def __init__(self, engine: Engine) -> None:
        self._turn = threading.Lock()
        self._writing: Any = None
        """The driver's connection that has the turn."""
        dialect: Any = engine.dialect
        for name in ("do_commit", "do_rollback", "do_close"):
            setattr(dialect, name, self._ending(getattr(dialect, name)))

    def begin(self, connection: Connection) -> None:
        """BEGIN IMMEDIATE on this connection, when nobody else of this process is writing."""
        mine = self._turn.acquire(timeout=WAIT_SECONDS)
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        except BaseException:
            if mine:
                self._turn.release()
            raise
        if mine:
            self._writing = connection.connection.dbapi_connection

    def _ending(self, end: Any) -> Any:
        def ended(connection: Any) -> None:
            raw = getattr(connection, "dbapi_connection", connection)  # the pool hands out wrapped ones
            try:
                end(connection)
            finally:
                if raw is not None and raw is self._writing:
                    self._writing = None
                    self._turn.release()

        return ended
