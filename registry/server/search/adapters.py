"""Search and list adapters by name, each with a summary of its newest version.

A page shows what the actor may see and costs four statements, one more for each filter, and two more for relatives of a
base. It starts in the index where the last one ended (`next_cursor` is the last name). One that is far from full after
`WINDOW` adapters costs a few more, and ends after `WIDE_WINDOW`: then it may be short, or empty, and not the last.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, tuple_
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import AdapterPage, AdapterView
from registry.bases import BaseMatch
from registry.digest import Digest
from registry.evaluation.verdicts import Check, Outcome
from registry.names import AdapterName
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import base_rows, base_weights, metadata, verdicts, versions
from registry.server.database import db
from registry.server.database.expressions import any_of, without_index
from registry.server.database.models import (
    FACT,
    AdapterMetadataRow,
    AdapterRow,
    AliasRow,
    BaseRow,
    VersionAttributeRow,
    VersionRow,
)
from registry.server.search import candidates, text_index

WINDOW = 2000
WIDE_WINDOW = 10_000
"""How many adapters one page looks at, at most."""
_NAME: Any = (col(AdapterRow.namespace), col(AdapterRow.name))
CLOSEST_FIRST = (BaseMatch.EXACT, BaseMatch.OTHER_DTYPE, BaseMatch.QUANTIZED, BaseMatch.DESCENDANT)


@dataclass(frozen=True, slots=True)
class Search:
    """The filters of a list; empty fields do not filter. Most are about the newest version.

    About the adapter are `alias`, `prefix` (what `namespace/name` begins with) and `owner` (who pushed it first).
    `base`: one base; with `base_match` also bases whose weights are at least that closely related to it.
    `tags`: `key` or `key=value` of tags of the adapter or that version; all must be present. `annotations`: the same,
    of the version's manifest. `text`: words; each must begin a word of the adapter's name, description or tags, or of
    that version's description, tags, annotations, trigger words or card.
    `targets`: modules that it must all change, by the last part of their path (`q_proj`).
    `rank_min`, `rank_max`: limits of the largest rank. `format`: the convention of its tensor names.
    `engine`: a profile whose verdicts are stored. `check`: any other check. Both match a yes (`pass` or `warn`) or,
    with `outcome`, that outcome.
    """

    namespace: str = ""
    base: str = ""
    base_match: BaseMatch | None = None
    method: str = ""
    text: str = ""
    alias: str = ""
    owner: str = ""
    prefix: str = ""
    format: str = ""
    targets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    rank_min: int | None = None
    rank_max: int | None = None
    engine: str = ""
    check: Check | None = None
    outcome: Outcome | None = None


def search_adapters(
    session: Session, actor: Actor, search: Search, *, cursor: str = "", limit: int, count: bool = False
) -> AdapterPage:
    """Adapters by name, from the one that follows `cursor`.

    With `count` also how many match, unless each filter has many and there are more than `WIDE_WINDOW` to look at.
    """
    visible, base_ids = versions.visible(actor), _find_base_ids(session, search)
    match = text_index.match_text(session, search.text, visible) if search.text.strip() else None
    selections = [*_selections(session, search, base_ids), *([match.selection] if match else [])]
    few = candidates.find_few(session, selections, candidates.CANDIDATES_LIMIT)
    within = [visible, *_name_filters(search)]
    statement = _newest().where(*within, *_adapter_filters(search, base_ids), *_version_filters(search))
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


def _find_base_ids(session: Session, search: Search) -> list[int] | None:
    """The bases to search for; None for all. `NotFound` for relatives of a base that is not registered."""
    if not search.base:
        return None
    base_names = [str(names.base_name(search.base))]
    if search.base_match is not None:
        matches = CLOSEST_FIRST[: CLOSEST_FIRST.index(search.base_match) + 1]
        relatives = base_weights.find_relatives(session, base_rows.find(session, base_names[0]))
        base_names += [relative.other for relative in relatives if relative.match in matches]
    return [base_id or 0 for base_id in session.exec(select(BaseRow.id).where(col(BaseRow.name).in_(base_names)))]


def _adapter_filters(search: Search, base_ids: list[int] | None) -> Iterator[ColumnElement[bool]]:
    """The conditions on the adapter, its base and its aliases."""
    if base_ids is not None:
        yield any_of(without_index(VersionRow.base_id), base_ids)
    if search.alias:
        pointing = and_(col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.alias) == search.alias)
        yield exists().where(pointing)
    if search.owner:
        yield without_index(AdapterRow.created_by) == search.owner


def _name_filters(search: Search) -> Iterator[ColumnElement[bool]]:
    """The conditions on the adapter's name, which tell in the order of a list where it begins and ends."""
    if search.namespace:
        yield col(AdapterRow.namespace) == names.namespace(search.namespace)
    if not search.prefix:
        return
    namespace, slash, name = search.prefix.lower().partition("/")
    column, beginning = (col(AdapterRow.name), name) if slash else (col(AdapterRow.namespace), namespace)
    if slash:
        yield col(AdapterRow.namespace) == namespace
    yield column >= beginning
    yield column.startswith(beginning, autoescape=True)


def _selections(session: Session, search: Search, base_ids: list[int] | None) -> Iterator[Any]:
    """What may leave few adapters."""
    if search.prefix:
        yield candidates.with_prefix(session, search.prefix.lower())
    if search.alias:
        yield candidates.with_alias(search.alias)
    if search.owner:
        yield candidates.of_owner(search.owner)
    if base_ids is not None:
        yield candidates.on_bases(base_ids)
    if search.method:
        yield candidates.with_method(search.method)
    if search.rank_min is not None or search.rank_max is not None:
        yield candidates.with_rank(search.rank_min, search.rank_max)
    for key, value in (*_facts(search), *map(_split, search.annotations)):
        yield candidates.with_attribute(key, value)
    for tag in search.tags:
        yield candidates.with_tag(*_split(tag))
    for check, profile in _checks(search):
        yield candidates.with_outcome(check, _outcomes(search), profile)


def _checks(search: Search) -> list[tuple[Check, str]]:
    """The checks and profiles that a version must have an outcome of."""
    engine = [(Check.ENGINE, search.engine)] if search.engine else []
    return engine + ([(search.check, "")] if search.check is not None else [])


def _outcomes(search: Search) -> list[Outcome]:
    return [search.outcome] if search.outcome else [Outcome.PASS, Outcome.WARN]


def _facts(search: Search) -> list[tuple[str, None]]:
    """The facts of the content that a version must have."""
    formats = [f"{FACT}format:{search.format.lower()}"] if search.format else []
    return [(fact, None) for fact in (*formats, *(f"{FACT}target:{target}" for target in search.targets))]


def _split(text: str) -> tuple[str, str | None]:
    """`key=value` or `key`."""
    key, equals, value = text.partition("=")
    return key, value if equals else None


def _version_filters(search: Search) -> Iterator[ColumnElement[bool]]:
    """The conditions on the content of the newest version."""
    if search.method:
        yield without_index(VersionRow.method) == search.method.upper()
    for key, value in (*_facts(search), *map(_split, search.annotations)):
        yield _has_annotation(key, value)
    for tag in search.tags:
        yield metadata.has_tag(*_split(tag))
    if search.rank_min is not None:
        yield without_index(VersionRow.rank) >= search.rank_min
    if search.rank_max is not None:
        yield without_index(VersionRow.rank) <= search.rank_max
    for check, profile in _checks(search):
        yield verdicts.has_outcome(check, _outcomes(search), profile)


def _has_annotation(key: str, value: str | None = None) -> ColumnElement[bool]:
    """The condition that the version has this annotation or fact, which are indexed; JSON is not."""
    conditions = [col(VersionAttributeRow.version_id) == col(VersionRow.id), col(VersionAttributeRow.key) == key]
    return exists().where(*conditions, *([] if value is None else [col(VersionAttributeRow.value) == value]))


def show_adapter(session: Session, actor: Actor, name: AdapterName) -> AdapterView:
    """One adapter with a summary of its newest version."""
    rows = session.exec(_newest().where(versions.has_name(name), versions.visible(actor))).all()
    if not rows:
        raise unknown_adapter(name)
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
