"""REST schemas of aliases and their history, gates and approvals, the withdrawal of versions, and groups of these.

An alias moves only from the generation that the client has seen.
"""

from datetime import datetime
from typing import Any, TypeVar

from pydantic import Field

from registry.api import GROUP_LIMIT, MESSAGE_LIMIT, REF_LIMIT
from registry.api.catalog import MetadataChange
from registry.api.models import ItemList, ItemOutcome, ItemPage, PrintableText, Request, Response
from registry.digest import Digest
from registry.evaluation.gates import Gate
from registry.findings import Finding
from registry.next_steps import NextStep
from registry.validation import pattern

GROUP_ID = pattern(r"^(grp_[0-9a-f]{16})?$", "must be the id of a group, such as grp_0123456789abcdef")
Outcome = TypeVar("Outcome")


class AliasView(Response):
    """An alias and the version it points at."""

    alias: str
    """Alias: a movable name of one version, such as `prod`."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    generation: int
    """How often the alias has moved. Send it as `If-Match` to move the alias."""
    moved_at: datetime
    """When it last moved."""
    moved_by: str
    """Identity whose token moved it."""
    reason: str = ""
    """Why, for everyone who reads the history. Control characters are refused."""


class AliasList(ItemList[AliasView]):
    """The aliases of an adapter."""

    items: list[AliasView]
    """Aliases by name."""


class AliasMove(Response):
    """One move of an alias: at this generation it pointed at `number`, from `at` until the next move."""

    alias: str
    """Alias: a movable name of one version, such as `prod`."""
    generation: int
    """How often the alias has moved. Send it as `If-Match` to move the alias."""
    from_number: int | None
    """Number of the version before the move; null if the alias pointed at none."""
    number: int | None
    """Number of the version after the move; null if the alias points at none."""
    digest: Digest | None
    """Digest of the version after the move; null if the alias points at none."""
    at: datetime
    """When it moved."""
    actor: str
    """Identity whose token moved it."""
    reason: str
    """Why, for everyone who reads the history. Control characters are refused."""
    evidence: list[dict[str, Any]] = []
    """What the gate found when the alias moved: checks, approvals, signatures; of a forced move, also what was
    missing."""
    token_id: str = ""
    """Token that was used. Empty for the server itself."""
    group_id: str = ""
    """Group of changes that it was made in. Empty for a move of its own."""

    @property
    def broke_glass(self) -> list[str]:
        """What the gate was missing when the move overrode it; empty for a usual move."""
        return [code for e in self.evidence if e.get("check") == "break_glass" for code in e.get("missing", [])]


class History(Response):
    """The moves of an adapter's aliases."""

    name: str
    """Adapter, as `namespace/name`."""
    moves: list[AliasMove]
    """Moves of the adapter's aliases, newest first."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class NamespaceMove(AliasMove):
    """One move of an alias of some adapter of a namespace."""

    name: str
    """Adapter, as `namespace/name`."""


class NamespaceHistory(Response):
    """The moves of the aliases of all adapters of a namespace."""

    namespace: str
    """Namespace of the adapters."""
    moves: list[NamespaceMove]
    """Moves, newest first; with `at` those of each adapter together."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class MovePage(ItemPage[NamespaceMove]):
    """Moves of aliases, of a group or of a time."""

    items: list[NamespaceMove]
    """Moves, newest first."""


class PromoteRequest(Request):
    """Point an alias at a version. The request needs If-Match with the alias's generation, 0 for a new alias."""

    version: str
    """Number, digest or another alias."""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""
    break_glass: bool = False
    """Move the alias although its gate is closed. Needs a reason, which the audit log keeps."""
    create_alias: bool = False
    """Create the alias even if its name looks like that of another one, of which it may be a wrong spelling."""


class RollbackRequest(Request):
    """Move an alias back to a version that it pointed at."""

    to: str = ""
    """Number or digest that the alias pointed at before. Empty: the version before the current one."""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""


class WithdrawRequest(Request):
    """Why a version is yanked or quarantined, or why that is undone."""

    reason: PrintableText = Field(min_length=1, max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""


class GateSet(Request):
    """The new gate of an alias."""

    gate: Gate
    """The requirements that replace the former ones."""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""


class GateView(Response):
    """The gate of an alias, and where it was set."""

    alias: str
    """Alias: a movable name of one version, such as `prod`."""
    gate: Gate
    """The requirements in force."""
    set_on: str = ""
    """Adapter or namespace that the gate was set for. Empty: it is the default."""
    set_at: datetime | None = None
    """When it was set; null for the default."""
    set_by: str = ""
    """Identity whose token set it."""


class GateList(ItemList[GateView]):
    """The gates of an adapter or namespace."""

    items: list[GateView]
    """Gates that are set here, by alias."""


class GateCheck(Response):
    """What a version is missing for an alias now."""

    alias: str
    """Alias: a movable name of one version, such as `prod`."""
    number: int
    """Number of the version in its adapter, from 1."""
    gate: GateView
    """The gate that decides."""
    open: bool
    """Whether the alias may move to the version now."""
    missing: list[Finding]
    """What the version lacks. Empty if the gate is open."""
    next_step: str = ""
    """What to do first, in one sentence. Empty if there is nothing to do."""
    step: NextStep | None = None
    """The next step as data; null if the gate is open."""


class ApproveRequest(Request):
    """An approval of a version for an alias."""

    alias: str = Field(max_length=128)
    """Alias: a movable name of one version, such as `prod`."""
    comment: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Free text of the person who approves."""


class ApprovalView(Response):
    """An approval. It does not count if its author pushed the version, or if the gate does not accept the author."""

    number: int
    """Number of the version in its adapter, from 1."""
    alias: str
    """Alias: a movable name of one version, such as `prod`."""
    identity: str
    """Who approves."""
    comment: str = ""
    """Free text of the person who approves."""
    at: datetime
    """When it was given."""
    counts: bool = True
    """False if this person pushed the version or is not an approver of the gate."""
    created: bool = Field(default=False)
    """True if this request made the approval, or would."""


class ApprovalList(ItemList[ApprovalView]):
    """The approvals of a version."""

    items: list[ApprovalView]
    """Approvals, oldest first."""


class GroupRequest(Request):
    """A request of several items. Each has its own outcome. `atomic`: if one has an error, nothing is changed.

    `dry_run`: everything is checked and nothing is changed; the response is what it would be.
    """

    atomic: bool = False
    """Write all or none: none if one has an error."""
    dry_run: bool = False
    """Only report what would happen, and change nothing."""
    group_id: str = Field(default="", pattern=GROUP_ID)
    """Group of changes that the request continues, by the same identity. Empty: it begins one."""


class GroupResults(ItemList[Outcome]):
    """The outcomes of a group of changes."""

    group_id: str = Field(default="", pattern=GROUP_ID)
    """Id of the group, which its events and moves have. Empty for a dry run."""


class MovedAlias(AliasView):
    """An alias after a move, or as it would be then. `moved` is False if it pointed at that version already."""

    name: str
    """Adapter, as `namespace/name`."""
    from_number: int | None
    """Number of the version that it pointed at before; null for a new alias."""
    moved: bool
    """False if it pointed at that version already."""


class MoveItem(PromoteRequest):
    """One move. `rollback`: to a version that the alias held before; an empty `version` is then the one before."""

    name: str = Field(max_length=REF_LIMIT)
    """Adapter, as `namespace/name`."""
    alias: str = Field(max_length=128)
    """Alias: a movable name of one version, such as `prod`."""
    version: str = Field(default="", max_length=REF_LIMIT)
    """Number, digest or another alias. Empty with `rollback`: the version before the current one."""
    rollback: bool = False
    """Move back to a version that the alias pointed at before, which needs no new evidence."""
    generation: int | None = Field(default=None, ge=0)
    """Move only if the alias is at this generation; 0: only if it is new. Null: at any."""


class MoveOutcome(ItemOutcome[MovedAlias]):
    """The outcome of one move."""


class ApproveItem(ApproveRequest):
    """One approval."""

    ref: str = Field(max_length=REF_LIMIT)
    """Version to approve: `namespace/name@3` or `namespace/name:alias`."""


class ApprovalGroup(GroupRequest):
    """Approvals of versions."""

    items: tuple[ApproveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)
    """Approvals. Each has its own outcome, at the same index of the response."""


class ApprovalOutcome(ItemOutcome[ApprovalView]):
    """The outcome of one approval."""


class ApprovalResults(GroupResults[ApprovalOutcome]):
    """The approvals, in the order of the request."""

    items: list[ApprovalOutcome]
    """One outcome for each approval of the request, in its order."""


class DescribeItem(MetadataChange):
    """A change of one subject."""

    subject: str = Field(max_length=REF_LIMIT)
    """Adapter, as `namespace/name`, or version: `namespace/name@3` or `namespace/name:alias`."""


class DescribeGroup(GroupRequest):
    """Changes of descriptions, tags and links."""

    items: tuple[DescribeItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)
    """Changes. Each has its own outcome, at the same index of the response."""


class DescribedSubject(Response):
    """What an adapter or a version is described by. `changed` is False if the request changed nothing."""

    subject: str
    """Adapter, or version by its number."""
    changed: bool
    """False if the request changed nothing."""
    description: str = ""
    """Free text after the change."""
    tags: dict[str, str] = {}
    """Key → value, for search. Can be changed later; not part of the digest."""
    links: dict[str, str] = {}
    """Label → web address (http or https), for people. Can be changed later."""


class DescribeOutcome(ItemOutcome[DescribedSubject]):
    """The outcome of one change."""


class DescribeResults(GroupResults[DescribeOutcome]):
    """The changes, in the order of the request."""

    items: list[DescribeOutcome]
    """One outcome for each change of the request, in its order."""


class MoveGroup(GroupRequest):
    """Moves of aliases, each alias once, and changes of metadata in the same transaction."""

    items: tuple[MoveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)
    """Moves, each alias once. Each has its own outcome, at the same index of the response."""
    metadata: tuple[DescribeItem, ...] = Field(default=(), max_length=GROUP_LIMIT)
    """Changes of descriptions, tags and links in the same transaction. Each needs the right to push."""


class MoveResults(GroupResults[MoveOutcome]):
    """The moves and the changes of metadata, in the order of the request."""

    items: list[MoveOutcome]
    """One outcome for each move of the request, in its order."""

    metadata: list[DescribeOutcome] = []
    """The changes of metadata, in the order of the request."""
