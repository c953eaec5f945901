"""Aliases: list and show them, their history, and where a rollback leads. `moves` changes where they point."""

from __future__ import annotations

import difflib
import re
import secrets
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, and_, exists, func, or_
from sqlalchemy import select as plain_select
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry import names
from registry.api import aliases as views
from registry.errors import Invalid, NotFound
from registry.evaluation.gates import GATES
from registry.names import AdapterName
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope
from registry.server import audit
from registry.server.access import namespaces
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import availability, versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, AliasMoveRow, AliasRow, VersionRow
from registry.server.database.models.owner_rules import RuleKind, RuleRow

ROLLBACK = "rollback"
"""Marks a rollback in a history row's evidence."""
NEAR_SPELLING = 0.8
"""How alike two names are, of 1, if one may be a wrong spelling of the other: `prd` of `prod`, not `preprod`."""
_DIGITS = re.compile(r"\d+")
HISTORY_LIMIT = 1000
"""How many moves of an alias a rollback looks back."""
LAST_MOVES_LIMIT = 2000
"""How many moves of all aliases a list of the last ones looks at."""
_NEWEST_MOVES = (
    plain_select(
        col(AliasMoveRow.adapter_id),
        col(AliasMoveRow.alias),
        col(AliasMoveRow.generation),
        col(AliasMoveRow.from_version_id),
        col(AliasMoveRow.to_version_id),
        (cast(Any, AliasMoveRow.evidence)[(0, "check")].as_string() == ROLLBACK).label("is_rollback"),
        func.row_number()
        .over(
            partition_by=(col(AliasMoveRow.adapter_id), col(AliasMoveRow.alias)),
            order_by=col(AliasMoveRow.generation).desc(),
        )
        .label("position"),
    )
    .where(any_of(col(AliasMoveRow.adapter_id), parameter="ids"), any_of(col(AliasMoveRow.alias), parameter="aliases"))
    .subquery()
)
_PAST = (
    plain_select(*_NEWEST_MOVES.c[:-1])
    .where(_NEWEST_MOVES.c.position <= HISTORY_LIMIT)
    .order_by(_NEWEST_MOVES.c.generation)
)


def list_aliases(session: Session, actor: Actor, name: AdapterName) -> views.AliasList:
    """The aliases of an adapter, by name."""
    adapter = versions.find_adapter(session, actor, name)
    statement = (
        select(AliasRow, VersionRow.number, VersionRow.digest)
        .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
        .where(col(AliasRow.adapter_id) == adapter.id)
        .order_by(col(AliasRow.alias))
    )
    rows = session.exec(statement).all()
    return views.AliasList(
        items=[db.to_view(row, views.AliasView, number=number, digest=digest) for row, number, digest in rows]
    )


def show(session: Session, actor: Actor, name: AdapterName, alias: str) -> views.AliasView:
    """One alias of an adapter."""
    adapter = versions.find_adapter(session, actor, name)
    row = session.get(AliasRow, (adapter.id, alias), populate_existing=True)
    if row is None:
        raise unknown_alias(name, alias)
    version = session.get_one(VersionRow, row.version_id)
    return db.to_view(row, views.AliasView, number=version.number, digest=version.digest)


def unknown_alias(name: AdapterName, alias: str) -> NotFound:
    """The error for an alias that the adapter does not have."""
    parameters = {"adapter": str(name), "alias": alias}
    return NotFound("ALIAS_UNKNOWN", f"adapter '{name}' has no alias '{alias}'", parameters=parameters)


def misspelt_alias(name: AdapterName, alias: str, other: str) -> NotFound:
    """The error for a new alias that resembles one in use."""
    message = f"adapter '{name}' has no alias '{alias}', which looks like '{other}'"
    return NotFound("ALIAS_UNKNOWN", message, next_step=NextStep(StepKind.CREATE_ALIAS, str(name), other))


def find_resembled(session: Session, new: Collection[tuple[AdapterName, int, str]]) -> dict[tuple[int, str], str]:
    """The id of an adapter and a new alias → the name of which that is a near spelling, if there is one.

    Names in use are the aliases of the adapter and those with a gate. Names that differ in digits alone are a series.
    """
    if not new:
        return {}
    ids, namespaces_of = sorted({key for _, key, _ in new}), sorted({name.namespace for name, _, _ in new})
    used: dict[int | str, set[str]] = defaultdict(set)
    pointers = select(AliasRow.adapter_id, AliasRow.alias).where(any_of(col(AliasRow.adapter_id), ids))
    for adapter_id, alias in session.exec(pointers):
        used[adapter_id].add(alias)
    ruled = or_(any_of(col(RuleRow.adapter_id), ids), any_of(col(RuleRow.namespace), namespaces_of))
    gated = select(RuleRow.adapter_id, RuleRow.namespace, RuleRow.alias).where(RuleRow.kind == RuleKind.GATE, ruled)
    for of_adapter, namespace, alias in session.exec(gated):
        used[of_adapter or namespace or ""].add(alias)
    return {
        (adapter_id, alias): _resembled(alias, GATES.keys() | used[adapter_id] | used[name.namespace])
        for name, adapter_id, alias in new
    }


def _resembled(alias: str, used: set[str]) -> str:
    if alias in used:
        return ""
    others = sorted(other for other in used if _DIGITS.sub("", other) != _DIGITS.sub("", alias))
    return "".join(difflib.get_close_matches(alias, others, n=1, cutoff=NEAR_SPELLING))


def find_deleted(session: Session, adapter_id: int | None, limit: int) -> list[str]:
    """The names of deleted aliases of an adapter, whose history stays."""
    exists_now = exists().where(
        col(AliasRow.adapter_id) == col(AliasMoveRow.adapter_id), col(AliasRow.alias) == col(AliasMoveRow.alias)
    )
    statement = select(AliasMoveRow.alias).where(AliasMoveRow.adapter_id == adapter_id, ~exists_now).distinct()
    return list(session.exec(statement.order_by(AliasMoveRow.alias).limit(limit)))


def list_history(
    session: Session, actor: Actor, name: AdapterName, *,
    alias: str = "", at: datetime | None = None, cursor: str = "", limit: int,
) -> views.History:  # fmt: skip
    """The moves of one alias or of all, newest first. With `at`, the one move per alias that was in effect then."""
    if not actor.sees(name):
        raise unknown_adapter(name)
    moves, next_cursor = _read_moves(session, versions.has_name(name), alias, at, cursor, limit)
    if not moves:
        versions.find_adapter(session, actor, name)  # raises if there is no such adapter
    return views.History(
        name=str(name), moves=[views.AliasMove(**move.model_dump(exclude={"name"})) for move in moves],
        next_cursor=next_cursor,
    )  # fmt: skip


def list_namespace_history(
    session: Session, actor: Actor, namespace: str, *,
    alias: str = "", at: datetime | None = None, cursor: str = "", limit: int,
) -> views.NamespaceHistory:  # fmt: skip
    """List the history of all adapters of a namespace. What held at a moment is in the order of adapters."""
    actor.require_in(Scope.PULL, namespace)
    moves, next_cursor = _read_moves(session, col(AdapterRow.namespace) == namespace, alias, at, cursor, limit)
    if not moves:
        namespaces.show(session, actor, namespace)  # raises if there is no such namespace
    return views.NamespaceHistory(namespace=namespace, moves=moves, next_cursor=next_cursor)


def list_last_moves(session: Session, actor: Actor, *, limit: int) -> list[views.NamespaceMove]:
    """The newest moves of aliases other than `main` that the actor may see, among the last of all."""
    newest = plain_select(col(AliasMoveRow.at)).order_by(col(AliasMoveRow.at).desc())
    since = session.execute(newest.offset(LAST_MOVES_LIMIT).limit(1)).scalar()
    of = [versions.visible(actor), col(AliasMoveRow.alias) != names.NEWEST]
    of += [col(AliasMoveRow.at) > since] if since is not None else []
    return _read_moves(session, and_(*of), "", None, "", limit)[0]


def list_moves(
    session: Session, actor: Actor, *, group_id: str, namespace: str, alias: str, by: str, since: datetime | None,
    cursor: str = "", limit: int,
) -> views.MovePage:  # fmt: skip
    """The moves of a group, or since a time in a namespace, of adapters that the actor may see; newest first."""
    if not group_id and not (namespace and since):
        raise Invalid("REQUEST_INVALID", "group_id: name the group of the moves, or a namespace and a time (since)")
    conditions = [versions.visible(actor)]
    conditions += [col(AliasMoveRow.group_id) == group_id] if group_id else []
    conditions += [col(AdapterRow.namespace) == namespace] if namespace else []
    conditions += [col(AliasMoveRow.actor) == by] if by else []
    conditions += [col(AliasMoveRow.at) >= _in_utc("since", since)] if since else []
    moves, next_cursor = _read_moves(session, and_(*conditions), alias, None, cursor, limit)
    return views.MovePage(items=moves, next_cursor=next_cursor)


def begin_group(session: Session, actor: Actor, request: views.GroupRequest) -> str:
    """The id of the group that a request begins or continues, which its moves and events get; empty for a dry run."""
    if request.dry_run:
        return ""
    others = select(AliasMoveRow.actor).where(AliasMoveRow.group_id == request.group_id).limit(1)
    if request.group_id and session.exec(others.where(AliasMoveRow.actor != actor.identity)).first():
        raise Invalid("REQUEST_INVALID", f"group_id: {request.group_id!r} is a group of changes of somebody else")
    group_id = request.group_id or "grp_" + secrets.token_hex(8)
    session.info[audit.GROUP_ID] = group_id
    return group_id


def _read_moves(
    session: Session, of: ColumnElement[bool], alias: str, at: datetime | None, cursor: str, limit: int
) -> tuple[list[views.NamespaceMove], str]:
    """A page of moves of adapters, and the cursor of the next one."""
    before, after = aliased(VersionRow), aliased(VersionRow)
    statement = (
        plain_select(
            AliasMoveRow,
            col(AdapterRow.namespace),
            col(AdapterRow.name),
            col(before.number),
            col(after.number),
            col(after.digest),
        )
        .outerjoin(before, col(before.id) == col(AliasMoveRow.from_version_id))
        .outerjoin(after, col(after.id) == col(AliasMoveRow.to_version_id))
        .join(AdapterRow, col(AdapterRow.id) == col(AliasMoveRow.adapter_id))
        .where(of)
    )
    if alias:
        statement = statement.where(col(AliasMoveRow.alias) == alias)
    if at is not None:
        statement = statement.where(*_in_effect_at(at)).order_by(col(AdapterRow.name))
    offset = versions.parse_cursor(cursor)  # the moves of a namespace are sorted for each page, and people read few
    newest_first = (col(AliasMoveRow.at).desc(), col(AliasMoveRow.alias), col(AliasMoveRow.generation).desc())
    statement = statement.order_by(*newest_first)
    rows = session.exec(cast(Any, statement.offset(offset).limit(limit + 1))).all()
    moves = [
        db.to_view(
            move, views.NamespaceMove, name=f"{namespace}/{name}", from_number=before, number=number, digest=digest
        )
        for move, namespace, name, before, number, digest in rows[:limit]
    ]
    return moves, str(offset + limit) if len(rows) > limit else ""


def _in_utc(field: str, at: datetime) -> datetime:
    if at.tzinfo is None:
        raise Invalid("REQUEST_INVALID", f"{field}: a time needs its zone, as in 2026-05-03T14:05:00+00:00")
    try:
        return at.astimezone(UTC)
    except OverflowError as e:
        raise Invalid("REQUEST_INVALID", f"{field}: a time in UTC has a year from 1 to 9999") from e


def _in_effect_at(at: datetime) -> tuple[ColumnElement[bool], ...]:
    at = _in_utc("at", at)
    later = aliased(AliasMoveRow)
    superseded = exists().where(
        and_(
            col(later.adapter_id) == col(AliasMoveRow.adapter_id),
            col(later.alias) == col(AliasMoveRow.alias),
            col(later.generation) > col(AliasMoveRow.generation),
            col(later.at) <= at,
        )
    )
    return (col(AliasMoveRow.at) <= at, ~superseded)


@dataclass(frozen=True, slots=True)
class PastMove:
    """A move, as far as rollbacks depend on it."""

    adapter_id: int
    alias: str
    generation: int
    from_version_id: int | None
    to_version_id: int | None
    is_rollback: bool | None


def read_past(session: Session, params: dict[str, Any]) -> Iterator[PastMove]:
    """The newest moves of these aliases, oldest first."""
    return (PastMove(*row) for row in session.connection().execute(_PAST, params))


def earlier_ids(version_id: int | None, past: Iterable[PastMove]) -> Iterator[int]:
    """The versions that an alias held before this one, newest first.

    Two rollbacks go back two versions: a rollback does not count as the move that brought a version.
    """
    came_from = {row.to_version_id: row.from_version_id for row in past if not row.is_rollback}
    visited = {version_id}
    while (version_id := came_from.get(version_id)) is not None and version_id not in visited:
        yield version_id
        visited.add(version_id)


def find_rollback_targets(session: Session, adapter_id: int | None) -> dict[str, int]:
    """Alias → the version that a rollback returns to, of the aliases of an adapter but `main` that have one."""
    current = select(AliasRow.alias, AliasRow.version_id).where(AliasRow.adapter_id == adapter_id)
    released = dict(session.exec(current.where(AliasRow.alias != names.NEWEST)).all())
    params = {"ids": [adapter_id or 0], "aliases": sorted(released)}
    history: dict[str, list[PastMove]] = {alias: [] for alias in released}
    for row in read_past(session, params) if released else ():
        history[row.alias].append(row)
    earlier = {alias: [*earlier_ids(released[alias], past)] for alias, past in history.items()}
    unavailable = select(VersionRow.id).where(VersionRow.adapter_id == adapter_id, availability.WITHDRAWN)
    skipped = set(session.exec(unavailable)) if any(earlier.values()) else set()
    available = {alias: [i for i in ids if i not in skipped] for alias, ids in earlier.items()}
    return {alias: ids[0] for alias, ids in available.items() if ids}
