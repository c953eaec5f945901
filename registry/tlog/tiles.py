"""Tiles: the log cut into pieces of 256 hashes, under the paths that C2SP's tlog-tiles gives them.

    tile/<level>/<index>[.p/<width>]      256 hashes, or `width` of them at the right edge
    tile/entries/<index>[.p/<width>]      the entries of a level-0 tile, each behind its length (2 bytes, big-endian)

A full tile never changes; a partial one has its width in its path, so no path ever has two contents.

>>> tile_path(0, 1234067), widths(300)
('tile/0/x001/x234/067', [(0, 0, 256), (0, 1, 44), (1, 0, 1)])
"""

import re
from collections.abc import Iterable, Iterator

from registry.tlog import HASH_BYTES, node_hash

TILE_WIDTH = 256
TILE_HEIGHT = 8
ENTRY_LIMIT_BYTES = 2**16 - 1
_PATH = re.compile(r"(entries|[0-9])/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?\Z")


def tile_path(level: int | str, index: int, width: int = TILE_WIDTH) -> str:
    """The path of a tile; `level` is a number or `entries`."""
    groups = [f"{index % 1000:03d}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03d}")
    partial = f".p/{width}" if width < TILE_WIDTH else ""
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def parse_path(path: str) -> tuple[int | None, int, int] | None:
    """(level, index, width) of a path without its `tile/`; level None means entries. None for what is no path."""
    match = _PATH.match(path)
    if match is None:
        return None
    level = None if match[1] == "entries" else int(match[1])
    index = int(match[2].replace("/", "").replace("x", ""))
    width = int(match[3] or TILE_WIDTH)
    if width > TILE_WIDTH or (match[3] and width == TILE_WIDTH) or (level is not None and level > 7):
        return None
    return (level, index, width) if tile_path(match[1], index, width) == f"tile/{path}" else None


def widths(size: int) -> list[tuple[int, int, int]]:
    """(level, index, width) of every tile that a log of `size` entries has."""
    tile_widths, level, count = [], 0, size
    while count:
        tile_widths += [(level, index, TILE_WIDTH) for index in range(count // TILE_WIDTH)]
        if count % TILE_WIDTH:
            tile_widths.append((level, count // TILE_WIDTH, count % TILE_WIDTH))
        level, count = level + 1, count // TILE_WIDTH
    return tile_widths


def width_at(level: int, index: int, size: int) -> int:
    """How many hashes a tile has in a log of `size` entries; 0 or less when it is not there."""
    return min(TILE_WIDTH, (size >> (TILE_HEIGHT * level)) - index * TILE_WIDTH)


def hash_in(tile: bytes, level: int, position: int) -> bytes:
    """The hash of the subtree of 2^level hashes of this tile that begins at position · 2^level of it."""
    hashes = [tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)]
    hashes = hashes[position << level : (position + 1) << level]
    if len(hashes) != 1 << level:
        raise ValueError("the tile is too short for this subtree")
    while len(hashes) > 1:
        hashes = [node_hash(hashes[at], hashes[at + 1]) for at in range(0, len(hashes), 2)]
    return hashes[0]


def bundle(entries: Iterable[bytes]) -> bytes:
    """Entries as an entry bundle. `ValueError` for one that is too long for its length field."""
    packed = bytearray()
    for entry in entries:
        if len(entry) > ENTRY_LIMIT_BYTES:
            raise ValueError(f"an entry of {len(entry)} bytes is over {ENTRY_LIMIT_BYTES}")
        packed += len(entry).to_bytes(2, "big") + entry
    return bytes(packed)


def entries_of(packed: bytes) -> Iterator[bytes]:
    """The entries of a bundle. `ValueError` for one that is cut."""
    at = 0
    while at < len(packed):
        length = int.from_bytes(packed[at : at + 2], "big")
        entry = packed[at + 2 : at + 2 + length]
        if at + 2 + length > len(packed):
            raise ValueError("the bundle ends inside an entry")
        yield entry
        at += 2 + length
