"""REST schemas of aliases and their history, gates and approvals, the withdrawal of versions, and groups of these.

An alias moves only from the generation that the client has seen.
"""

from datetime import datetime
from typing import Any

from pydantic import Field

from registry.api import GROUP_LIMIT, MESSAGE_LIMIT, REF_LIMIT
from registry.api.catalog import MetadataChange
from registry.api.models import ItemList, ItemOutcome, PrintableText, Request, Response
from registry.digest import Digest
from registry.evaluation.gates import Gate
from registry.findings import Finding


class AliasView(Response):
    """An alias and the version it points at."""

    alias: str
    number: int
    digest: Digest
    generation: int
    moved_at: datetime
    moved_by: str
    reason: str = ""


class AliasList(ItemList[AliasView]):
    """The aliases of an adapter."""


class AliasMove(Response):
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


class History(Response):
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
    """Move an alias back to a version that it pointed at."""

    to: str = ""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)


class WithdrawRequest(Request):
    """Why a version is yanked or quarantined, or why that is undone."""

    reason: PrintableText = Field(min_length=1, max_length=MESSAGE_LIMIT)


class GateSet(Request):
    """The new gate of an alias."""

    gate: Gate


class GateView(Response):
    """The gate of an alias, and where it was set."""

    alias: str
    gate: Gate
    set_on: str = ""
    set_at: datetime | None = None
    set_by: str = ""


class GateList(ItemList[GateView]):
    """The gates of an adapter or namespace."""


class GateCheck(Response):
    """What a version is missing for an alias now."""

    alias: str
    number: int
    gate: GateView
    open: bool
    missing: list[Finding]
    next_step: str = ""


class ApproveRequest(Request):
    """An approval of a version for an alias."""

    alias: str = Field(max_length=128)
    comment: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)


class ApprovalView(Response):
    """An approval. It does not count if its author pushed the version, or if the gate does not accept the author."""

    number: int
    alias: str
    identity: str
    comment: str = ""
    at: datetime
    counts: bool = True
    created: bool = Field(default=False)


class ApprovalList(ItemList[ApprovalView]):
    """The approvals of a version."""


class GroupRequest(Request):
    """A request of several items. Each has its own outcome. `atomic`: if one has an error, nothing is changed.

    `dry_run`: everything is checked and nothing is changed; the response is what it would be.
    """

    atomic: bool = False
    dry_run: bool = False


class MovedAlias(AliasView):
    """An alias after a move, or as it would be then. `moved` is False if it pointed at that version already."""

    name: str
    from_number: int | None
    moved: bool


class MoveItem(PromoteRequest):
    """One move. `rollback`: to a version that the alias held before; an empty `version` is then the one before."""

    name: str = Field(max_length=REF_LIMIT)
    alias: str = Field(max_length=128)
    version: str = Field(default="", max_length=REF_LIMIT)
    rollback: bool = False
    generation: int | None = Field(default=None, ge=0)


class MoveOutcome(ItemOutcome[MovedAlias]):
    """The outcome of one move."""


class ApproveItem(ApproveRequest):
    """One approval."""

    ref: str = Field(max_length=REF_LIMIT)


class ApprovalGroup(GroupRequest):
    """Approvals of versions."""

    items: tuple[ApproveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)


class ApprovalOutcome(ItemOutcome[ApprovalView]):
    """The outcome of one approval."""


class ApprovalResults(ItemList[ApprovalOutcome]):
    """The approvals, in the order of the request."""


class DescribeItem(MetadataChange):
    """A change of one subject."""

    subject: str = Field(max_length=REF_LIMIT)


class DescribeGroup(GroupRequest):
    """Changes of descriptions, tags and links."""

    items: tuple[DescribeItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)


class DescribedSubject(Response):
    """What an adapter or a version is described by. `changed` is False if the request changed nothing."""

    subject: str
    changed: bool
    description: str = ""
    tags: dict[str, str] = {}
    links: dict[str, str] = {}


class DescribeOutcome(ItemOutcome[DescribedSubject]):
    """The outcome of one change."""


class DescribeResults(ItemList[DescribeOutcome]):
    """The changes, in the order of the request."""


class MoveGroup(GroupRequest):
    """Moves of aliases, each alias once, and changes of metadata in the same transaction."""

    items: tuple[MoveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)
    metadata: tuple[DescribeItem, ...] = Field(default=(), max_length=GROUP_LIMIT)


class MoveResults(ItemList[MoveOutcome]):
    """The moves and the changes of metadata, in the order of the request."""

    metadata: list[DescribeOutcome] = []
