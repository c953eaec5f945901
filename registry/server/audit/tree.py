"""The log's tree in the database: its tiles as rows, extended by the sequencer, read for roots and proofs.

Invariants
- A tile row only grows, up to 256 hashes; the row at the right edge of a level is the only one that does.
- The size of the log is what the level-0 tiles hold.

Example
    >>> tlog.root(tree.size(session), tree.Nodes(session))
    b'…'
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from registry import tlog
from registry.api.checkpoints import Consistency
from registry.errors import Corrupt, Invalid
from registry.server.database.models import AuditTileRow
from registry.tlog import HASH_BYTES, tiles
from registry.tlog.tiles import TILE_HEIGHT, TILE_WIDTH


def size(session: Session) -> int:
    """How many events the log has numbered and hashed."""
    last = select(AuditTileRow.index, AuditTileRow.width).where(AuditTileRow.level == 0)
    row = session.exec(last.order_by(col(AuditTileRow.index).desc()).limit(1)).first()
    return row[0] * TILE_WIDTH + row[1] if row is not None else 0


def extend(session: Session, start: int, leaves: Iterable[bytes]) -> None:
    """Add leaf hashes after the first `start` ones, and the hashes above them that became complete."""
    level, index = 0, start
    while held := list(leaves):
        above: list[bytes] = []
        at = 0
        while at < len(held):
            tile, used = divmod(index, TILE_WIDTH)
            row = session.get(AuditTileRow, (level, tile)) if used else None
            if row is None:
                row = AuditTileRow(level=level, index=tile, width=0, hashes=b"")
            if row.width != used:
                raise Corrupt(
                    "DIGEST_MISMATCH", f"tile {level}/{tile} of the audit log has {row.width} hashes, not {used}"
                )
            taken = held[at : at + TILE_WIDTH - used]
            row.hashes, row.width = row.hashes + b"".join(taken), used + len(taken)
            session.add(row)
            if row.width == TILE_WIDTH:
                above.append(tiles.hash_in(row.hashes, TILE_HEIGHT, 0))
            at, index = at + len(taken), index + len(taken)
        leaves, level, index = above, level + 1, (index - len(held)) // TILE_WIDTH
    session.flush()


class Nodes:
    """Hashes of complete subtrees, from the tiles; each read once. `Corrupt` where a tile is missing or short."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._tiles: dict[tuple[int, int], bytes] = {}

    def __call__(self, level: int, index: int) -> bytes:
        tile_level, within = divmod(level, TILE_HEIGHT)
        start = index << within
        tile = (tile_level, start // TILE_WIDTH)
        if tile not in self._tiles:
            row = self._session.get(AuditTileRow, tile)
            self._tiles[tile] = row.hashes if row is not None else b""
        try:
            return tiles.hash_in(self._tiles[tile], within, (start % TILE_WIDTH) >> within)
        except ValueError as e:
            raise Corrupt("DIGEST_MISMATCH", f"tile {tile[0]}/{tile[1]} of the audit log is missing or short") from e


def consistency(session: Session, old: int, new: int) -> Consistency:
    """The proof between two sizes. `Invalid` (REQUEST_INVALID) for sizes that the log does not have."""
    there = size(session)
    if not 0 <= old <= new <= there:
        raise Invalid("REQUEST_INVALID", f"the log has {there} entries: there is no proof from {old} to {new}")
    hashes = tlog.consistency(old, new, Nodes(session))
    return Consistency(old=old, new=new, hashes=[held.hex() for held in hashes])


def tile(session: Session, level: int, index: int, width: int) -> bytes | None:
    """The bytes of a tile, or None where the log is not so long."""
    row = session.get(AuditTileRow, (level, index))
    if row is None or row.width < width:
        return None
    return row.hashes[: width * HASH_BYTES]
