"""`Shift`: what one request of garbage collection works with, what it has counted, and when its time is up.

Invariants
- Counting is the same for a dry run; what a shift counts is what its report says.

Example
    >>> shift.count("blobs_deleted", 3)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Engine, delete
from sqlmodel import col

from registry.digest import Digest
from registry.server import db, failpoints
from registry.server.blobs import BlobStore, key_of
from registry.server.holds import BlobState
from registry.server.tables import BlobRow
from registry.server.turn import Turn

BATCH = 500
"""Rows of one transaction."""
SECONDS = 10.0
"""How long one request works before it hands out a cursor."""


@dataclass
class Shift:
    engine: Engine
    blobs: BlobStore
    turn: Turn
    grace: timedelta
    hold: timedelta
    dry_run: bool
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def over(self) -> bool:
        return time.monotonic() - self.started > SECONDS

    def remove(self, digests: Sequence[str]) -> None:
        """Bytes, then rows, of blobs that are claimed (`deleting`). Killed in between, it is done again."""
        for digest in digests:
            self.turn.check()
            self.blobs.delete(key_of(Digest(digest)))
        failpoints.reach("gc.deleted")
        with db.session(self.engine) as session:
            gone = delete(BlobRow).where(col(BlobRow.digest).in_(digests), col(BlobRow.state) == BlobState.DELETING)
            session.connection().execute(gone)
