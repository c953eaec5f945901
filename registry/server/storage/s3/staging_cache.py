"""`Staged`: what this process has seen of staging keys, so that the store is not asked what it has just said.

Invariants
- It is never the only word: what it remembers is confirmed by the call that follows (a part listed, an object copied),
  and whoever finds it wrong forgets it and asks the store.
- What this process wrote there is told only where no link takes other bytes than those (`sum_links`).
- Bounded: at `LIMIT` keys everything is forgotten, which costs calls and nothing else.
"""

from __future__ import annotations

from typing import TypeVar

from registry.server.storage.blobs import Stat
from registry.server.storage.s3.direct_upload import Note

LIMIT = 10_000
Kept = TypeVar("Kept")


class Staged:
    """Remembers for each staging key: bytes written by us, a bound upload begun or landed, a twin. Thread-safe."""

    def __init__(self) -> None:
        self._written: dict[str, Stat] = {}
        self._notes: dict[str, Note] = {}
        self._landed: dict[str, bool] = {}
        self._twins: dict[str, bool] = {}

    def wrote(self, stat: Stat) -> None:
        if stat.key.startswith("staging/"):
            _put(self._written, stat.key, stat)

    def written(self, key: str) -> Stat | None:
        """What this process wrote there itself, hashed on its way."""
        return self._written.get(key)

    def begun(self, key: str, note: Note) -> None:
        _put(self._notes, key, note)

    def note(self, key: str) -> Note | None:
        """The bound upload that this process began for that key, or found there."""
        return self._notes.get(key)

    def land(self, key: str) -> None:
        """The bytes of that key's upload stand under their final key."""
        self._notes.pop(key, None)
        _put(self._landed, key, True)

    def landed(self, key: str) -> bool:
        return key in self._landed

    def twin(self, key: str) -> None:
        """The copy of that key's bytes went to its twin."""
        _put(self._twins, key, True)

    def has_twin(self, key: str) -> bool:
        return key in self._twins

    def forget(self, key: str) -> None:
        self._written.pop(key, None)
        self._notes.pop(key, None)
        self._landed.pop(key, None)
        self._twins.pop(key, None)


def _put(kept: dict[str, Kept], key: str, value: Kept) -> None:
    if len(kept) >= LIMIT:
        kept.clear()
    kept[key] = value


def twin_of(staging_key: str) -> str:
    """Under a push that does not exist: it goes with the staging key, and if we die before that, `gc` finds it."""
    folder, push_id, name = staging_key.split("/")
    return f"{folder}/{push_id[:59]}-twin/{name}"
