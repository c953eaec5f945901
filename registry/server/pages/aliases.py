"""The page of an alias: its gate and history; approving and moving it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Query, Request, Response

from registry import names
from registry.api.aliases import AliasMove, ApproveRequest, PromoteRequest, RollbackRequest
from registry.errors import Invalid
from registry.names import NEWEST, AdapterName, Ref
from registry.roles import Scope
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import version_groups, versions
from registry.server.database.models import VersionRow
from registry.server.http.dependencies import ADAPTER, CursorDep, NameDep, SessionDep
from registry.server.http.request_body import limit_body
from registry.server.outcomes import only
from registry.server.pages.rendering import adapter_path, create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, confirm_identity, may_change, read_fields, to_request
from registry.server.pages.sessions.visitors import Visitor, VisitorDep
from registry.server.promotion import alias_deletion, aliases, approvals, gates, moves
from registry.server.promotion.approvals import NewApproval
from registry.server.promotion.move_decisions import Move
from registry.server.serving import status
from registry.server.serving.status import NODES_OF_PAGE, NodeFilter

router = create_router()
ALIAS = ADAPTER + "/aliases/{alias}"
VERSIONS_OFFERED = 30
MOVES_SHOWN = 50
SPANS_SHOWN, WIDTH = 12, 1000
Candidate = Annotated[str, Query(max_length=100)]
Moment = Annotated[str, Query(max_length=40)]


@router.get(ADAPTER + "/aliases")
def find_alias(visitor: VisitorDep, name: NameDep, alias: Candidate = "", version: Candidate = "") -> Response:
    """Lead a form to the page of an alias, also of one that does not exist yet, with a version to check for it."""
    if not visitor.actor.sees(name):
        raise unknown_adapter(name)
    query = f"?version={names.selector(version)}" if version else ""
    return redirect(adapter_path(str(name), rest=f"aliases/{names.alias(alias.strip())}") + query)


@router.get(ALIAS)
def show_alias(
    request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, alias: str, cursor: CursorDep,
    version: Candidate = "", at: Moment = "",
) -> Response:  # fmt: skip
    """Show an alias: what it points at, what a version lacks for it, and its history, also at a moment."""
    alias = names.alias(alias)
    actor = visitor.actor
    pointer = next((p for p in aliases.list_aliases(session, actor, name).items if p.alias == alias), None)
    page = version_groups.list_versions(session, actor, name, limit=VERSIONS_OFFERED)
    candidate = names.selector(version) if version else page.items[0].number
    shows_gate = visitor.signed_in and alias != NEWEST
    checked = gates.check_gate(session, actor, name, candidate, alias) if shows_gate else None
    history = aliases.list_history(session, actor, name, alias=alias, cursor=cursor, limit=MOVES_SHOWN)
    may_promote = alias != NEWEST and may_change(visitor, Scope.PROMOTE, name, alias)
    approved = approvals.list_approvals(session, actor, name, candidate).items if shows_gate else []
    in_effect = _in_effect(session, actor, name, alias, at)
    adapter_id = versions.find_adapter(session, actor, name).id
    target = aliases.find_rollback_targets(session, adapter_id).get(alias) if may_promote else None
    earlier = session.get(VersionRow, target) if target else None
    nodes = status.nodes(session, actor, NodeFilter(alias=alias, adapter=str(name)), limit=NODES_OF_PAGE)
    return render(
        request, "alias.html", title=f"{name}:{alias}", name=name, alias=alias, pointer=pointer, checked=checked,
        requirements=checked.gate.gate.describe() if checked else [], history=history, at=at, cursor=cursor,
        versions=page.items, may_promote=may_promote, approvals=[item for item in approved if item.alias == alias],
        rollback_to=earlier.number if earlier else None, nodes=nodes if visitor.signed_in else None,
        may_break_glass=may_promote and may_change(visitor, Scope.ADMIN, name),
        deletion=_find_deletion(history.moves) if pointer is None and not cursor else None,
        timeline=[] if cursor else build_timeline(history.moves, in_effect["held"]),
        **in_effect,
    )  # fmt: skip


_SECOND, _MILLISECOND = timedelta(seconds=1), timedelta(milliseconds=1)
"""A time is looked up at the end of the second, or millisecond, that the page shows: it is the time of a move, too."""


def _in_effect(session: SessionDep, actor: Actor, name: AdapterName, alias: str, at: str) -> dict[str, Any]:
    """The move that was in effect at a moment, the moment in UTC, or why there is none. A text without zone is UTC."""
    values: dict[str, Any] = {"held": None, "moment": "", "at_problem": ""}
    if not at:
        return values
    try:
        moment = datetime.fromisoformat(at)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
        end = moment + (_MILLISECOND if "." in at else _SECOND) - timedelta(microseconds=1)
    except (ValueError, OverflowError):
        return values | {"at_problem": "This is not a time such as 2026-05-03T14:05."}
    text = moment.isoformat(sep=" ", timespec="milliseconds" if "." in at else "seconds")
    values["moment"] = text.removesuffix("+00:00")
    if moment > datetime.now(UTC):
        return values | {"at_problem": f"{values['moment']} UTC is in the future."}
    moves = aliases.list_history(session, actor, name, alias=alias, at=end, limit=1).moves
    if not moves:
        return values | {"at_problem": f"It pointed at nothing at {values['moment']} UTC."}
    return values | {"held": moves[0]}


def _find_deletion(moves: Sequence[AliasMove]) -> AliasMove | None:
    """The move with which an alias that points at nothing was deleted; None for one that never was."""
    return moves[0] if moves and moves[0].number is None else None


@dataclass(frozen=True, slots=True)
class AliasSpan:
    """How long an alias pointed at a version, and where that is in a drawing that is `WIDTH` wide."""

    number: int | None
    start: datetime
    x: float
    width: float
    is_shown: bool
    is_forced: bool


def build_timeline(moves: Sequence[AliasMove], current: AliasMove | None) -> list[AliasSpan]:
    """The spans between the newest moves to a true scale, oldest first; none for a single one.

    `current` is the move that is looked at.
    """
    spans = list(reversed(moves[:SPANS_SHOWN]))
    if len(spans) < 2:
        return []
    first, now = spans[0].at, datetime.now(UTC)
    scale = WIDTH / max((now - first).total_seconds(), 1.0)
    starts = [max((move.at - first).total_seconds(), 0.0) * scale for move in spans]
    return [
        AliasSpan(move.number, move.at, start, max(end - start, 1.0), move == current, bool(move.broke_glass))
        for move, start, end in zip(spans, starts, [*starts[1:], WIDTH], strict=True)
    ]


@router.post(ALIAS + "/approve")
@limit_body(FORM_BYTES)
def approve_version(request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, alias: str) -> Response:
    """Approve the version that the page has shown, for this alias."""
    fields = _read_choice(request, visitor, name, alias)
    visitor.actor.require(Scope.PROMOTE, name, alias)
    approval = to_request(ApproveRequest, alias=alias, comment=fields.get("comment", ""))
    number = names.selector(fields.get("version", ""))
    only(approvals.approve(session, visitor.actor, [NewApproval(Ref(name, number), alias, approval.comment)]))
    return redirect(adapter_path(str(name), rest=f"aliases/{alias}") + f"?version={number}")


@router.post(ALIAS + "/promote")
@limit_body(FORM_BYTES)
def promote_alias(request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, alias: str) -> Response:
    """Point an alias at a version, through its gate, if it is still where the page has shown it.

    An owner passes a closed gate (`break_glass`) after pasting a token again: a session alone is not enough.
    """
    fields = _read_choice(request, visitor, name, alias)
    visitor.actor.require(Scope.PROMOTE, name, alias)
    breaks_glass = "break_glass" in fields
    move = to_request(PromoteRequest, version=fields.get("version", ""), reason=fields.get("reason", ""))
    if breaks_glass:
        confirm_identity(request, session, visitor, fields.get("token", ""))
    selector, generation = names.selector(move.version), _generation(fields)
    moves.move_alias(
        session, visitor.actor, Move(name, alias, selector, generation, move.reason, breaks_glass, creates_alias=True)
    )
    return redirect(adapter_path(str(name), rest=f"aliases/{alias}"))


@router.post(ALIAS + "/rollback")
@limit_body(FORM_BYTES)
def rollback_alias(request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, alias: str) -> Response:
    """Point an alias back at the version that the page has named, if it is still where the page has shown it."""
    fields = read_fields(request, visitor)
    visitor.actor.require(Scope.PROMOTE, name, alias)
    reason = to_request(RollbackRequest, reason=fields.get("reason", "")).reason
    if not reason.strip():
        raise Invalid("REQUEST_INVALID", "reason: a roll-back needs a reason")
    to = names.selector(fields.get("version", ""))
    moves.move_alias(session, visitor.actor, Move(name, alias, to, _generation(fields), reason, is_rollback=True))
    return redirect(adapter_path(str(name), rest=f"aliases/{alias}"))


@router.post(ALIAS + "/delete")
@limit_body(FORM_BYTES)
def delete_alias(request: Request, session: SessionDep, visitor: VisitorDep, name: NameDep, alias: str) -> Response:
    """Delete an alias that no live node follows, if it is still where the page has shown it."""
    fields = read_fields(request, visitor)
    visitor.actor.require(Scope.PROMOTE, name, alias)
    reason = to_request(RollbackRequest, reason=fields.get("reason", "")).reason
    alias_deletion.delete_alias(session, visitor.actor, name, names.alias(alias), _generation(fields), reason=reason)
    return redirect(adapter_path(str(name), rest=f"aliases/{alias}"))


def _read_choice(request: Request, visitor: Visitor, name: AdapterName, alias: str) -> dict[str, str]:
    """The fields of a form about one version. After an error it comes back for that version, not for a newer one."""
    fields = read_fields(request, visitor)
    path = adapter_path(str(name), rest=f"aliases/{alias}")
    request.state.page_of_form = f"{path}?{urlencode({'version': fields.get('version', '')})}"
    return fields


def _generation(fields: dict[str, str]) -> int:
    text = fields.get("generation", "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid("REQUEST_INVALID", "generation: must be the one that the page has shown")
    return int(text)
