"""Verdicts as rows: appended, never changed; of each check and profile the newest one counts."""

from __future__ import annotations

from typing import Any

from registry.evaluation.verdicts import Verdict
from registry.server.database import db
from registry.server.database.models import BaseRow, VerdictRow, VersionRow

_AS_STORED = (
    *("check", "base_fingerprint", "profile", "outcome", "findings"),
    *("summary", "report", "made_by", "made_at"),
)


def to_row(verdict: Verdict, version: VersionRow, base: BaseRow, *, job_id: str = "") -> VerdictRow:
    """A verdict as the row to append; `made_at` is now where the verdict has none."""
    return VerdictRow(
        version_id=version.id or 0,
        check=verdict.check,
        profile=verdict.profile,
        base_id=base.id or 0,
        base_fingerprint=verdict.base_fingerprint,
        outcome=verdict.outcome,
        findings=[finding.model_dump(mode="json") for finding in verdict.findings],
        summary=verdict.summary,
        report=verdict.report,
        made_by=verdict.made_by,
        made_at=verdict.made_at or db.now(),
        job_id=job_id,
    )


def from_row(row: VerdictRow, subject: str, base: str) -> Verdict:
    """A row as the verdict that it was, on the version `subject` (its digest) and the base of this name."""
    stored: dict[str, Any] = {column: getattr(row, column) for column in _AS_STORED}
    return Verdict.model_validate(stored | {"subject": subject, "base": base})
