"""The Merkle tree of the log, as rows of tiles: extended by the sequencer, read for roots and proofs.

- The row of a tile only grows, up to 256 hashes. Only the last row of each level grows.
- The tiles of level 0 define the size of the log.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlmodel import Session, col, select

from registry import tlog
from registry.api import Consistency
from registry.errors import Corrupt, Invalid
from registry.server.database.models import AuditTileRow
from registry.tlog import HASH_BYTES, tiles
from registry.tlog.tiles import TILE_HEIGHT, TILE_WIDTH


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
        done = 0
        while done < len(hashes):
            tile, used = divmod(index, TILE_WIDTH)
            row = session.get(AuditTileRow, (level, tile)) if used else None
            if row is None:
                row = AuditTileRow(level=level, index=tile, width=0, hashes=b"")
            if row.width != used:
                raise Corrupt(
                    "DIGEST_MISMATCH", f"tile {level}/{tile} of the audit log has {row.width} hashes, not {used}"
                )
            added = hashes[done : done + TILE_WIDTH - used]
            row.hashes, row.width = row.hashes + b"".join(added), used + len(added)
            session.add(row)
            if row.width == TILE_WIDTH:
                parents.append(tiles.hash_in(row.hashes, TILE_HEIGHT, 0))
            done, index = done + len(added), index + len(added)
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
