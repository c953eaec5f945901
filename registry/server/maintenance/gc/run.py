"""`GcRun`: the state of one request of garbage collection."""

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
FAILURES_LIMIT = 20
"""Keys that the store may fail to delete before the request fails."""
SECONDS = 10.0
"""How long one request works before it returns a cursor."""


@dataclass
class GcRun:
    """What one request works with, what it has counted, and when its time is over."""

    engine: Engine
    blobs: BlobStore
    lock: AdvisoryLock
    grace: timedelta
    hold: timedelta
    dry_run: bool
    counts: dict[str, int] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    failed_keys: set[str] = field(default_factory=set)
    """Keys that the store could not delete. The next run tries them again."""

    def count(self, name: str, number: int) -> None:
        """Add to a count of the report."""
        self.counts[name] = self.counts.get(name, 0) + number

    @property
    def is_over(self) -> bool:
        """Whether this request should return its cursor."""
        return time.monotonic() - self.started > SECONDS

    def delete_blobs(self, digests: Sequence[str]) -> list[str]:
        """Delete the bytes, then the rows, of blobs in the state `deleting`; return their digests.

        Repeated if the process dies in between.
        """
        deleted = []
        for digest in digests:
            self.lock.check()
            if self.delete_key(key_of(Digest(digest))):
                deleted.append(digest)
        failpoints.reach("gc.deleted")
        with db.session(self.engine) as session:
            rows = delete(BlobRow).where(col(BlobRow.digest).in_(deleted), col(BlobRow.state) == BlobState.DELETING)
            session.connection().execute(rows)
        return deleted

    def delete_key(self, key: str) -> bool:
        """Delete a key; False if the store fails. `Unavailable` if it fails too often."""
        try:
            self.blobs.delete(key)
        except Unavailable:
            self.failed_keys.add(key)
            self.count("keys_refused", 1)
            if len(self.failed_keys) >= FAILURES_LIMIT:
                raise
            return False
        return True
