"""The log's tiles in the blob store: read them to compare them with the database, find lost ones, write them again.

- A tile is returned as it is stored. The caller verifies it.
- A path can hold several objects, for example after an older backup was restored. The one with the expected digest
  comes first; others count only if that one is missing.
- A partial tile that has become full is read as the beginning of the full tile.
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


def read_tile(blobs: BlobStore, level: int, index: int, width: int, *, expected: bytes) -> bytes:
    """Read the stored bytes of a tile. `Corrupt` (DIGEST_MISMATCH) if it is missing."""
    data = _read(blobs, tiles.tile_path(level, index, width), expected)
    return data if data is not None else _read_full(blobs, level, index)[: width * HASH_BYTES]


def read_entries(blobs: BlobStore, index: int, width: int, *, expected: bytes) -> bytes:
    """Read the stored bundle of entries of a tile. `Corrupt` (DIGEST_MISMATCH) if it is missing."""
    data = _read(blobs, tiles.tile_path("entries", index, width), expected)
    if data is not None:
        return data
    return tiles.bundle(list(tiles.entries_of(_read_full(blobs, "entries", index)))[:width])


def find_lost(engine: Engine, blobs: BlobStore) -> dict[str, tuple[int, int]]:
    """Return path → (level, index) of each tile that was stored and is missing.

    Looks twice, because a tile may become full in between.
    """
    missing = _find_missing(engine, blobs)
    return {path: tile for path, tile in _find_missing(engine, blobs).items() if path in missing} if missing else {}


def rewrite_lost(engine: Engine, blobs: BlobStore, *, dry_run: bool) -> int:
    """Mark lost tiles so that the sequencer stores them again, and return how many there are."""
    missing = set(find_lost(engine, blobs).values())
    if missing and not dry_run:
        with db.session(engine) as session:
            for level, index in sorted(missing):
                tile = update(AuditTileRow).where(col(AuditTileRow.level) == level, col(AuditTileRow.index) == index)
                session.connection().execute(tile.values(stored_width=0))
    return len(missing)


def _find_missing(engine: Engine, blobs: BlobStore) -> dict[str, tuple[int, int]]:
    # The rows are read before the store is listed: what was stored by then stays or becomes full.
    with db.session(engine, write=False) as session:
        stored = select(AuditTileRow.level, AuditTileRow.index, AuditTileRow.stored_width)
        rows = session.exec(stored.where(col(AuditTileRow.stored_width) > 0)).all()
    paths = {stat.key[len(PREFIX) :].rpartition("/")[0] for stat in blobs.list(f"{PREFIX}tile/")}
    missing = {}
    for level, index, width in rows:
        for kind in (level, "entries") if level == 0 else (level,):
            path = tiles.tile_path(kind, index, width)
            if path not in paths and tiles.tile_path(kind, index) not in paths:
                missing[path] = (level, index)
    return missing


def _read_full(blobs: BlobStore, level: int | str, index: int) -> bytes:
    path = tiles.tile_path(level, index, TILE_WIDTH)
    data = _read(blobs, path, b"")
    if data is None:
        raise Corrupt("DIGEST_MISMATCH", f"the store has no {path} of the audit log")
    return data


def _read(blobs: BlobStore, path: str, expected: bytes) -> bytes | None:
    prefix = f"{PREFIX}{path}/"
    stats = [stat for stat in blobs.list(prefix) if "/" not in stat.key[len(prefix) :]]
    digest = Digest.of(expected).hex
    newest = max(stats, key=lambda stat: (stat.key.endswith(digest), stat.modified_at), default=None)
    return blobs.read(newest.key, 0, newest.size_bytes) if newest else None
