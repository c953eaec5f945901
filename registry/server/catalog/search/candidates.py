"""Candidates of a search: the adapters of a filter that matches few.

A list is read in the order of names until its page is full. If few adapters match, that reads almost all of them. So
the search first reads up to `CANDIDATES_LIMIT` adapters of each filter from an index. If a filter matches no more, the
list is read from its adapters only. If all match more, the next names likely fill a page; if they do not, the search
reads up to `MORE_CANDIDATES_LIMIT` of each filter and keeps those that all of these have: filters that match many may
match few together. Every filter, and who may see what, is still applied to the candidates.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import ColumnElement
from sqlmodel import Session, col, select

from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, VersionRow

CANDIDATES_LIMIT = 2000
MORE_CANDIDATES_LIMIT = 50_000
SELECTIONS_LIMIT = 8
"""How many filters of a search are read so far: a search may have a hundred."""


def find_few(session: Session, selections: Iterable[Any], limit: int) -> ColumnElement[bool] | None:
    """The condition on `adapter` that it is one of the few that a selection of ids has; None if all have many."""
    for statement in selections:
        ids = session.connection().execute(statement.limit(limit + 1)).scalars().all()
        if len(ids) <= limit:
            return any_of(col(AdapterRow.id), ids)
    return None


def find_common(session: Session, selections: Iterable[Any]) -> ColumnElement[bool] | None:
    """The condition on `adapter` that it is one of those that selections have in common; None if each has too many.

    It reads no more selections than it takes, and `SELECTIONS_LIMIT` at most: the others are applied as filters. One of
    more than `MORE_CANDIDATES_LIMIT` leaves nothing out. So a page is empty only if every filter has more.
    """
    common: set[int] | None = None
    for statement in islice(selections, SELECTIONS_LIMIT):
        ids = session.connection().execute(statement.limit(MORE_CANDIDATES_LIMIT + 1)).scalars().all()
        if len(ids) <= MORE_CANDIDATES_LIMIT:
            common = common.intersection(ids) if common is not None else set(ids)
            if len(common) <= CANDIDATES_LIMIT:
                break
    return any_of(col(AdapterRow.id), sorted(common)) if common is not None else None


def on_bases(base_ids: Sequence[int]) -> Any:
    """Those with a version on one of these bases."""
    return select(VersionRow.adapter_id).where(any_of(col(VersionRow.base_id), base_ids))
