"""What all checks of versions come to: of those that a page names, whatever their adapters are."""

from collections.abc import Collection, Sequence

from sqlalchemy import tuple_
from sqlmodel import Session, col, select

from registry.api.catalog import AdapterView, VersionView
from registry.evaluation.conclusions import Conclusion, conclude
from registry.names import AdapterName
from registry.server.catalog import verdicts
from registry.server.database.models import AdapterRow, VersionRow

NumberedVersion = tuple[AdapterName, int]


def conclude_versions(
    session: Session, version_numbers: Collection[NumberedVersion]
) -> dict[NumberedVersion, Conclusion]:
    """The conclusion of each of these versions that exists. The caller has checked that the actor may see them."""
    key = tuple_(col(AdapterRow.namespace), col(AdapterRow.name), col(VersionRow.number))
    statement = (
        select(VersionRow.id, AdapterRow.namespace, AdapterRow.name, VersionRow.number, VersionRow.yanked_at,
               VersionRow.quarantined_at)  # type: ignore[call-overload]  # SQLModel has names for four columns
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .where(key.in_(sorted({(name.namespace, name.name, number) for name, number in version_numbers})))
    )  # fmt: skip
    rows = session.exec(statement).all() if version_numbers else []
    outcomes = verdicts.newest_outcomes(session, [row.id for row in rows])
    return {
        (AdapterName(row.namespace, row.name), row.number): conclude(
            outcomes[row.id],
            is_yanked=row.yanked_at is not None,
            is_quarantined=row.quarantined_at is not None,
        )
        for row in rows
    }


def conclude_adapters(session: Session, adapters: Sequence[AdapterView]) -> dict[tuple[str, int], Conclusion]:
    """Adapter and number → the conclusion, of the newest versions and of those that aliases point at."""
    numbers = {
        (AdapterName.parse(adapter.name), number)
        for adapter in adapters
        for number in (adapter.newest, *adapter.aliases.values())
    }
    concluded = conclude_versions(session, numbers)
    return {(str(name), number): conclusion for (name, number), conclusion in concluded.items()}


def conclude_view(version: VersionView) -> Conclusion:
    """The conclusion of a version whose verdicts were read."""
    outcomes = {verdicts.label(v.check, v.profile, v.by_owner): str(v.outcome) for v in version.verdicts}
    is_quarantined = version.quarantined_at is not None
    return conclude(outcomes, is_yanked=version.yanked_at is not None, is_quarantined=is_quarantined)
