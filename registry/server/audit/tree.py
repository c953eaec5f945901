"""The Merkle tree of the log: rows of tiles, which the sequencer extends, and their copies in the blob store.

- Only the last tile of each level grows, up to 256 hashes. The tiles of level 0 define the size of the log.
- The key of a copy is its C2SP path below `audit/` and the SHA-256 of its bytes. A path can hold several objects, for
  example after an older backup was restored: the one with the expected digest comes first.
- A copy is returned as it is stored, and the caller verifies it.
"""

from collections.abc import Iterable

from sqlalchemy import Engine, update
from sqlmodel import Session, col, select

from registry import tlog
from registry.api.audit import Consistency
from registry.digest import Digest
from registry.errors import Corrupt, Invalid
from registry.server.database import db
from registry.server.database.models import AuditTileRow
from registry.server.storage.blobs import BlobStore, write_blob
from registry.tlog import HASH_BYTES, tiles
from registry.tlog.tiles import TILE_HEIGHT, TILE_WIDTH

PREFIX = "audit/"


def read_size(session: Session) -> int:
    """Return how many events are numbered and hashed."""
    statement = select(AuditTileRow.index, AuditTileRow.width).where(AuditTileRow.level == 0)
    row = session.exec(statement.order_by(col(AuditTileRow.index).desc()).limit(1)).first()
    return row[0] * TILE_WIDTH + row[1] if row is not None else 0


def append_leaves(session: Session, start: int, leaves: Iterable[bytes]) -> None:
    """Append leaf hashes to a log of size `start`, and the hashes of higher levels that become complete."""
    level, index = 0, start
    while hashes := list(leaves):
        parents: list[bytes] = []
        appended = 0
        while appended < len(hashes):
            tile, width = divmod(index, TILE_WIDTH)
            row = session.get(AuditTileRow, (level, tile)) if width else None
            if row is None:
                row = AuditTileRow(level=level, index=tile, width=0, hashes=b"")
            if row.width != width:
                raise Corrupt(
                    "DIGEST_MISMATCH", f"tile {level}/{tile} of the audit log has {row.width} hashes, not {width}"
                )
            added = hashes[appended : appended + TILE_WIDTH - width]
            row.hashes, row.width = row.hashes + b"".join(added), width + len(added)
            session.add(row)
            if row.width == TILE_WIDTH:
                parents.append(tiles.hash_in(row.hashes, TILE_HEIGHT, 0))
            appended, index = appended + len(added), index + len(added)
        leaves, level, index = parents, level + 1, (index - len(hashes)) // TILE_WIDTH
    session.flush()


class TreeNodes:
    """Reads hashes of complete subtrees from the tiles, each tile once. `Corrupt` if one is missing or short."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tiles: dict[tuple[int, int], bytes] = {}

    def __call__(self, level: int, index: int) -> bytes:
        tile_level, height = divmod(level, TILE_HEIGHT)
        start = index << height
        tile = (tile_level, start // TILE_WIDTH)
        if tile not in self._tiles:
            row = self._session.get(AuditTileRow, tile)
            self._tiles[tile] = row.hashes if row is not None else b""
        try:
            return tiles.hash_in(self._tiles[tile], height, (start % TILE_WIDTH) >> height)
        except ValueError as e:
            raise Corrupt("DIGEST_MISMATCH", f"tile {tile[0]}/{tile[1]} of the audit log is missing or short") from e


def prove_consistency(session: Session, old: int, new: int) -> Consistency:
    """Return the proof between two sizes. `Invalid` (REQUEST_INVALID) for sizes that the log does not have."""
    size = read_size(session)
    if not 0 <= old <= new <= size:
        raise Invalid("REQUEST_INVALID", f"the log has {size} entries: there is no proof from {old} to {new}")
    hashes = tlog.consistency(old, new, TreeNodes(session))
    return Consistency(old=old, new=new, hashes=[node.hex() for node in hashes])


def read_tile(session: Session, level: int, index: int, width: int) -> bytes | None:
    """Return the bytes of a tile, or None if the log is shorter."""
    row = session.get(AuditTileRow, (level, index))
    if row is None or row.width < width:
        return None
    return row.hashes[: width * HASH_BYTES]


def write_once(blobs: BlobStore, path: str, data: bytes) -> None:
    """Store bytes below their path and digest, unless they are stored already."""
    key = f"{PREFIX}{path}/{Digest.of(data).hex}"
    if blobs.stat(key) is None:
        write_blob(blobs, key, [data], limit_bytes=len(data))


def read_stored_tile(blobs: BlobStore, level: int, index: int, width: int, *, expected: bytes) -> bytes:
    """Read the stored bytes of a tile. `Corrupt` (DIGEST_MISMATCH) if it is missing."""
    data = _read_stored(blobs, tiles.tile_path(level, index, width), expected)
    return data if data is not None else _read_wider(blobs, level, index, width)[: width * HASH_BYTES]


def read_stored_entries(blobs: BlobStore, index: int, width: int, *, expected: bytes) -> bytes:
    """Read the stored bundle of entries of a tile. `Corrupt` (DIGEST_MISMATCH) if it is missing."""
    data = _read_stored(blobs, tiles.tile_path("entries", index, width), expected)
    if data is not None:
        return data
    return tiles.bundle(list(tiles.entries_of(_read_wider(blobs, "entries", index, width)))[:width])


def find_lost_copies(engine: Engine, blobs: BlobStore) -> dict[str, tuple[int, int]]:
    """Path → (level, index) of tiles that were stored and are missing, at two looks: one may become full in between."""
    missing = _find_missing(engine, blobs)
    return {path: tile for path, tile in _find_missing(engine, blobs).items() if path in missing} if missing else {}


def rewrite_lost_copies(engine: Engine, blobs: BlobStore, *, dry_run: bool) -> int:
    """Mark lost tiles so that the sequencer stores them again, and return how many there are."""
    missing = set(find_lost_copies(engine, blobs).values())
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


def _read_wider(blobs: BlobStore, level: int | str, index: int, width: int) -> bytes:
    """Read the widest copy, which begins with this tile: one is stored for each checkpoint, not for each size."""
    prefix = f"{PREFIX}{tiles.tile_path(level, index)}.p/"
    partial = {int(stat.key[len(prefix) :].partition("/")[0]) for stat in blobs.list(prefix)}
    for stored_width in (max(partial, default=0), TILE_WIDTH):  # partial ones are deleted once the full one is there
        data = _read_stored(blobs, tiles.tile_path(level, index, stored_width), b"") if stored_width > width else None
        if data is not None:
            return data
    path = tiles.tile_path(level, index, width)
    raise Corrupt("DIGEST_MISMATCH", f"the store has no {path} of the audit log")


def _read_stored(blobs: BlobStore, path: str, expected: bytes) -> bytes | None:
    prefix = f"{PREFIX}{path}/"
    stats = [stat for stat in blobs.list(prefix) if "/" not in stat.key[len(prefix) :]]
    digest = Digest.of(expected).hex
    newest = max(stats, key=lambda stat: (stat.key.endswith(digest), stat.modified_at), default=None)
    return blobs.read(newest.key, 0, newest.size_bytes) if newest else None
