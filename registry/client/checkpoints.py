"""`Checkpoints`: what whoever follows the log of a server asks of it; audit.py has all other routes of the log.

Invariants
- Nothing is verified here but by `registry.tlog`, with keys that the caller trusts.
"""

from __future__ import annotations

from typing import Any

from registry.api import Consistency, LogKeys
from registry.client.core import Versions
from registry.client.responses import Shape, parsed
from registry.tlog import verify_consistency
from registry.tlog.notes import Checkpoint


class Checkpoints:
    def __init__(self, registry: Versions) -> None:
        self._connection = registry.connection

    def checkpoint(self) -> str:
        """The newest checkpoint's note."""
        return self._connection.send("GET", "/audit/checkpoint").content.decode()

    def keys(self) -> LogKeys:
        return self._get("/audit/keys", LogKeys)

    def consistency(self, old: int, new: int) -> Consistency:
        return self._get("/audit/consistency", Consistency, old=str(old), new=str(new))

    def _get(self, path: str, shape: type[Shape], **query: Any) -> Shape:
        return parsed(self._connection.send("GET", path, query=query), shape)


def consistent(log: Checkpoints, old: Checkpoint, new: Checkpoint) -> bool:
    """Whether the server shows that the one is the beginning of the other, whichever is the longer."""
    first, second = sorted((old, new), key=lambda checkpoint: checkpoint.size)
    hashes: list[bytes] = []
    if 0 < first.size < second.size:
        try:
            hashes = [bytes.fromhex(text) for text in log.consistency(first.size, second.size).hashes]
        except ValueError:
            return False
    return verify_consistency(first.size, first.root, second.size, second.root, hashes)
