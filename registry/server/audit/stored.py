"""The log's tiles as the store has them, for whoever compares them with the database's.

Invariants
- What is read is given back as it is, right or wrong: judging is the reader's.
- A partial tile that is full by now is the beginning of the full one.

Example
    >>> stored.tile(blobs, 0, 3, 17)
    b'…'
"""

from __future__ import annotations

from registry.errors import Corrupt
from registry.server.audit.sequencer import PREFIX
from registry.server.blobs import BlobStore
from registry.tlog import HASH_BYTES, tiles
from registry.tlog.tiles import TILE_WIDTH


def tile(blobs: BlobStore, level: int, index: int, width: int) -> bytes:
    """The stored bytes of a tile. `Corrupt` (DIGEST_MISMATCH) where there is none, or more than one."""
    data = _read(blobs, tiles.tile_path(level, index, width))
    return data if data is not None else _full(blobs, level, index)[: width * HASH_BYTES]


def entries(blobs: BlobStore, index: int, width: int) -> bytes:
    """The stored bundle of entries. `Corrupt` (DIGEST_MISMATCH) where there is none, or more than one."""
    data = _read(blobs, tiles.tile_path("entries", index, width))
    if data is not None:
        return data
    return tiles.bundle(list(tiles.entries_of(_full(blobs, "entries", index)))[:width])


def _full(blobs: BlobStore, level: int | str, index: int) -> bytes:
    path = tiles.tile_path(level, index, TILE_WIDTH)
    data = _read(blobs, path)
    if data is None:
        raise Corrupt("DIGEST_MISMATCH", f"the store has no {path} of the audit log")
    return data


def _read(blobs: BlobStore, path: str) -> bytes | None:
    found = [stat for stat in blobs.list(f"{PREFIX}{path}/") if "/" not in stat.key[len(PREFIX) + len(path) + 1 :]]
    if len(found) > 1:
        raise Corrupt("DIGEST_MISMATCH", f"the store has {len(found)} different {path} of the audit log")
    return blobs.read(found[0].key, 0, found[0].size_bytes) if found else None
