"""Search and list adapters by name, each with a summary of its newest version.

A page shows what the actor may see and costs four statements, one more for each filter, and two more for relatives of a
base. It starts in the index where the last one ended (`next_cursor` is the last name). One that is far from full after
`WINDOW` adapters costs a few more, and ends after `WIDE_WINDOW`: then it may be short, or empty, and not the last.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, literal, tuple_, union_all
from sqlalchemy import select as plain_select
from sqlmodel import Session, col, select

from registry.api.catalog import AdapterPage, AdapterView
from registry.digest import Digest
from registry.names import AdapterName
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import metadata, verdicts, versions
from registry.server.catalog.search import candidates, filters, text_index
from registry.server.catalog.search.filters import Search
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    AdapterMetadataRow,
    AdapterRow,
    AliasRow,
    BaseRow,
    VersionRow,
)

WINDOW = 2000
WIDE_WINDOW = 10_000
"""How many adapters one page looks at, at most."""
COUNT_LIMIT = 1000
"""How many adapters of a namespace are counted."""
_NAME: Any = (col(AdapterRow.namespace), col(AdapterRow.name))


def search_adapters(
    session: Session, actor: Actor, search: Search, *, cursor: str = "", limit: int, count: bool = False
) -> AdapterPage:
    """Adapters by name, from the one that follows `cursor`.

    With `count` also how many match, unless each filter has many and there are more than `WIDE_WINDOW` to look at.
    """
    visible, conditions = versions.visible(actor), filters.build_conditions(session, search)
    match = text_index.match_text(session, search.text, visible) if search.text.strip() else None
    selections = [*conditions.selections, *([match.selection] if match else [])]
    few = candidates.find_few(session, selections, candidates.CANDIDATES_LIMIT)
    within = [visible, *conditions.of_names]
    statement = _newest().where(*within, *conditions.others)
    statement = statement if few is None else statement.where(few)
    total = None
    if count and (few is not None or _find_end(session, within, WIDE_WINDOW + 1) is None):
        total = db.count_rows(session, statement.where(match.to_count) if match else statement)
    statement = statement.where(match.to_list) if match else statement
    if cursor:
        last = AdapterName.parse(cursor)
        within.append(tuple_(*_NAME) > tuple_(last.namespace, last.name))
        statement = statement.where(within[-1])
    ordered = statement.order_by(*_NAME).limit(limit + 1)
    if few is None and selections:
        rows, end = _read_windows(session, ordered, selections, within, limit)
    else:
        rows, end = session.exec(ordered).all(), ""
    items = _views(session, rows[:limit])
    return AdapterPage(items=items, next_cursor=items[-1].name if len(rows) > limit else end, total=total)


def list_recent(
    session: Session, actor: Actor, search: Search, *, is_failing: bool = False, cursor: str = "", limit: int
) -> AdapterPage:
    """Adapters with the last push first, `is_failing`: only those whose newest version failed a check.

    Of very many adapters only those count that were pushed last. `cursor` is a position.
    """
    visible, conditions = versions.visible(actor), filters.build_conditions(session, search)
    match = text_index.match_text(session, search.text, visible) if search.text.strip() else None
    selections = [*conditions.selections, *([match.selection] if match else [])]
    within = [visible, *conditions.of_names]
    few = candidates.find_few(session, selections, candidates.CANDIDATES_LIMIT)
    statement = _newest().where(*within, *conditions.others, _find_last_pushed(session, within) if few is None else few)
    statement = statement.where(match.to_list) if match else statement
    statement = statement.where(verdicts.has_failed()) if is_failing else statement
    offset = versions.parse_cursor(cursor)
    ordered = statement.order_by(col(AdapterRow.updated_at).desc(), col(AdapterRow.id).desc())
    rows = session.exec(ordered.offset(offset).limit(limit + 1)).all()
    return AdapterPage(items=_views(session, rows[:limit]), next_cursor=str(offset + limit) * (len(rows) > limit))


def _find_last_pushed(session: Session, within: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    """The condition on `adapter` that it is within, if that is few, or else one of those that were pushed last."""
    ids = session.exec(select(AdapterRow.id).where(*within).limit(WINDOW + 1)).all()
    if len(ids) > WINDOW:
        newest = select(AdapterRow.id).order_by(col(AdapterRow.updated_at).desc(), col(AdapterRow.id).desc())
        ids = session.exec(newest.limit(WINDOW)).all()
    return any_of(col(AdapterRow.id), ids)


def count_in_namespaces(session: Session, namespaces: Sequence[str]) -> dict[str, int]:
    """Namespace → how many adapters it has, `COUNT_LIMIT` at most."""
    counted = [
        plain_select(literal(namespace).label("namespace"), func.count().label("adapters")).select_from(
            select(AdapterRow.id).where(AdapterRow.namespace == namespace).limit(COUNT_LIMIT).subquery()
        )
        for namespace in namespaces
    ]
    rows = session.connection().execute(union_all(*counted)) if counted else ()
    return {row.namespace: row.adapters for row in rows}


def _read_windows(
    session: Session, ordered: Any, selections: Sequence[Any], within: Sequence[ColumnElement[bool]], limit: int
) -> tuple[Sequence[Any], str]:
    """The rows of a page if each filter has many adapters, and where a short page ended although others follow.

    The page may be among the first adapters. If it is not, the filters may have few adapters in common. Else more
    adapters are read, but not all: a filter may match very many, and few of those that the actor may see.
    """
    end = _find_end(session, within, WINDOW)
    rows = session.exec(_up_to(ordered, end)).all()
    if len(rows) > limit or end is None:
        return rows, ""
    common = candidates.find_common(session, selections)
    if common is not None:
        return session.exec(ordered.where(common)).all(), ""
    end = _find_end(session, within, WIDE_WINDOW)
    rows = session.exec(_up_to(ordered, end)).all()
    return rows, "" if end is None else str(end)


def _find_end(session: Session, within: Sequence[ColumnElement[bool]], window: int) -> AdapterName | None:
    """The last adapter of this window, read from the index of names; None if it holds all."""
    in_order = select(*_NAME).where(*within).order_by(*_NAME)
    last = session.exec(in_order.offset(window - 1).limit(1)).first()
    return AdapterName(*last) if last else None


def _up_to(ordered: Any, end: AdapterName | None) -> Any:
    return ordered if end is None else ordered.where(tuple_(*_NAME) <= tuple_(end.namespace, end.name))


def show_adapter(session: Session, actor: Actor, name: AdapterName) -> AdapterView:
    """One adapter with a summary of its newest version."""
    rows = session.exec(_newest().where(versions.has_name(name), versions.visible(actor))).all()
    if not rows:
        raise versions.missing_adapter(session, actor, name) if actor.sees(name) else unknown_adapter(name)
    return _views(session, rows)[0]


def _newest() -> Any:
    """Select what a summary shows of adapters, their newest version and its base: columns, since rows cost more."""
    return (
        select(  # type: ignore[call-overload]  # SQLModel has names for four columns
            col(AdapterRow.id).label("adapter_id"), AdapterRow.namespace, AdapterRow.name, AdapterRow.newest_number,
            AdapterRow.updated_at, col(VersionRow.id).label("version_id"), VersionRow.number, VersionRow.digest,
            VersionRow.method, VersionRow.rank, VersionRow.size_bytes, col(BaseRow.name).label("base"),
        )
        .select_from(AdapterRow)
        .join(VersionRow, versions.is_newest())
        .join(BaseRow, col(BaseRow.id) == col(VersionRow.base_id))
    )  # fmt: skip


_ALIASES = (
    select(AliasRow.adapter_id, AliasRow.alias, VersionRow.number)
    .join(VersionRow, col(VersionRow.id) == col(AliasRow.version_id))
    .where(any_of(col(AliasRow.adapter_id), parameter="ids"))
    .order_by(col(AliasRow.alias))
)


def _views(session: Session, rows: Sequence[Any]) -> list[AdapterView]:
    adapter_ids = [row.adapter_id for row in rows]
    aliases: dict[int, dict[str, int]] = defaultdict(dict)
    for adapter_id, alias, number in session.exec(_ALIASES, params={"ids": adapter_ids}):
        aliases[adapter_id][alias] = number
    outcomes = verdicts.newest_outcomes(session, [row.version_id for row in rows])
    described = metadata.read(session, AdapterMetadataRow, adapter_ids)
    return [
        AdapterView(
            name=f"{row.namespace}/{row.name}",
            versions=row.newest_number,
            newest=row.number,
            digest=Digest(row.digest),
            base=row.base,
            method=row.method,
            rank=row.rank,
            size_bytes=row.size_bytes,
            aliases=aliases[row.adapter_id],
            verdicts=outcomes[row.version_id],
            updated_at=row.updated_at,
            **described[row.adapter_id],
        )
        for row in rows
    ]
