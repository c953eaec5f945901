"""Claim and delete the bytes of blobs that nothing refers to: for garbage collection, and of pushes that were refused.

- Before a row changes, references are checked again under its lock (`needs`, `references`).
- `deleting` is final, and only the process that holds the lock `LOCK` deletes bytes. First the bytes go, then the row.
"""

import contextlib
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, update
from sqlmodel import col, select

from registry.digest import Digest
from registry.errors import Unavailable
from registry.server import failpoints
from registry.server.database import db, locks
from registry.server.database.expressions import any_of
from registry.server.database.locks import ProcessLock
from registry.server.database.models import BlobRow
from registry.server.storage import needs
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.states import BlobState

LOCK = "gc"


def update_unneeded(
    engine: Engine, digests: Sequence[str], condition: ColumnElement[bool], values: dict[str, Any]
) -> Sequence[str]:
    """Lock these rows and update those that are still unreferenced; return their digests.

    Two statements on purpose: one that has waited for a lock still sees *other* tables as they were before.
    """
    with db.session(engine) as session:
        rows = (
            select(BlobRow.digest).where(any_of(col(BlobRow.digest), digests), condition).order_by(col(BlobRow.digest))
        )
        locked = session.exec(rows.with_for_update(skip_locked=True)).all()
        unneeded = update(BlobRow).where(any_of(col(BlobRow.digest), locked), condition, needs.is_unneeded())
        statement = unneeded.values(**values).execution_options(synchronize_session=False)
        return session.connection().execute(statement.returning(col(BlobRow.digest))).scalars().all()


def delete_rows(engine: Engine, lock: ProcessLock, digests: Collection[str]) -> None:
    """Delete the rows of blobs in the state `deleting` whose bytes are deleted."""
    failpoints.reach("gc.deleted")
    with db.session(engine) as session:
        lock.guard(session)
        rows = delete(BlobRow).where(any_of(col(BlobRow.digest), digests), col(BlobRow.state) == BlobState.DELETING)
        session.connection().execute(rows)


def delete_unneeded(engine: Engine, blobs: BlobStore, digests: Collection[Digest]) -> None:
    """Delete those of these blobs that no version ever had and nothing refers to, at once: no quota counts them.

    What fails, or waits because garbage is being collected, that deletes.
    """
    if not digests:
        return
    with contextlib.suppress(Unavailable), locks.acquire(engine, LOCK) as lock:
        is_new = col(BlobRow.state) == BlobState.PENDING
        claimed = update_unneeded(engine, sorted(digests), is_new, {"state": BlobState.DELETING})
        for digest in claimed:
            lock.check()
            blobs.delete(key_of(Digest(digest)))
        delete_rows(engine, lock, claimed)
