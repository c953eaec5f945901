"""The log's tiles as the store has them, for whoever compares them with the database's; and those that it has lost.

Invariants
- What is read is given back as it is, right or wrong: judging is the reader's.
- The key of the bytes that are expected comes first; what else lies under the same path (from before a restore of an
  older backup, say) counts only where that one is missing.
- A partial tile that is full by now is the beginning of the full one.
- A tile that is lost is written again from its row, by the way of a new one: nothing of it counts as stored.

Example
    >>> stored.tile(blobs, 0, 3, 17, expected=data)
    b'…'
"""

from __future__ import annotations

from sqlalchemy import Engine, update
from sqlmodel import col, select

from registry.digest import Digest
from registry.errors import Corrupt
from registry.server.audit.sequencer import PREFIX
from registry.server.database import db
from registry.server.database.models import AuditTileRow
from registry.server.storage.blobs import BlobStore
from registry.tlog import HASH_BYTES, tiles
from registry.tlog.tiles import TILE_WIDTH


def tile(blobs: BlobStore, level: int, index: int, width: int, *, expected: bytes) -> bytes:
    """The stored bytes of a tile. `Corrupt` (DIGEST_MISMATCH) where there is none."""
    data = _read(blobs, tiles.tile_path(level, index, width), expected)
    return data if data is not None else _full(blobs, level, index)[: width * HASH_BYTES]


def entries(blobs: BlobStore, index: int, width: int, *, expected: bytes) -> bytes:
    """The stored bundle of entries. `Corrupt` (DIGEST_MISMATCH) where there is none."""
    data = _read(blobs, tiles.tile_path("entries", index, width), expected)
    if data is not None:
        return data
    return tiles.bundle(list(tiles.entries_of(_full(blobs, "entries", index)))[:width])


def lost(engine: Engine, blobs: BlobStore) -> dict[str, tuple[int, int]]:
    """Path → level and index of each tile that was stored and is not there; looked for twice, as one may have grown."""
    missing = _absent(engine, blobs)
    return {path: tile for path, tile in _absent(engine, blobs).items() if path in missing} if missing else {}


def again(engine: Engine, blobs: BlobStore, *, dry_run: bool) -> int:
    """Have the sequencer write what is lost; how many tiles."""
    missing = set(lost(engine, blobs).values())
    if missing and not dry_run:
        with db.session(engine) as session:
            for level, index in sorted(missing):
                mine = update(AuditTileRow).where(col(AuditTileRow.level) == level, col(AuditTileRow.index) == index)
                session.connection().execute(mine.values(stored_width=0))
    return len(missing)


def _absent(engine: Engine, blobs: BlobStore) -> dict[str, tuple[int, int]]:
    with db.session(engine, write=False) as session:  # before the store is listed: what was stored then stays, or grows
        wanted = select(AuditTileRow.level, AuditTileRow.index, AuditTileRow.stored_width)
        rows = session.exec(wanted.where(col(AuditTileRow.stored_width) > 0)).all()
    there = {stat.key[len(PREFIX) :].rpartition("/")[0] for stat in blobs.list(f"{PREFIX}tile/")}
    found = {}
    for level, index, width in rows:
        for kind in (level, "entries") if level == 0 else (level,):
            path = tiles.tile_path(kind, index, width)
            if path not in there and tiles.tile_path(kind, index) not in there:
                found[path] = (level, index)
    return found


def _full(blobs: BlobStore, level: int | str, index: int) -> bytes:
    path = tiles.tile_path(level, index, TILE_WIDTH)
    data = _read(blobs, path, b"")
    if data is None:
        raise Corrupt("DIGEST_MISMATCH", f"the store has no {path} of the audit log")
    return data


def _read(blobs: BlobStore, path: str, expected: bytes) -> bytes | None:
    found = [stat for stat in blobs.list(f"{PREFIX}{path}/") if "/" not in stat.key[len(PREFIX) + len(path) + 1 :]]
    wanted = Digest.of(expected).hex
    newest = sorted(found, key=lambda stat: (stat.key.endswith(wanted), stat.modified_at))[-1:]
    return blobs.read(newest[0].key, 0, newest[0].size_bytes) if newest else None
