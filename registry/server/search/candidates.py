"""Candidates of a search: the adapters of a filter that matches few.

A list is read in the order of names until its page is full. If few adapters match, that reads almost all of them. So
the search first reads up to `CANDIDATES_LIMIT` adapters of each filter from an index. If a filter matches no more, the
list is read from its adapters only. If all match more, the next names likely fill a page; if they do not, the search
reads up to `MORE_CANDIDATES_LIMIT` of each filter and keeps those that all of these have: filters that match many may
match few together. Every filter, and who may see what, is still applied to the candidates.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement, literal_column, union_all
from sqlmodel import Session, col, select

from registry.evaluation.verdicts import Check, Outcome
from registry.server.catalog import metadata
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    ADAPTER_PATH,
    AdapterMetadataRow,
    AdapterRow,
    AliasRow,
    VerdictRow,
    VersionAttributeRow,
    VersionMetadataRow,
    VersionRow,
)

CANDIDATES_LIMIT = 2000
MORE_CANDIDATES_LIMIT = 50_000
COMMON_LIMIT = 5000
SELECTIONS_LIMIT = 8
"""How many filters of a search are read so far: a search may have a hundred."""
_AFTER_EVERY_NAME = "~"
"""Sorts by bytes after every character of a name."""
_PATH: ColumnElement[str] = literal_column(ADAPTER_PATH)


def find_few(session: Session, selections: Iterable[Any], limit: int) -> ColumnElement[bool] | None:
    """The condition on `adapter` that it is one of the few that a selection of ids has; None if all have many."""
    for statement in selections:
        ids = session.connection().execute(statement.limit(limit + 1)).scalars().all()
        if len(ids) <= limit:
            return any_of(col(AdapterRow.id), ids)
    return None


def find_common(session: Session, selections: Iterable[Any]) -> ColumnElement[bool] | None:
    """The condition on `adapter` that it is one of those that selections have in common; None if they are many.

    It reads no more selections than it takes, and `SELECTIONS_LIMIT` at most: the others are applied as filters. One of
    more than `MORE_CANDIDATES_LIMIT` leaves nothing out.
    """
    common: set[int] | None = None
    for statement in islice(selections, SELECTIONS_LIMIT):
        ids = session.connection().execute(statement.limit(MORE_CANDIDATES_LIMIT + 1)).scalars().all()
        if len(ids) <= MORE_CANDIDATES_LIMIT:
            common = common.intersection(ids) if common is not None else set(ids)
            if len(common) <= COMMON_LIMIT:
                return any_of(col(AdapterRow.id), sorted(common))
    return None


_OF_VERSION = col(VersionRow.adapter_id)


def with_alias(alias: str) -> Any:
    """Those that have this alias."""
    return select(AliasRow.adapter_id).where(AliasRow.alias == alias)


def of_owner(owner: str) -> Any:
    """Those that this identity pushed first."""
    return select(AdapterRow.id).where(AdapterRow.created_by == owner)


def on_bases(base_ids: Sequence[int]) -> Any:
    """Those with a version on one of these bases."""
    return select(_OF_VERSION).where(any_of(col(VersionRow.base_id), base_ids))


def with_method(method: str) -> Any:
    """Those with a version of this method, which is stored in upper case."""
    return select(_OF_VERSION).where(VersionRow.method == method.upper())


def with_rank(least: int | None, most: int | None) -> Any:
    """Those with a version whose largest rank is in this range."""
    limits = [] if least is None else [col(VersionRow.rank) >= least]
    return select(_OF_VERSION).where(*limits, *([] if most is None else [col(VersionRow.rank) <= most]))


def with_attribute(key: str, value: str | None = None) -> Any:
    """Those with a version that has this annotation or fact."""
    own = select(_owner_of(VersionAttributeRow.version_id)).where(VersionAttributeRow.key == key)
    return own if value is None else own.where(VersionAttributeRow.value == value)


def with_tag(key: str, value: str | None = None) -> Any:
    """Those with this tag, or with a version that has it."""
    of_adapter = select(AdapterMetadataRow.adapter_id).where(*metadata.is_tag(AdapterMetadataRow, key, value))
    of_version = select(_owner_of(VersionMetadataRow.version_id))
    return union_all(of_adapter, of_version.where(*metadata.is_tag(VersionMetadataRow, key, value)))


def with_outcome(check: Check, outcomes: Collection[Outcome], profile: str = "") -> Any:
    """Those with a version for which this check once had one of these outcomes."""
    own = select(_owner_of(VerdictRow.version_id)).where(VerdictRow.check == check, VerdictRow.profile == profile)
    return own.where(col(VerdictRow.outcome).in_(outcomes))


def _owner_of(version_id: Any) -> Any:
    """The id of a version's adapter. Not by a join: PostgreSQL might read all versions for it, or all rows."""
    return select(_OF_VERSION).where(col(VersionRow.id) == version_id).scalar_subquery()


def with_prefix(session: Session, prefix: str) -> Any:
    """Those whose name begins so. An index in the order of bytes has a range of them, whatever the collation."""
    namespace, slash, name = prefix.partition("/")
    ids = select(AdapterRow.id)
    if not db.is_sqlite(session):
        end = _PATH.bool_op("~<~")(prefix + _AFTER_EVERY_NAME)
        return ids.where(_PATH.bool_op("~>=~")(prefix), end)
    column, beginning = (col(AdapterRow.name), name) if slash else (col(AdapterRow.namespace), namespace)
    within = [AdapterRow.namespace == namespace] if slash else []
    return ids.where(*within, column >= beginning, column < beginning + _AFTER_EVERY_NAME)
