"""Verdicts as rows: appended, never changed. Of each check and profile the newest one counts.

The registry's own verdicts and those of the version's namespace (`by_owner`) are kept apart: none replaces the other.
"""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ColumnElement, exists, func
from sqlmodel import Session, col, select

from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.next_steps import NextStep, StepKind
from registry.server.actors import TRUSTED, Actor
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import BaseRow, VerdictRow, VersionRow

_SHARED_COLUMNS = sorted(set(Verdict.model_fields) - {"subject", "base", "reported_by"})


def to_row(verdict: Verdict, version_id: int | None, base_id: int, *, job_id: str = "") -> VerdictRow:
    """The row to append for a verdict on a version; `made_at` is now if the verdict has none."""
    columns: dict[str, Any] = {name: getattr(verdict, name) for name in _SHARED_COLUMNS}
    columns["findings"] = [finding.to_dict() for finding in verdict.findings]
    columns["made_at"] = verdict.made_at or db.now()
    columns["judged_by"] = verdict.reported_by
    return db.new_row(VerdictRow, version_id=version_id or 0, base_id=base_id, job_id=job_id, **columns)


def from_row(row: Any, subject: str, base: str) -> Verdict:
    """The verdict of a `VerdictRow`, or of its columns, about the version with the digest `subject` on this base."""
    stored: dict[str, Any] = {column: getattr(row, column, ()) for column in _SHARED_COLUMNS}
    return Verdict.model_validate(stored | {"subject": subject, "base": base, "reported_by": row.judged_by})


def is_newest() -> ColumnElement[bool]:
    """The condition on `verdict`, beside `version`, that no newer one of the same check, profile and author exists."""
    other = VerdictRow.__table__.alias("newest")  # type: ignore[attr-defined]
    newest = (
        select(func.max(other.c.id))
        .where(other.c.version_id == col(VersionRow.id))
        .group_by(other.c.check, other.c.profile, other.c.by_owner)
        .correlate(VersionRow)
    )
    return col(VerdictRow.id).in_(newest)


def is_current(check: Check, profile: str = "") -> ColumnElement[bool]:
    """The condition on `verdict`, beside `version`, that it is the registry's own newest one of this check."""
    other = VerdictRow.__table__.alias("newest")  # type: ignore[attr-defined]
    same = (other.c.version_id == col(VersionRow.id), other.c.check == check, other.c.profile == profile)
    newest = select(func.max(other.c.id)).where(*same, other.c.by_owner.is_(False)).correlate(VersionRow)
    return col(VerdictRow.id) == newest.scalar_subquery()


def has_outcome(check: Check, outcomes: Collection[Outcome], profile: str = "") -> ColumnElement[bool]:
    """The condition on `version` that the registry's newest verdict of this check has one of these outcomes."""
    current = exists().where(is_current(check, profile), col(VerdictRow.outcome).in_(outcomes))
    return current.correlate(VersionRow)


def has_failed() -> ColumnElement[bool]:
    """The condition on `version` that one of its verdicts that count is a failure."""
    return exists().where(is_newest(), col(VerdictRow.outcome) == Outcome.FAIL).correlate(VersionRow)


# Without checks that only a newer release knows: one may write verdicts beside this release during an upgrade.
_NEWEST = (
    select(VerdictRow, BaseRow.name)
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .join(BaseRow, col(BaseRow.id) == col(VerdictRow.base_id))
    .where(any_of(col(VersionRow.id), parameter="ids"), is_newest(), col(VerdictRow.check).in_(list(Check)))
    .order_by(col(VerdictRow.id))
)


_WITHOUT_FINDINGS = _NEWEST.with_only_columns(
    *(col(getattr(VerdictRow, name)) for name in _SHARED_COLUMNS if name != "findings"),
    col(VerdictRow.version_id), col(VerdictRow.judged_by), col(BaseRow.name).label("base"),
)  # fmt: skip


def newest_by_version(
    session: Session, versions: Iterable[VersionRow], *, findings: bool = True
) -> dict[int, list[Verdict]]:
    """Version id → its verdicts that count, oldest first. Every id of `versions` is a key.

    `findings`: False leaves out their findings: those of a version may have a megabyte.
    """
    by_id = {version.id or 0: version for version in versions}
    verdicts: dict[int, list[Verdict]] = {version_id: [] for version_id in by_id}
    params = {"ids": list(by_id)}
    if findings:
        rows: Iterable[tuple[Any, str]] = session.exec(_NEWEST, params=params)
    else:
        rows = ((row, row.base) for row in session.connection().execute(_WITHOUT_FINDINGS, params))
    for row, base in rows:
        verdicts[row.version_id].append(from_row(row, by_id[row.version_id].digest, base))
    return verdicts


_OUTCOMES = (
    select(VerdictRow.version_id, VerdictRow.check, VerdictRow.profile, VerdictRow.by_owner, VerdictRow.outcome)  # type: ignore[call-overload]  # five columns: SQLModel has names for four
    .join(VersionRow, col(VersionRow.id) == col(VerdictRow.version_id))
    .where(any_of(col(VersionRow.id), parameter="ids"), is_newest())
    .order_by(col(VerdictRow.id))
)


def newest_outcomes(session: Session, version_ids: Collection[int]) -> dict[int, dict[str, str]]:
    """Version id → the outcomes of its verdicts that count, by `label`. Every id is a key."""
    outcomes: dict[int, dict[str, str]] = {version_id: {} for version_id in version_ids}
    rows = session.exec(_OUTCOMES, params={"ids": sorted(outcomes)}) if outcomes else ()
    for version_id, check, profile, by_owner, outcome in rows:
        outcomes[version_id][label(check, profile, by_owner)] = outcome
    return outcomes


def newest_of(session: Session, version: VersionRow) -> list[Verdict]:
    """The verdicts of one version that count, oldest first."""
    return newest_by_version(session, [version])[version.id or 0]


def label(check: str, profile: str, by_owner: bool = False) -> str:
    """A check with its profile as JSON keys name it: `compat`, `engine vllm==0.33.0`, `smoke (owner)`."""
    return f"{check} {profile}".strip() + (" (owner)" if by_owner else "")


def testing_step(actor: Actor, ref: str) -> NextStep:
    """How to have a version tested. An embedded registry has no workers that wait for its jobs."""
    return NextStep(StepKind.SMOKE_TEST_AND_WORK if actor == TRUSTED else StepKind.SMOKE_TEST, ref)
