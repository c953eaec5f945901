"""The sequencer: gives events their numbers, hashes them into the tree, stores tiles and signs a checkpoint.

Invariants
- One process at a time has the turn; numbers have no gap, and no number is given twice.
- First the numbers and the tiles' rows are durable, then the tiles are in the store, then a checkpoint over them is
  signed: what a checkpoint promises can be looked up. Everything may stop anywhere and is gone on with by the next one.
- A log that was begun with one key is not gone on with by another (keys.py): that would be a second log.
- The key of a tile in the store is its C2SP path under `audit/` and the SHA-256 of its bytes.

Example
    >>> sequencer.run(engine, blobs, lambda: keys.load(settings))
    3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Engine, bindparam, update
from sqlmodel import Session, col, select

from registry import tlog
from registry.digest import Digest
from registry.errors import Invalid
from registry.server import audit, failpoints
from registry.server.audit import tree
from registry.server.audit.keys import Keys
from registry.server.database import db, locks
from registry.server.database.models import AuditCheckpointRow, AuditTileRow, EventRow
from registry.server.storage.blobs import BlobStore
from registry.tlog import notes, tiles
from registry.tlog.notes import Checkpoint
from registry.tlog.tiles import TILE_WIDTH

BATCH = 1024
PREFIX = "audit/"


def pending(session: Session) -> bool:
    """Whether some event has no number yet, some number no checkpoint, or some tile nothing in the store."""
    if session.exec(select(EventRow.seq).where(col(EventRow.position).is_(None)).limit(1)).first() is not None:
        return True
    if session.exec(select(AuditTileRow.width).where(col(AuditTileRow.stored_width) == 0).limit(1)).first() is not None:
        return True
    newest = latest(session)
    return tree.size(session) != (newest.size if newest is not None else 0)


def latest(session: Session) -> AuditCheckpointRow | None:
    """The newest checkpoint."""
    statement = select(AuditCheckpointRow).order_by(col(AuditCheckpointRow.size).desc())
    return session.exec(statement.limit(1)).first()


def run(engine: Engine, blobs: BlobStore, keys: Callable[[], Keys]) -> int:
    """Number and sign all that waits; how many events that were. `Unavailable` (TRY_LATER) while another process does.

    Nothing is read but rows, and no key is asked for, when nothing waits.
    """
    with db.session(engine, write=False) as session:
        if not pending(session):
            return 0
    with locks.acquire(engine, "audit") as mine:
        count = 0
        while found := _number(engine):
            count += found
            mine.check()
            failpoints.reach("audit.numbered")
        _publish(engine, blobs, keys(), mine)
        return count


def _number(engine: Engine) -> int:
    """Give the next numbers, in the order in which events are seen; how many."""
    with db.session(engine) as session:
        waiting = select(EventRow).where(col(EventRow.position).is_(None)).order_by(col(EventRow.seq)).limit(BATCH)
        rows = session.exec(waiting).all()
        if not rows:
            return 0
        start = tree.size(session)
        numbered = [(row, start + at) for at, row in enumerate(rows, 1)]
        leaves = [tlog.leaf_hash(entry(row, position)) for row, position in numbered]
        given = update(EventRow).where(col(EventRow.seq) == bindparam("of")).values(position=bindparam("given"))
        session.connection().execute(given, [{"of": row.seq, "given": position} for row, position in numbered])
        tree.extend(session, start, leaves)
        return len(rows)


def entry(row: EventRow, position: int) -> bytes:
    """What the log hashes of an event that has this number."""
    return audit.view(row).model_copy(update={"seq": position}).entry()


# ------------------------------------------------------------------ publishing
def _publish(engine: Engine, blobs: BlobStore, keys: Keys, mine: locks.AdvisoryLock) -> None:
    with db.session(engine, write=False) as session:
        newest = latest(session)
        same_log(newest, keys)
        size = tree.size(session)
        root = tlog.root(size, tree.Nodes(session))
        unstored = select(AuditTileRow).where(col(AuditTileRow.stored_width) < AuditTileRow.width)
        rows = session.exec(unstored.order_by(col(AuditTileRow.level), col(AuditTileRow.index))).all()
    for row in rows:
        mine.check()
        _store(engine, blobs, row)
    failpoints.reach("audit.stored")
    note = notes.sign_note(Checkpoint(keys.signer.name, size, root).text, keys.signer)
    with db.session(engine) as session:
        db.insert_new(session, AuditCheckpointRow, {"size": size, "note": note, "at": db.now()})


def same_log(newest: AuditCheckpointRow | None, keys: Keys) -> None:
    """`Invalid` (SETTING_INVALID) when the newest checkpoint was signed by none of these keys."""
    if newest is not None and notes.open_note(newest.note, *keys.verifiers) is None:
        raise Invalid(
            "SETTING_INVALID",
            "REGISTRY_AUDIT_KEY: none of its keys signed this log's newest checkpoint",
            next_step="give every server of this registry the key file that it was started with",
        )


def _store(engine: Engine, blobs: BlobStore, row: AuditTileRow) -> None:
    """Write a tile, and of level 0 the entries too; what it was before it became full goes."""
    put(blobs, tiles.tile_path(row.level, row.index, row.width), row.hashes)
    if row.level == 0:
        with db.session(engine, write=False) as session:
            packed = tiles.bundle(entries(session, row.index, row.width))
        put(blobs, tiles.tile_path("entries", row.index, row.width), packed)
    with db.session(engine) as session:
        stored = update(AuditTileRow).where(col(AuditTileRow.level) == row.level, col(AuditTileRow.index) == row.index)
        session.connection().execute(stored.values(stored_width=row.width))
    if row.width == TILE_WIDTH:
        levels: list[int | str] = [row.level, "entries"] if row.level == 0 else [row.level]
        for level in levels:
            for stat in list(blobs.list(f"{PREFIX}{tiles.tile_path(level, row.index)}.p/")):
                blobs.delete(stat.key)


def put(blobs: BlobStore, path: str, data: bytes) -> None:
    key = f"{PREFIX}{path}/{Digest.of(data).hex}"
    if blobs.stat(key) is None:
        blobs.put(key, [data], limit_bytes=len(data))


def entries(session: Session, index: int, width: int) -> Sequence[bytes]:
    """The entries of a level-0 tile, made from the rows of the events."""
    first = index * TILE_WIDTH
    within = select(EventRow).where(col(EventRow.position) > first, col(EventRow.position) <= first + width)
    return [audit.view(row).entry() for row in session.exec(within.order_by(col(EventRow.position)))]
