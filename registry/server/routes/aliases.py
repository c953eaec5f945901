"""Routes that move aliases, of gates and approvals, and of the withdrawal of versions. `adapters` lists aliases.

An alias moves only under `If-Match: "<generation>"`: without it the response is 428, with an old generation 412.
"""

from datetime import datetime
from typing import Annotated

from fastapi import Header, Request, Response

from registry import names
from registry.api.aliases import (
    AliasMove,
    AliasView,
    ApprovalGroup,
    ApprovalList,
    ApprovalOutcome,
    ApprovalResults,
    ApprovalView,
    ApproveItem,
    ApproveRequest,
    DescribeOutcome,
    GateCheck,
    GateList,
    GateSet,
    GateView,
    MoveGroup,
    MoveItem,
    MoveOutcome,
    MovePage,
    MoveResults,
    PromoteRequest,
    RollbackRequest,
    WithdrawRequest,
)
from registry.api.catalog import VersionView
from registry.api.operations import aliases as operations
from registry.errors import Conflict, Invalid
from registry.names import AdapterName, Ref, Selector
from registry.roles import Scope
from registry.server.database import db
from registry.server.http import dependencies as deps
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter
from registry.server.http.problems import outcomes_of
from registry.server.outcomes import collect_outcomes, fail_all, has_error, only
from registry.server.promotion import alias_deletion, aliases, approvals, deletion, describe, gates, moves, withdraw
from registry.server.promotion.approvals import NewApproval
from registry.server.promotion.describe import Description
from registry.server.promotion.move_decisions import Move
from registry.server.promotion.owner_rules import Owner

router = OperationRouter()
gate_router = OperationRouter()
IfMatch = Annotated[str | None, Header(max_length=100)]


@router.serves(operations.SHOW_ALIAS)
def show_alias(target: deps.AdapterDep, alias: str, response: Response) -> AliasView:
    """Show one alias. The ETag is its generation."""
    return _tagged(aliases.show(*target, names.alias(alias)), response)


@router.serves(operations.PROMOTE_ALIAS)
def promote_alias(
    target: deps.AdapterDep, alias: str, request: JsonBody[PromoteRequest], response: Response, if_match: IfMatch = None
) -> AliasView:
    """Point an alias at a version, through its gate. Needs `If-Match` with the generation of the alias."""
    target.actor.require(Scope.PROMOTE, target.name, alias)
    expected = _require_generation(if_match, alias)
    to = parse_selector(request.version, target.name)
    move = Move(
        target.name, alias, to, expected, request.reason, request.break_glass, creates_alias=request.create_alias
    )
    return _tagged(moves.move_alias(target.session, target.actor, move), response)


@router.serves(operations.DELETE_ALIAS)
def delete_alias(
    target: deps.AdapterDep, alias: str, if_match: IfMatch = None, reason: deps.ReasonDep = "", force: bool = False
) -> AliasMove:
    """Delete an alias; its history stays. Needs `If-Match` with the generation of the alias."""
    return alias_deletion.delete_alias(*target, alias, _require_generation(if_match, alias), reason=reason, force=force)


@router.serves(operations.ROLLBACK_ALIAS)
def rollback_alias(
    target: deps.AdapterDep,
    alias: str,
    request: JsonBody[RollbackRequest],
    response: Response,
    if_match: IfMatch = None,
) -> AliasView:
    """Point an alias back at an earlier version."""
    to = parse_selector(request.to, target.name) if request.to else None
    move = Move(target.name, alias, to, _generation(if_match), request.reason, is_rollback=True)
    return _tagged(moves.move_alias(target.session, target.actor, move), response)


@router.serves(operations.MOVE_ALIASES)
def move_aliases(
    incoming: Request, session: deps.KeyedSessionDep, actor: deps.ActorDep, request: JsonBody[MoveGroup]
) -> MoveResults:
    """Promote or roll back aliases of many adapters, each through its gate, and change metadata with them."""
    db.begin_writing(session)
    group_id = aliases.begin_group(session, actor, request)
    atomic, dry_run = request.atomic, request.dry_run
    changes = collect_outcomes(request.metadata, Description.of)
    described = describe.describe(session, actor, changes, atomic=atomic, dry_run=dry_run)
    incomplete = atomic and has_error(described)
    requested = collect_outcomes(request.items, _read_move)
    moved = moves.move_aliases(session, actor, requested, atomic=atomic, dry_run=dry_run or incomplete)
    if incomplete:
        moved = [*fail_all(moved, "one of the metadata has an error")]
    elif atomic and has_error(moved):
        session.rollback()
        described = [*fail_all(described, "one of the items has an error")]
    items = outcomes_of(incoming, moved, [f"{item.name}:{item.alias}" for item in request.items])
    metadata = outcomes_of(incoming, described, [item.subject for item in request.metadata])
    return MoveResults(
        items=[MoveOutcome(**item) for item in items], metadata=[DescribeOutcome(**item) for item in metadata],
        group_id=group_id,
    )  # fmt: skip


@router.serves(operations.LIST_MOVES)
def list_moves(
    session: deps.SessionDep, actor: deps.ActorDep, cursor: deps.CursorDep, group_id: deps.Text = "",
    namespace: deps.Text = "", alias: deps.Text = "", by: deps.Text = "", since: datetime | None = None,
    limit: deps.LimitDep = deps.PAGE,
) -> MovePage:  # fmt: skip
    """List the moves of a group of changes, or since a time in a namespace, newest first."""
    return aliases.list_moves(
        session, actor, group_id=group_id, namespace=namespace, alias=alias, by=by, since=since, cursor=cursor,
        limit=limit,
    )  # fmt: skip


def _read_move(item: MoveItem) -> Move:
    name = AdapterName.parse(item.name)
    to = None if item.rollback and not item.version else parse_selector(item.version, name)
    return Move(name, item.alias, to, item.generation, item.reason, item.break_glass, item.rollback, item.create_alias)


def _tagged(view: AliasView, response: Response) -> AliasView:
    response.headers["ETag"] = f'"{view.generation}"'
    return view


def _generation(if_match: str | None) -> int | None:
    """The generation in an If-Match header, with or without quotes; None without the header."""
    if if_match is None:
        return None
    text = if_match.strip().removeprefix("W/").strip('"')
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid("REQUEST_INVALID", f'If-Match: {if_match[:40]!r} is not a generation such as "3"')
    return int(text)


def _require_generation(if_match: str | None, alias: str) -> int:
    expected = _generation(if_match)
    if expected is None:
        raise Conflict(
            "PRECONDITION_REQUIRED",
            f"changing alias '{alias[:64]}' needs If-Match with the generation that it is at ('0' for a new one)",
        )
    return expected


def parse_selector(text: str, name: AdapterName) -> Selector:
    """A selector, or a whole ref of the same adapter."""
    if "/" not in text:
        return names.selector(text)
    ref = Ref.parse(text)
    if ref.name != name:
        raise Invalid("REQUEST_INVALID", f"version: {text[:160]!r} belongs to a different adapter than '{name}'")
    return ref.selector


# ------------------------------------------------------------------ of a namespace, and of an adapter
for _kind, _owner in deps.OWNERS:
    # The owner is a default, because annotations cannot see the variables of this loop.

    @gate_router.serves(operations.LIST_GATES.of(_kind))
    def list_gates(session: deps.SessionDep, actor: deps.ActorDep, owner: Owner = _owner) -> GateList:
        """List the gates set here."""
        return gates.list_gates(session, actor, owner)

    @gate_router.serves(operations.SHOW_GATE.of(_kind))
    def show_gate(session: deps.SessionDep, actor: deps.ActorDep, alias: str, owner: Owner = _owner) -> GateView:
        """Show the gate in force for an alias."""
        return gates.show_gate(session, actor, owner, alias)

    @gate_router.serves(operations.SET_GATE.of(_kind))
    def set_gate(
        session: deps.SessionDep, actor: deps.ActorDep, alias: str, request: JsonBody[GateSet], owner: Owner = _owner
    ) -> GateView:
        """Set what a version needs before an alias may point at it."""
        return gates.set_gate(session, actor, owner, alias, request.gate, request.reason)

    @gate_router.serves(operations.DELETE_GATE.of(_kind))
    def delete_gate(
        session: deps.SessionDep, actor: deps.ActorDep, alias: str, reason: deps.ReasonDep = "", owner: Owner = _owner
    ) -> GateView:
        """Delete the gate set here. The response is the gate then in force."""
        return gates.set_gate(session, actor, owner, alias, None, reason)


# ------------------------------------------------------------------ one version
@gate_router.serves(operations.CHECK_GATE)
def check_gate(target: deps.VersionDep, alias: str) -> GateCheck:
    """Check what stands between a version and an alias."""
    return gates.check_gate(*target, alias)


@gate_router.serves(operations.LIST_APPROVALS)
def list_approvals(target: deps.VersionDep) -> ApprovalList:
    """List the approvals of a version, and whether each counts."""
    return approvals.list_approvals(*target)


@gate_router.serves(operations.APPROVE_VERSION)
def approve_version(target: deps.VersionDep, request: JsonBody[ApproveRequest]) -> ApprovalView:
    """Approve a version for an alias. One identity approves once; the pusher of the version does not count."""
    approval = NewApproval(Ref(target.name, target.selector), request.alias, request.comment)
    return only(approvals.approve(target.session, target.actor, [approval]))


@gate_router.serves(operations.APPROVE_VERSIONS)
def approve_versions(
    incoming: Request, session: deps.KeyedSessionDep, actor: deps.ActorDep, request: JsonBody[ApprovalGroup]
) -> ApprovalResults:
    """Approve versions of many adapters for aliases."""
    db.begin_writing(session)
    group_id = aliases.begin_group(session, actor, request)
    requested = collect_outcomes(request.items, _read_approval)
    approved = approvals.approve(session, actor, requested, atomic=request.atomic, dry_run=request.dry_run)
    items = outcomes_of(incoming, approved, [item.ref for item in request.items])
    return ApprovalResults(items=[ApprovalOutcome(**item) for item in items], group_id=group_id)


def _read_approval(item: ApproveItem) -> NewApproval:
    return NewApproval(Ref.parse(item.ref), item.alias, item.comment)


# ------------------------------------------------------------------ withdrawal
@router.serves(operations.YANK_VERSION)
def yank_version(target: deps.VersionDep, request: JsonBody[WithdrawRequest]) -> VersionView:
    """Withdraw a version: aliases no longer resolve to it. A digest still does."""
    return withdraw.change_state(*target, "yank", request.reason)


@router.serves(operations.UNYANK_VERSION)
def unyank_version(target: deps.VersionDep, request: JsonBody[WithdrawRequest]) -> VersionView:
    """Undo a yank: aliases resolve to the version again."""
    return withdraw.change_state(*target, "unyank", request.reason)


@router.serves(operations.DELETE_VERSION)
def delete_version(
    target: deps.VersionDep,
    reason: deps.ReasonDep = "",
    force: bool = False,
    dry_run: bool = False,
) -> VersionView:
    """Delete a version. It can be restored within the grace time; its number is never used again."""
    return deletion.delete_version(*target, reason=reason, force=force, dry_run=dry_run)


@router.serves(operations.UNDELETE_VERSION)
def undelete_version(target: deps.VersionDep, request: JsonBody[WithdrawRequest]) -> VersionView:
    """Restore a deleted version, as long as its files are there."""
    return deletion.undelete_version(*target, reason=request.reason)


@gate_router.serves(operations.QUARANTINE_VERSION)
def quarantine_version(target: deps.VersionDep, request: JsonBody[WithdrawRequest]) -> VersionView:
    """Quarantine a version: its bytes are withheld from everyone who may not promote."""
    return withdraw.change_state(*target, "quarantine", request.reason)


@gate_router.serves(operations.UNQUARANTINE_VERSION)
def unquarantine_version(target: deps.VersionDep, request: JsonBody[WithdrawRequest]) -> VersionView:
    """End a quarantine: everyone who may read the version can pull it again. For owners."""
    return withdraw.change_state(*target, "unquarantine", request.reason)
