"""REST schemas of requests about many adapters: moves of aliases, approvals, and changes of metadata."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta
from pydantic import Field

from registry.api import GROUP_LIMIT, REF_LIMIT, Problem
from registry.api.aliases import AliasView, ApprovalView, ApproveRequest, PromoteRequest
from registry.api.catalog import MetadataChange
from registry.api.models import Answer, Request


class GroupRequest(Request):
    """A request of several items. Each has its own outcome. `atomic`: if one has an error, nothing is changed.

    `dry_run`: everything is checked and nothing is changed; the answer is what it would be.
    """

    atomic: bool = False
    dry_run: bool = False


class GroupOutcome(Answer):
    """The outcome of one item: the result that a subclass adds, or the problem that it alone has."""

    problem: Problem | None = None


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


class MoveGroup(GroupRequest):
    """Moves of aliases, each alias once."""

    items: tuple[MoveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)


class MoveOutcome(GroupOutcome):
    """The outcome of one move."""

    result: MovedAlias | None = None


class MoveResults(Answer):
    """The moves, in the order of the request."""

    items: list[MoveOutcome]


class ApproveItem(ApproveRequest):
    """One approval."""

    ref: str = Field(max_length=REF_LIMIT)


class ApprovalGroup(GroupRequest):
    """Approvals of versions."""

    items: tuple[ApproveItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)


class ApprovalOutcome(GroupOutcome):
    """The outcome of one approval."""

    result: ApprovalView | None = None


class ApprovalResults(Answer):
    """The approvals, in the order of the request."""

    items: list[ApprovalOutcome]


class DescribeItem(MetadataChange, frozen=True, kw_only=True):
    """A change of one subject."""

    subject: Annotated[str, Meta(max_length=REF_LIMIT)]


class DescribeGroup(GroupRequest):
    """Changes of descriptions, tags and links."""

    items: tuple[DescribeItem, ...] = Field(min_length=1, max_length=GROUP_LIMIT)


class DescribedSubject(Answer):
    """What an adapter or a version is described by. `changed` is False if the request changed nothing."""

    subject: str
    changed: bool
    description: str = ""
    tags: dict[str, str] = {}
    links: dict[str, str] = {}


class DescribeOutcome(GroupOutcome):
    """The outcome of one change."""

    result: DescribedSubject | None = None


class DescribeResults(Answer):
    """The changes, in the order of the request."""

    items: list[DescribeOutcome]
