"""The REST contract of pointers: where aliases are and were, promote and rollback; and what withdraws a version.

Invariants
- An alias moves from the generation that whoever moves it has seen, and from no other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, Request, Said
from registry.digest import Digest


class AliasView(Answer):
    alias: str
    number: int
    digest: Digest
    generation: int
    moved_at: datetime
    moved_by: str
    reason: str = ""


class AliasMove(Answer):
    """One row of an alias's history: generation `n` pointed at `number` from `at` until the next row."""

    alias: str
    generation: int
    from_number: int | None
    number: int | None
    digest: Digest | None
    at: datetime
    actor: str
    reason: str
    evidence: list[dict[str, Any]] = []
    token_id: str = ""

    @property
    def broke_glass(self) -> list[str]:
        """What the gate was missing when somebody passed it all the same; empty for a usual move."""
        return [code for e in self.evidence if e.get("check") == "break_glass" for code in e.get("missing", [])]


class AliasList(Answer):
    items: list[AliasView]


class PromoteRequest(Request):
    """PUT /adapters/{ns}/{name}/aliases/{alias}. Needs If-Match: the alias's generation, 0 for a new one."""

    version: str
    reason: Said = Field(default="", max_length=MESSAGE_LIMIT)
    break_glass: bool = False


class RollbackRequest(Request):
    """POST /adapters/{ns}/{name}/aliases/{alias}/rollback. Empty `to` is the version before this one."""

    to: str = ""
    reason: Said = Field(default="", max_length=MESSAGE_LIMIT)


class YankRequest(Request):
    reason: Said = Field(min_length=1, max_length=MESSAGE_LIMIT)


class History(Answer):
    name: str
    moves: list[AliasMove]
    next_cursor: str = ""
