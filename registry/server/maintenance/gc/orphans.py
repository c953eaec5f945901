"""The part of garbage collection that begins with keys: staging keys of ended pushes, uploads, blobs without a row.

- A staging key is deleted if its push is not open. The push's row is created before the key, so "no row" means "ended".
- A final key without a row (there should be none) is claimed by a row `deleting` first, so that a push of the same blob
  waits. It is kept while it is younger than the grace period, and while there are records of versions that the database
  does not have: then the database is older than the bucket, and `adapter reindex` comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

from sqlmodel import col, select

from registry.errors import invalid_cursor
from registry.server.database import db
from registry.server.database.models import BlobRow, PushRow
from registry.server.maintenance.gc.run import BATCH, GcRun
from registry.server.maintenance.recovery import reindex
from registry.server.storage.blobs import Stat, digest_of
from registry.server.storage.references import BlobState, PushState

STAGING = "staging"
FIRST_SHARD = "blobs:00"


def delete_orphans(run: GcRun, cursor: str) -> str:
    """Delete orphans from this cursor on until the run is over; return the next cursor, empty at the end."""
    while cursor and not run.is_over:
        cursor = _delete_staged(run) if cursor == STAGING else _delete_strays_of_shard(run, cursor)
    return cursor


def _delete_staged(run: GcRun) -> str:
    for stats in _batches(run.blobs.list("staging/")):
        push_ids = {stat.key: stat.key.split("/")[1] for stat in stats}
        with db.session(run.engine, write=False) as session:
            rows = select(PushRow.id).where(col(PushRow.id).in_(set(push_ids.values())))
            open_ids = set(session.exec(rows.where(col(PushRow.state) == PushState.OPEN)).all())
        for key, push_id in push_ids.items():
            if push_id not in open_ids and (run.dry_run or run.delete_key(key)):
                run.count("staged_deleted", 1)
    if not run.dry_run:
        age = run.hold + run.grace + timedelta(days=1)
        run.count("uploads_aborted", run.blobs.delete_unfinished(age))
    return FIRST_SHARD


def _delete_strays_of_shard(run: GcRun, cursor: str) -> str:
    kind, _, prefix = cursor.partition(":")
    if kind != "blobs" or len(prefix) != 2 or set(prefix) - set("0123456789abcdef"):
        raise invalid_cursor()
    for stats in _batches(run.blobs.list(f"blobs/sha256/{prefix}/")):
        digests = [str(digest_of(stat.key)) for stat in stats]
        with db.session(run.engine, write=False) as session:
            known = set(session.exec(select(BlobRow.digest).where(col(BlobRow.digest).in_(digests))).all())
        strays = [stat for stat in stats if str(digest_of(stat.key)) not in known]
        if strays:
            _delete_strays(run, strays)
    return f"blobs:{int(prefix, 16) + 1:02x}" if prefix != "ff" else ""


def _delete_strays(run: GcRun, strays: list[Stat]) -> None:
    limit = db.now() - run.grace
    old = [stat for stat in strays if stat.modified_at <= limit]
    if old and reindex.is_needed(run.engine, run.blobs):
        old = []
    run.count("strays_kept", len(strays) - len(old))
    if run.dry_run:
        run.count("strays_deleted", len(old))
        return
    claimed: list[str] = []
    with db.session(run.engine) as session:
        for stat in old:
            digest = str(digest_of(stat.key))
            values = {"digest": digest, "size_bytes": stat.size_bytes, "state": BlobState.DELETING}
            if db.insert_new(session, BlobRow, {**values, "created_at": db.now()}):
                claimed.append(digest)
    run.count("strays_deleted", len(run.delete_blobs(claimed)))


def _batches(stats: Iterable[Stat]) -> Iterator[list[Stat]]:
    iterator = iter(stats)
    while batch := list(islice(iterator, BATCH)):
        yield batch
