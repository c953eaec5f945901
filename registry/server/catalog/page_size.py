"""How many versions a page shows: lists of files, facts and findings of 200 would have hundreds of megabytes."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from sqlalchemy import Select, Text, cast, func
from sqlmodel import Session, col, select

from registry.server.catalog import verdicts
from registry.server.database.expressions import any_of
from registry.server.database.models import VerdictRow, VersionRow

PAGE_CHARACTERS = 8 * 2**20
"""Characters of manifests, facts and findings on a page of versions, which has one version at least."""
OF_FACTS = func.length(cast(col(VersionRow.facts), Text))
_OF_VERSION = func.length(VersionRow.manifest) + OF_FACTS
_OF_FINDINGS = (
    select(VerdictRow.version_id, func.sum(func.length(cast(col(VerdictRow.findings), Text))))
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .where(any_of(col(VersionRow.id), parameter="ids"), verdicts.is_newest())
    .group_by(col(VerdictRow.version_id))
)


def fit(session: Session, ordered: Select[Any], limit: int) -> tuple[list[int], str]:
    """The ids of those of these versions that fit on a page of `limit`, and its `next_cursor`. Reads lengths only."""
    columns = (col(VersionRow.id), col(VersionRow.number), _OF_VERSION)
    measured = session.connection().execute(ordered.with_only_columns(*columns).limit(limit + 1)).all()
    ids = [version_id for version_id, _, _ in measured[:limit]]
    of_findings = dict(session.exec(_OF_FINDINGS, params={"ids": ids}).all()) if ids else {}
    count = count_fitting(length + int(of_findings.get(version_id, 0)) for version_id, _, length in measured[:limit])
    return ids[:count], str(measured[count - 1].number) if len(measured) > count else ""


def count_fitting(lengths: Iterable[int]) -> int:
    """How many of these items a page shows: one at least, if there is one."""
    totals = [*accumulate(lengths)]
    return max(sum(total <= PAGE_CHARACTERS for total in totals), min(1, len(totals)))
