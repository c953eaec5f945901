"""`Shift`: what one request of garbage collection works with, what it has counted, and when its time is up.

Invariants
- Counting is the same for a dry run; what a shift counts is what its report says.
- A key that the store does not delete stands in nobody's way: it is counted, and the next run tries it again. Where
  it refuses `REFUSALS_LIMIT` of them the store itself is ill, and the request fails.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import Engine, delete
from sqlmodel import col

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server import failpoints
from registry.server.database import db
from registry.server.database.locks import AdvisoryLock
from registry.server.database.models import BlobRow
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.references import BlobState

BATCH = 500
"""Rows of one transaction."""
REFUSALS_LIMIT = 20
SECONDS = 10.0
"""How long one request works before it hands out a cursor."""


@dataclass
class Shift:
    engine: Engine
    blobs: BlobStore
    lock: AdvisoryLock
    grace: timedelta
    hold: timedelta
    dry_run: bool
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    refused: set[str] = field(default_factory=set)
    """Keys that the store would not delete."""

    def count(self, what: str, number: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    @property
    def over(self) -> bool:
        return time.monotonic() - self.started > SECONDS

    def remove(self, digests: Sequence[str]) -> list[str]:
        """Bytes, then rows, of blobs that are claimed (`deleting`); which. Killed in between, it is done again."""
        gone = []
        for digest in digests:
            self.lock.check()
            if self.delete(key_of(Digest(digest))):
                gone.append(digest)
        failpoints.reach("gc.deleted")
        with db.session(self.engine) as session:
            rows = delete(BlobRow).where(col(BlobRow.digest).in_(gone), col(BlobRow.state) == BlobState.DELETING)
            session.connection().execute(rows)
        return gone

    def delete(self, key: str) -> bool:
        """False where the store refuses. `Unavailable` where it refuses too often."""
        try:
            self.blobs.delete(key)
        except Unavailable:
            self.refused.add(key)
            self.count("keys_refused", 1)
            if len(self.refused) >= REFUSALS_LIMIT:
                raise
            return False
        return True
