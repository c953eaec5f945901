"""`ReadCache`: remembers what was computed from pieces of files, by the bytes of these pieces.

Adapters that one script trained have the same configuration and header, byte for byte. What follows from those alone is
computed once. The numbers of the weights are never read here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from registry.digest import Digest, Hasher
from registry.files import Read

Value = TypeVar("Value")
PIECES_LIMIT = 64
"""What reads more pieces is not remembered."""
BYTES_LIMIT = 4 * 2**20
"""How many bytes were read for all that is remembered. Parsed, a header takes many times its bytes."""
Piece = tuple[str, int, int]
"""Path, start and length."""


class ReadCache(Generic[Value]):
    """The last `limit` results, of `BYTES_LIMIT` bytes that were read. Thread-safe.

    A computation must depend on its key and on what it reads, and on nothing else. Then it reads the same pieces again
    as long as these have the same bytes, and has the same result.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._pieces: OrderedDict[Hashable, list[Piece]] = OrderedDict()
        """Key → what the last computation with this key has read."""
        self._values: OrderedDict[tuple[Hashable, Digest], tuple[Value, int]] = OrderedDict()
        """Key and digest of what was read → the result, and how many bytes were read."""

    def compute(self, key: Hashable, read: Read, function: Callable[[Read], Value]) -> Value:
        """The result of `function` for these files, computed or remembered. Errors are not remembered."""
        with self._lock:
            pieces = self._pieces.get(key, [])
        data_of = {piece: read(*piece) for piece in pieces}
        if pieces:
            with self._lock:
                remembered = self._values.get((key, _digest(data_of)))
            if remembered is not None:
                return remembered[0]
        used: dict[Piece, bytes] = {}

        def read_and_note(path: str, start: int, length: int) -> bytes:
            piece = (path, start, length)
            used[piece] = data = data_of[piece] if piece in data_of else read(path, start, length)
            return data

        value = function(read_and_note)
        size_bytes = sum(map(len, used.values()))
        if len(used) <= PIECES_LIMIT and size_bytes <= BYTES_LIMIT:
            with self._lock:
                _remember(self._pieces, key, list(used), self._limit)
                _remember(self._values, (key, _digest(used)), (value, size_bytes), self._limit)
                while sum(size for _, size in self._values.values()) > BYTES_LIMIT:
                    self._values.popitem(last=False)
        return value


Name = TypeVar("Name", bound=Hashable)
Entry = TypeVar("Entry")


def _remember(entries: OrderedDict[Name, Entry], name: Name, entry: Entry, limit: int) -> None:
    entries[name] = entry
    entries.move_to_end(name)
    while len(entries) > limit:
        entries.popitem(last=False)


def _digest(data_of: dict[Piece, bytes]) -> Digest:
    hasher = Hasher()
    for data in data_of.values():
        hasher.update(len(data).to_bytes(8, "big"))
        hasher.update(data)
    return hasher.digest()
