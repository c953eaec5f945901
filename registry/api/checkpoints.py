"""The REST contract of following a log: whose it is, and that it has only grown. Every push and pull takes part in it.

Invariants
- An answer that says what became of a version carries the newest checkpoint that the server knows.
"""

from __future__ import annotations

from registry.api import Answer

CHECKPOINT_HEADER = "Audit-Checkpoint"
"""On some answers: the newest checkpoint that the server knows, its note in base64."""


class LogKeys(Answer):
    """Which log this is, and the keys that sign for it (C2SP verifier keys; the first signs now)."""

    origin: str
    keys: list[str]


class Consistency(Answer):
    """The proof that the log of `old` entries is the beginning of that of `new`: hashes in hex."""

    old: int
    new: int
    hashes: list[str]
