"""The filters of a search, one row each: what they read of a `Search`, and their condition in SQL, twice.

`condition` is exact, and about an adapter joined with its newest version; it keeps planners from an index that would
read too much. `selection` selects the ids of adapters that may match, from an index, whatever their newest version is:
`candidates` reads these first. None where the order of names is read instead.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import eq, ge, le
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, or_, union_all
from sqlmodel import Session, col, select

from registry import names
from registry.api.search import AdapterFilters
from registry.bases import BaseMatch
from registry.evaluation.verdicts import Check, Outcome
from registry.server.catalog import base_rows, base_weights, metadata, verdicts
from registry.server.catalog.search import candidates
from registry.server.database import dialects
from registry.server.database.expressions import any_of, without_index
from registry.server.database.models import (
    FACT,
    AdapterMetadataRow,
    AdapterRow,
    AliasRow,
    BaseRow,
    VerdictRow,
    VersionAttributeRow,
    VersionMetadataRow,
    VersionRow,
)

CLOSEST_FIRST = (BaseMatch.EXACT, BaseMatch.OTHER_DTYPE, BaseMatch.QUANTIZED, BaseMatch.DESCENDANT)


class Search(AdapterFilters):
    """The filters of a list, and another check than that of an engine. It must say yes (`pass` or `warn`) or `outcome`.

    Targets are compared by the last part of a module's path (`q_proj`), formats with the convention of tensor names.
    """

    check: Check | None = None
    label: list[str] = []
    """What a list of the Hub is filtered by: `KEY`, `KEY:VALUE` of a tag or an annotation, or a label of the card."""


@dataclass(frozen=True, slots=True)
class Filter:
    """One filter. `read_values`: what each of its conditions needs; nothing where the search does not use it."""

    read_values: Callable[[Session, Search], Iterable[Any]]
    condition: Callable[[Any], ColumnElement[bool]]
    selection: Callable[[Session, Any], Any] | None
    is_of_name: bool = False
    """Whether it says where in the order of names a list begins and ends."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the filters of one search come to."""

    of_names: list[ColumnElement[bool]]
    others: list[ColumnElement[bool]]
    selections: list[Any]


def build_conditions(session: Session, search: Search) -> Conditions:
    """The conditions of a search, but for its words. `NotFound` for relatives of a base that is not registered."""
    used = [(row, value) for row in FILTERS for value in row.read_values(session, search)]
    return Conditions(
        of_names=[row.condition(value) for row, value in used if row.is_of_name],
        others=[row.condition(value) for row, value in used if not row.is_of_name],
        selections=[row.selection(session, value) for row, value in used if row.selection is not None],
    )


def _owner_of(version_id: Any) -> Any:
    """The id of a version's adapter. Not by a join: PostgreSQL might read all versions for it, or all rows."""
    return select(col(VersionRow.adapter_id)).where(col(VersionRow.id) == version_id).scalar_subquery()


def _optional(
    field: str, convert: Callable[[Any], Any] = lambda value: value
) -> Callable[[Session, Search], list[Any]]:
    """The value of one field, if the search has one."""
    return lambda _, search: [convert(value)] if (value := getattr(search, field)) not in ("", None) else []


def _split(text: str) -> tuple[str, str | None]:
    """`key=value` or `key`."""
    key, equals, value = text.partition("=")
    return key, value if equals else None


def _compare(
    read: Callable[[Session, Search], Iterable[Any]], column: Any, compare: Callable[[Any, Any], Any]
) -> Filter:
    """A filter by a column of the adapter or of its version."""
    owner_id = col(AdapterRow.id) if column.class_ is AdapterRow else col(VersionRow.adapter_id)
    return Filter(
        read,
        lambda value: compare(without_index(column), value),
        lambda _, value: select(owner_id).where(compare(column, value)),
    )


# ------------------------------------------------------------------ names
def _begins(prefix: str) -> ColumnElement[bool]:
    namespace, slash, name = prefix.partition("/")
    column, beginning = (col(AdapterRow.name), name) if slash else (col(AdapterRow.namespace), namespace)
    within = [col(AdapterRow.namespace) == namespace] if slash else []
    return and_(*within, column >= beginning, column.startswith(beginning, autoescape=True))


def _select_beginning(session: Session, prefix: str) -> Any:
    return select(AdapterRow.id).where(*dialects.of(session).adapters_beginning(prefix))


# ------------------------------------------------------------------ bases
def _read_base_ids(session: Session, search: Search) -> Iterator[list[int]]:
    """The bases to search for."""
    if not search.base:
        return
    base_names = [str(names.base_name(search.base))]
    if search.base_match is not None:
        matches = CLOSEST_FIRST[: CLOSEST_FIRST.index(search.base_match) + 1]
        relatives = base_weights.find_relatives(session, base_rows.find(session, base_names[0]))
        base_names += [relative.other for relative in relatives if relative.match in matches]
    yield [base_id or 0 for base_id in session.exec(select(BaseRow.id).where(col(BaseRow.name).in_(base_names)))]


# ------------------------------------------------------------------ facts, annotations and tags
def _read_attributes(_: Session, search: Search) -> list[tuple[str, str | None]]:
    """Key and value of what the version must have; None for any value."""
    formats = [f"{FACT}format:{search.format.lower()}"] if search.format else []
    targets = [f"{FACT}target:{target}" for target in search.target]
    return [*((fact, None) for fact in (*formats, *targets)), *map(_split, search.annotation)]


def _is_attribute(pair: tuple[str, str | None]) -> list[Any]:
    key, value = pair
    of_value = [] if value is None else [col(VersionAttributeRow.value) == value]
    return [col(VersionAttributeRow.key) == key, *of_value]


def _read_tags(_: Session, search: Search) -> list[tuple[tuple[str, str | None], str]]:
    """Key and value of each tag, and the alias of the version that has it; empty for the newest version."""
    return [(_split(text), search.alias) for text in search.tag]


def _is_tagged(tagged: tuple[tuple[str, str | None], str]) -> ColumnElement[bool]:
    pair, alias = tagged
    if not alias:
        return metadata.has_tag(*pair)
    of_adapter = col(AdapterMetadataRow.adapter_id) == col(AdapterRow.id)
    of_version = col(VersionMetadataRow.version_id) == col(AliasRow.version_id)
    of_alias = col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.alias) == alias
    return or_(
        exists().where(of_adapter, *metadata.is_tag(AdapterMetadataRow, *pair)),
        exists().where(*of_alias, of_version, *metadata.is_tag(VersionMetadataRow, *pair)),
    )


def _select_tagged(_: Session, pair: tuple[str, str | None]) -> Any:
    return union_all(*_selects_of_tag(pair))


def _selects_of_tag(pair: tuple[str, str | None]) -> list[Any]:
    of_adapter = select(AdapterMetadataRow.adapter_id).where(*metadata.is_tag(AdapterMetadataRow, *pair))
    of_version = select(_owner_of(VersionMetadataRow.version_id))
    return [of_adapter, of_version.where(*metadata.is_tag(VersionMetadataRow, *pair))]


def _pair_of(label: str) -> tuple[str, str | None]:
    return _split(label.replace(":", "=", 1))


def _has_label(label: str) -> ColumnElement[bool]:
    """The condition on an attribute that it is this label of a card, or this annotation."""
    return or_(*(and_(*_is_attribute(pair)) for pair in ((f"{FACT}label:{label}", None), _pair_of(label))))


def _is_labelled(label: str) -> ColumnElement[bool]:
    of_version = col(VersionAttributeRow.version_id) == col(VersionRow.id)
    return or_(metadata.has_tag(*_pair_of(label)), exists().where(of_version, _has_label(label)))


def _select_labelled(_: Session, label: str) -> Any:
    of_version = select(_owner_of(VersionAttributeRow.version_id)).where(_has_label(label))
    return union_all(*_selects_of_tag(_pair_of(label)), of_version)


# ------------------------------------------------------------------ verdicts
def _read_checks(_: Session, search: Search) -> list[tuple[Check, Sequence[Outcome], str]]:
    """The checks, the outcomes that match, and the profiles."""
    outcomes = [search.outcome] if search.outcome else [Outcome.PASS, Outcome.WARN]
    engine = [(Check.ENGINE, search.engine)] if search.engine else []
    check = [(search.check, "")] if search.check is not None else []
    return [(check, outcomes, profile) for check, profile in engine + check]


def _select_checked(_: Session, checked: tuple[Check, Sequence[Outcome], str]) -> Any:
    """Those for which the check once had such an outcome."""
    check, outcomes, profile = checked
    own = select(_owner_of(VerdictRow.version_id)).where(VerdictRow.check == check, VerdictRow.profile == profile)
    return own.where(col(VerdictRow.outcome).in_(outcomes))


FILTERS = (
    Filter(
        _optional("namespace"), lambda name: col(AdapterRow.namespace) == names.namespace(name), None, is_of_name=True
    ),
    Filter(
        lambda _, search: [search.prefix.lower()] if search.prefix else [], _begins, _select_beginning, is_of_name=True
    ),
    Filter(
        _optional("alias"),
        lambda alias: exists().where(col(AliasRow.adapter_id) == col(AdapterRow.id), col(AliasRow.alias) == alias),
        lambda _, alias: select(AliasRow.adapter_id).where(AliasRow.alias == alias),
    ),
    _compare(_optional("owner"), col(AdapterRow.created_by), eq),
    Filter(
        _read_base_ids,
        lambda base_ids: any_of(without_index(VersionRow.base_id), base_ids),
        lambda _, base_ids: candidates.on_bases(base_ids),
    ),
    _compare(_optional("method", str.upper), col(VersionRow.method), eq),
    _compare(_optional("rank_min"), col(VersionRow.rank), ge),
    _compare(_optional("rank_max"), col(VersionRow.rank), le),
    Filter(
        _read_attributes,
        lambda pair: exists().where(col(VersionAttributeRow.version_id) == col(VersionRow.id), *_is_attribute(pair)),
        lambda _, pair: select(_owner_of(VersionAttributeRow.version_id)).where(*_is_attribute(pair)),
    ),
    Filter(_read_tags, _is_tagged, lambda session, tagged: _select_tagged(session, tagged[0])),
    Filter(lambda _, search: search.label, _is_labelled, _select_labelled),
    Filter(_read_checks, lambda checked: verdicts.has_outcome(*checked), _select_checked),
)
