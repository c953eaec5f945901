"""The log's tiles as the store has them, for whoever compares them with the database's.

Invariants
- What is read is given back as it is, right or wrong: judging is the reader's.
- The key of the bytes that are expected comes first; what else lies under the same path (from before a restore of an
  older backup, say) counts only where that one is missing.
- A partial tile that is full by now is the beginning of the full one.

Example
    >>> stored.tile(blobs, 0, 3, 17, expected=data)
    b'…'
"""

from __future__ import annotations

from registry.digest import Digest
from registry.errors import Corrupt
from registry.server.audit.sequencer import PREFIX
from registry.server.blobs import BlobStore
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
