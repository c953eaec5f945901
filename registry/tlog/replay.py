"""A replay: rows against entries against tiles against a signed checkpoint, every byte of them.

Everything is recomputed from the rows, and only the log's keys are trusted. It needs no server: an exported folder is
as good.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from registry.tlog import HASH_BYTES, leaf_hash, root_of, tiles
from registry.tlog.notes import Checkpoint, Verifier
from registry.tlog.tiles import TILE_HEIGHT, TILE_WIDTH

PROBLEMS_LIMIT = 100


class LogSource(Protocol):
    """Where the parts of a log come from: a server, or a folder."""

    def checkpoint(self) -> str:
        """The newest signed checkpoint."""

    def tiles(self, level: int, index: int, width: int) -> Sequence[bytes]:
        """Every copy of this tile that there is."""
        ...

    def entries(self, index: int, width: int) -> bytes:
        """The entries of a tile."""

    def rows(self) -> Iterator[bytes]:
        """The entries as the rows of the database tell them, from the first on."""
        ...


@dataclass
class Replay:
    """What a replay saw: how long the log is, its root, and what is wrong with it."""

    origin: str = ""
    size: int = 0
    root: bytes = b""
    note: str = ""
    problems: list[str] = field(default_factory=list)

    def add_problem(self, message: str) -> None:
        """Keep a problem, up to the limit."""
        if len(self.problems) < PROBLEMS_LIMIT:
            self.problems.append(message)


def replay(source: LogSource, *verifiers: Verifier) -> Replay:
    """Replay the whole log as its checkpoint has it."""
    note = source.checkpoint()
    checkpoint = Checkpoint.of_note(note, *verifiers)
    if checkpoint is None:
        return Replay(note=note, problems=["the checkpoint is not signed by a key of this log"])
    result = Replay(checkpoint.origin, checkpoint.size, checkpoint.root, note)
    level = list(_leaves(source, result))
    leaves = [leaf for hashes in level for leaf in hashes]
    if root_of(leaves) != checkpoint.root:
        result.add_problem(f"the {len(leaves)} rows do not make the root that was signed")
    _upper(source, result, level)
    return result


def _leaves(source: LogSource, result: Replay) -> Iterator[list[bytes]]:
    """The leaf hashes of the rows, tile by tile; differences of tiles and entries from them are noted."""
    rows = source.rows()
    for index in range(-(-result.size // TILE_WIDTH)):
        width = tiles.width_at(0, index, result.size)
        entries = list(islice(rows, width))
        if len(entries) < width:
            result.add_problem(f"rows end at {index * TILE_WIDTH + len(entries)}, and the log has {result.size}")
        hashes = [leaf_hash(entry) for entry in entries]
        _compare(source, result, 0, index, hashes)
        try:
            bundle = list(tiles.entries_of(source.entries(index, width)))
        except ValueError as e:
            result.add_problem(f"entries of tile {index}: {e}")
            bundle = []
        if len(bundle) != width:
            result.add_problem(f"entries of tile {index}: {len(bundle)} of them, not {width}")
        for at, (own_entry, entry_of_bundle) in enumerate(zip(entries, bundle, strict=False)):
            if own_entry != entry_of_bundle:
                result.add_problem(f"event {index * TILE_WIDTH + at + 1}: its row differs from its entry")
        yield hashes


def _upper(source: LogSource, result: Replay, level: list[list[bytes]]) -> None:
    number = 0
    while len(full := [tile for tile in level if len(tile) == TILE_WIDTH]):
        number += 1
        hashes = [tiles.hash_in(b"".join(tile), TILE_HEIGHT, 0) for tile in full]
        level = [hashes[at : at + TILE_WIDTH] for at in range(0, len(hashes), TILE_WIDTH)]
        for index, tile in enumerate(level):
            _compare(source, result, number, index, tile)


def _compare(source: LogSource, result: Replay, level: int, index: int, hashes: list[bytes]) -> None:
    width = tiles.width_at(level, index, result.size)
    expected = b"".join(hashes)
    copies = source.tiles(level, index, width)
    if not copies:
        result.add_problem(f"{tiles.tile_path(level, index, width)}: is missing")
    for data in copies:
        if data == expected:
            continue
        first = next(
            (at for at in range(len(hashes)) if data[at * HASH_BYTES : (at + 1) * HASH_BYTES] != hashes[at]), 0
        )
        event = f" (event {index * TILE_WIDTH + first + 1})" if level == 0 else ""
        result.add_problem(f"{tiles.tile_path(level, index, width)}: differs from the rows, first at {first}{event}")
