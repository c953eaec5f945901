"""REST schemas of aliases and their history, and of the withdrawal of versions.

An alias moves only from the generation that the client has seen.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, PrintableText, Request
from registry.digest import Digest


class AliasView(Answer):
    """An alias and the version it points at."""

    alias: str
    number: int
    digest: Digest
    generation: int
    moved_at: datetime
    moved_by: str
    reason: str = ""


class AliasList(Answer):
    """The aliases of an adapter."""

    items: list[AliasView]


class AliasMove(Answer):
    """One move of an alias: at this generation it pointed at `number`, from `at` until the next move."""

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
        """What the gate was missing when the move overrode it; empty for a usual move."""
        return [code for e in self.evidence if e.get("check") == "break_glass" for code in e.get("missing", [])]


class History(Answer):
    """The moves of an adapter's aliases."""

    name: str
    moves: list[AliasMove]
    next_cursor: str = ""


class PromoteRequest(Request):
    """Point an alias at a version. The request needs If-Match with the alias's generation, 0 for a new alias."""

    version: str
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    break_glass: bool = False


class RollbackRequest(Request):
    """Move an alias back. An empty `to` means the version before the current one."""

    to: str = ""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)


class WithdrawRequest(Request):
    """Why a version is yanked, unyanked, quarantined or released."""

    reason: PrintableText = Field(min_length=1, max_length=MESSAGE_LIMIT)
