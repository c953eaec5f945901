"""The sequencer: numbers events, adds them to the Merkle tree, stores its tiles and signs a checkpoint.

- One process at a time holds the lock. Numbers have no gap, and no number is given twice.
- Numbers and rows of tiles are committed first, then the tiles are stored, then a checkpoint is signed: what a
  checkpoint covers can be read. After a crash at any point the next run continues.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Engine, bindparam, update
from sqlmodel import Session, col, select

from registry import tlog
from registry.errors import Invalid
from registry.events import EventType
from registry.server import audit, failpoints
from registry.server.actors import OPERATOR, SYSTEM
from registry.server.audit import tree
from registry.server.audit.keys import NEXT_STEP, Keys
from registry.server.database import db, locks
from registry.server.database.models import AuditCheckpointRow, AuditTileRow, EventRow
from registry.server.storage.blobs import BlobStore
from registry.tlog import notes, tiles
from registry.tlog.notes import Checkpoint
from registry.tlog.tiles import TILE_WIDTH

BATCH_SIZE = 1024


def has_pending(session: Session) -> bool:
    """Whether an event has no number, a number no checkpoint, or a tile is not stored."""
    if session.exec(select(EventRow.seq).where(col(EventRow.position).is_(None)).limit(1)).first() is not None:
        return True
    if session.exec(select(AuditTileRow.width).where(col(AuditTileRow.stored_width) == 0).limit(1)).first() is not None:
        return True
    checkpoint = latest_checkpoint(session)
    return tree.read_size(session) != (checkpoint.size if checkpoint is not None else 0)


def latest_checkpoint(session: Session) -> AuditCheckpointRow | None:
    """Return the latest checkpoint."""
    statement = select(AuditCheckpointRow).order_by(col(AuditCheckpointRow.size).desc())
    return session.exec(statement.limit(1)).first()


def run_sequencer(engine: Engine, blobs: BlobStore, keys: Callable[[], Keys]) -> int:
    """Number and sign all pending events and return their number. `Unavailable` (TRY_LATER) if another process does.

    If nothing is pending, it only reads rows and does not ask for the keys.
    """
    with db.session(engine, write=False) as session:
        if not has_pending(session):
            return 0
    with locks.acquire(engine, "audit") as lock:
        _record_rotation(engine, keys(), lock)
        total = 0
        while count := _number_events(engine, lock):
            total += count
            lock.check()
            failpoints.reach("audit.numbered")
        _publish(engine, blobs, keys(), lock)
        return total


def _number_events(engine: Engine, lock: locks.ProcessLock) -> int:
    """Number the next events, in the order in which they are visible, and return how many."""
    with db.session(engine) as session:
        lock.guard(session)
        pending = select(EventRow).where(col(EventRow.position).is_(None)).order_by(col(EventRow.seq))
        rows = session.exec(pending.limit(BATCH_SIZE)).all()
        if not rows:
            return 0
        start = tree.read_size(session)
        numbered = [(row, position) for position, row in enumerate(rows, start + 1)]
        leaves = [tlog.leaf_hash(entry_of(row, position)) for row, position in numbered]
        statement = update(EventRow).where(col(EventRow.seq) == bindparam("row_seq"))
        values = [{"row_seq": row.seq, "number": position} for row, position in numbered]
        session.connection().execute(statement.values(position=bindparam("number")), values)
        tree.append_leaves(session, start, leaves)
        return len(rows)


def entry_of(row: EventRow, position: int) -> bytes:
    """Return the bytes that the log hashes for an event with this number."""
    return audit.to_view(row).model_copy(update={"seq": position}).entry()


def _publish(engine: Engine, blobs: BlobStore, keys: Keys, lock: locks.ProcessLock) -> None:
    with db.session(engine, write=False) as session:
        require_same_log(session, keys)
        size = tree.read_size(session)
        root = tlog.root(size, tree.TreeNodes(session))
        unstored = select(AuditTileRow).where(col(AuditTileRow.stored_width) < AuditTileRow.width)
        rows = session.exec(unstored.order_by(col(AuditTileRow.level), col(AuditTileRow.index))).all()
    for row in rows:
        lock.check()
        _store_tile(engine, blobs, row, lock)
    failpoints.reach("audit.stored")
    with db.session(engine) as session:
        lock.guard(session)
        _add_checkpoint(session, keys, size, root)


def _add_checkpoint(session: Session, keys: Keys, size: int, root: bytes) -> None:
    note = notes.sign_note(Checkpoint(keys.signer.name, size, root).text, keys.signer)
    db.insert_new(session, AuditCheckpointRow, {"size": size, "note": note, "at": db.now()})


def record_first_key(session: Session, keys: Keys) -> None:
    """Sign the empty log if nothing is signed yet. Of several servers that do it at once, one does."""
    if latest_checkpoint(session) is None:
        _add_checkpoint(session, keys, 0, tlog.EMPTY_ROOT)


def require_same_log(session: Session, keys: Keys) -> None:
    """Raise `Invalid` (SETTING_INVALID) if none of these keys signed the latest checkpoint or replaced one that did."""
    checkpoint = latest_checkpoint(session)
    if checkpoint is None or notes.open_note(checkpoint.note, *keys.verifiers) is not None:
        return
    if keys.signer.verifier.text not in {key for key, _ in read_replacements(session)}:
        raise Invalid(
            "SETTING_INVALID",
            "REGISTRY_AUDIT_KEY: none of its keys signed the latest checkpoint of this log",
            next_step=NEXT_STEP,
        )


def read_replacements(session: Session) -> list[tuple[str, EventRow]]:
    """The keys that were made after a loss, with their events, oldest first."""
    statement = select(EventRow).where(EventRow.action == EventType.AUDIT_KEY_REPLACE).order_by(col(EventRow.seq))
    return [(str(audit.to_view(row).detail["key"]), row) for row in session.exec(statement)]


def record_replacement(engine: Engine, key: str, reason: str) -> None:
    """Record in the log that this key replaces a lost one."""
    with db.session(engine) as session:
        detail = {"key": key, "reason": reason}
        audit.append(session, OPERATOR, EventType.AUDIT_KEY_REPLACE, "audit log", detail)


def _record_rotation(engine: Engine, keys: Keys, lock: locks.ProcessLock) -> None:
    """Append an event if the key has changed since the latest checkpoint was signed: once for each key."""
    key = keys.signer.verifier
    with db.session(engine, write=False) as session:
        checkpoint = latest_checkpoint(session)
        if checkpoint is None or notes.open_note(checkpoint.note, key) is not None:
            return
        require_same_log(session, keys)
        about = col(EventRow.action).in_([EventType.AUDIT_KEY_ROTATE, EventType.AUDIT_KEY_REPLACE])
        rows = session.exec(select(EventRow).where(about)).all()
        if key.text in {audit.to_view(row).detail["key"] for row in rows}:
            return
    with db.session(engine) as session:
        lock.guard(session)
        audit.append(session, SYSTEM, EventType.AUDIT_KEY_ROTATE, "audit log", {"key": key.text})


def _store_tile(engine: Engine, blobs: BlobStore, row: AuditTileRow, lock: locks.ProcessLock) -> None:
    """Store a tile, and its entries if it has level 0. A tile that is full replaces its partial ones."""
    tree.write_once(blobs, tiles.tile_path(row.level, row.index, row.width), row.hashes)
    if row.level == 0:
        with db.session(engine, write=False) as session:
            bundle = tiles.bundle(read_entries(session, row.index, row.width))
        tree.write_once(blobs, tiles.tile_path("entries", row.index, row.width), bundle)
    with db.session(engine) as session:
        lock.guard(session)
        statement = update(AuditTileRow).where(
            col(AuditTileRow.level) == row.level, col(AuditTileRow.index) == row.index
        )
        session.connection().execute(statement.values(stored_width=row.width))
    if row.width == TILE_WIDTH:
        levels: list[int | str] = [row.level, "entries"] if row.level == 0 else [row.level]
        for level in levels:
            for stat in list(blobs.list(f"{tree.PREFIX}{tiles.tile_path(level, row.index)}.p/")):
                blobs.delete(stat.key)


def read_entries(session: Session, index: int, width: int) -> Sequence[bytes]:
    """Build the entries of a tile of level 0 from the rows of the events."""
    first = index * TILE_WIDTH
    statement = select(EventRow).where(col(EventRow.position) > first, col(EventRow.position) <= first + width)
    return [audit.to_view(row).entry() for row in session.exec(statement.order_by(col(EventRow.position)))]
