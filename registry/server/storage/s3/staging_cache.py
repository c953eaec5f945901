"""`StagingCache`: what this process knows about staging keys, so that it does not ask the store again.

- An entry is never trusted alone: the call that follows confirms it (a part listed, an object copied). If it turns out
  to be wrong, it is forgotten and the store is asked.
- `written` is set only if no link can put other bytes there (`Capabilities.checksum_links`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from registry.server.storage.blobs import Stat
from registry.server.storage.s3.direct_upload import UploadMarker

LIMIT = 10_000
"""Keys at which everything is forgotten, which costs calls and nothing else."""


@dataclass(frozen=True, slots=True)
class StagingEntry:
    """What is known about one staging key."""

    written: Stat | None = None
    """The bytes that this process wrote there, hashed on the way."""
    marker: UploadMarker | None = None
    """The direct upload that this process began for the key, or found there."""
    completed: bool = False
    """The bytes of the direct upload are under the final key."""
    has_dummy: bool = False
    """A copy of the bytes is under `dummy_key_of`."""


class StagingCache:
    """Maps staging keys to entries. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, StagingEntry] = {}

    def get(self, key: str) -> StagingEntry:
        """Return the entry of a key: an empty one if nothing is known."""
        return self._entries.get(key, _NOTHING)

    def update(self, key: str, **changes: Any) -> None:
        """Change some fields of a key's entry."""
        with self._lock:
            if len(self._entries) >= LIMIT:
                self._entries.clear()
            self._entries[key] = replace(self.get(key), **changes)

    def forget(self, key: str) -> None:
        """Remove a key's entry."""
        self._entries.pop(key, None)


_NOTHING = StagingEntry()


def dummy_key_of(staging_key: str) -> str:
    """Return the key of a copy that nobody reads, under a push that does not exist.

    It is deleted with the staging key; if the process dies before that, GC finds it.
    """
    folder, push_id, name = staging_key.split("/")
    return f"{folder}/{push_id[:58]}-dummy/{name}"
