"""The adapters that one filter of a search leaves, if they are few.

A list is read in the order of names until a page is full. If few adapters match, that would read all others, too. So
each filter that has an index is asked for up to `CANDIDATES_LIMIT` adapters, and if there are no more, the list is read
of these. If there are more, a page of them is near. They are candidates: the search still applies every filter, and who
may see what.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, literal_column, union_all
from sqlmodel import Session, col, select

from registry.evaluation.verdicts import Check, Outcome
from registry.server.catalog import metadata
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    AdapterMetadataRow,
    AdapterRow,
    AliasRow,
    VerdictRow,
    VersionAttributeRow,
    VersionMetadataRow,
    VersionRow,
)

CANDIDATES_LIMIT = 2000
_FAIL: ColumnElement[str] = literal_column(f"'{Outcome.FAIL}'")
"""A literal, not a parameter: only so the planner takes the index of failures."""


def find_few(session: Session, selections: Iterable[Any]) -> ColumnElement[bool] | None:
    """The condition on `adapter` that it is one of the few that a selection of ids has; None if all have many."""
    for statement in selections:
        ids = session.connection().execute(statement.limit(CANDIDATES_LIMIT + 1)).scalars().all()
        if len(ids) <= CANDIDATES_LIMIT:
            return any_of(col(AdapterRow.id), ids)
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
    own = select(_OF_VERSION).join(VersionAttributeRow, col(VersionAttributeRow.version_id) == col(VersionRow.id))
    own = own.where(VersionAttributeRow.key == key)
    return own if value is None else own.where(VersionAttributeRow.value == value)


def with_tag(key: str, value: str | None = None) -> Any:
    """Those with this tag, or with a version that has it."""
    of_adapter = select(AdapterMetadataRow.adapter_id).where(*metadata.is_tag(AdapterMetadataRow, key, value))
    of_version = select(_OF_VERSION).join(VersionMetadataRow, col(VersionMetadataRow.version_id) == col(VersionRow.id))
    return union_all(of_adapter, of_version.where(*metadata.is_tag(VersionMetadataRow, key, value)))


def with_failure(check: Check, profile: str = "") -> Any:
    """Those with a version that has once failed this check."""
    failed = select(_OF_VERSION).join(VerdictRow, col(VerdictRow.version_id) == col(VersionRow.id))
    return failed.where(VerdictRow.check == check, VerdictRow.profile == profile, col(VerdictRow.outcome) == _FAIL)
