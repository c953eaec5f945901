"""How many versions a page shows: lists of files, facts and findings of 200 would have hundreds of megabytes."""

from itertools import accumulate
from typing import Any

from sqlalchemy import Select, Text, cast, func
from sqlmodel import Session, col, select

from registry.server.catalog import verdicts
from registry.server.database.expressions import any_of
from registry.server.database.models import VerdictRow, VersionRow

PAGE_CHARACTERS = 8 * 2**20
"""Characters of manifests, facts and findings on a page of versions, which has one version at least."""
_OF_VERSION = func.length(VersionRow.manifest) + func.length(cast(col(VersionRow.facts), Text))
_OF_FINDINGS = (
    select(VerdictRow.version_id, func.sum(func.length(cast(col(VerdictRow.findings), Text))))
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .where(any_of(col(VersionRow.id), parameter="ids"), verdicts.is_newest())
    .group_by(col(VerdictRow.version_id))
)


def fit(session: Session, ordered: Select[Any], limit: int) -> tuple[int, bool]:
    """How many of these versions fit on a page of `limit`, and whether more follow. Reads lengths only."""
    measured = ordered.with_only_columns(col(VersionRow.id), _OF_VERSION).limit(limit + 1)
    lengths = session.connection().execute(measured).all()
    ids = [version_id for version_id, _ in lengths[:limit]]
    of_findings = dict(session.exec(_OF_FINDINGS, params={"ids": ids}).all()) if ids else {}
    totals = accumulate(length + int(of_findings.get(version_id, 0)) for version_id, length in lengths[:limit])
    count = max(sum(total <= PAGE_CHARACTERS for total in totals), min(1, len(lengths)))
    return count, len(lengths) > count
