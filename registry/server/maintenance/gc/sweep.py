"""The part of garbage collection that begins with keys: staging of pushes that ended, uploads nobody ends, strays.

Invariants
- A staging key goes when its push is not open. Its row was there before the key, so "no row" means "ended", at once.
- A final key without a row (there should be none) is claimed by a row `deleting` first, so that a push of the same
  blob waits. It is kept while it is younger than the grace, and while records tell of versions that no row knows:
  then the database is older than the bucket, and `adapter reindex` comes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import islice

from sqlmodel import col, select

from registry.errors import Invalid
from registry.server.database import db
from registry.server.database.models import BlobRow, PushRow
from registry.server.maintenance.gc.run import BATCH, Shift
from registry.server.maintenance.recovery import rebuild
from registry.server.storage.blobs import Stat, digest_of
from registry.server.storage.references import BlobState, PushState

STAGING = "staging"
FIRST_SHARD = "blobs:00"


def go_on(shift: Shift, cursor: str) -> str:
    """Work from this cursor on until the shift is over; the next cursor, empty at the end."""
    while cursor and not shift.over:
        cursor = _staging(shift) if cursor == STAGING else _shard(shift, cursor)
    return cursor


def _staging(shift: Shift) -> str:
    for stats in _batches(shift.blobs.list("staging/")):
        of_push = {stat.key: stat.key.split("/")[1] for stat in stats}
        with db.session(shift.engine, write=False) as session:
            held = select(PushRow.id).where(
                col(PushRow.id).in_(set(of_push.values())), col(PushRow.state) == PushState.OPEN
            )
            still_open = set(session.exec(held).all())
        for key, push_id in of_push.items():
            if push_id not in still_open and (shift.dry_run or shift.delete(key)):
                shift.count("staged_deleted", 1)
    if not shift.dry_run:
        shift.count("uploads_aborted", shift.blobs.delete_unfinished(shift.hold + shift.grace + timedelta(days=1)))
    return FIRST_SHARD


def _shard(shift: Shift, cursor: str) -> str:
    kind, _, prefix = cursor.partition(":")
    if kind != "blobs" or len(prefix) != 2 or set(prefix) - set("0123456789abcdef"):
        raise Invalid("REQUEST_INVALID", "cursor: not one that this server gave")
    for stats in _batches(shift.blobs.list(f"blobs/sha256/{prefix}/")):
        digests = [str(digest_of(stat.key)) for stat in stats]
        with db.session(shift.engine, write=False) as session:
            known = set(session.exec(select(BlobRow.digest).where(col(BlobRow.digest).in_(digests))).all())
        strays = [stat for stat in stats if str(digest_of(stat.key)) not in known]
        if strays:
            _strays(shift, strays)
    return f"blobs:{int(prefix, 16) + 1:02x}" if prefix != "ff" else ""


def _strays(shift: Shift, strays: list[Stat]) -> None:
    limit = db.now() - shift.grace
    old = [stat for stat in strays if stat.modified_at <= limit]
    if old and rebuild.is_needed(shift.engine, shift.blobs):
        old = []
    shift.count("strays_kept", len(strays) - len(old))
    if shift.dry_run:
        shift.count("strays_deleted", len(old))
        return
    claimed: list[str] = []
    with db.session(shift.engine) as session:
        for stat in old:
            digest = str(digest_of(stat.key))
            values = {"digest": digest, "size_bytes": stat.size_bytes, "state": BlobState.DELETING}
            if db.insert_new(session, BlobRow, {**values, "created_at": db.now()}):
                claimed.append(digest)
    shift.count("strays_deleted", len(shift.remove(claimed)))


def _batches(stats: Iterable[Stat]) -> Iterator[list[Stat]]:
    rest = iter(stats)
    while batch := list(islice(rest, BATCH)):
        yield batch
