"""Reads descriptions, tags, links and expiries of adapters and versions, and searches for tags.

They can change, and no digest covers them. What a push sealed is in the manifest: annotations and provenance.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, exists, literal_column, or_
from sqlmodel import Session, SQLModel, col, select

from registry.server.database.expressions import any_of
from registry.server.database.models import (
    DESCRIPTION,
    EXPIRES,
    LINK,
    NEVER,
    TAG,
    AdapterMetadataRow,
    AdapterRow,
    VersionMetadataRow,
    VersionRow,
)

_IS_TAG: ColumnElement[str] = literal_column(f"'{TAG}'")
"""A literal, not a parameter: only so the planner takes the index of tags."""
_OWNERS: dict[Any, tuple[Any, Any]] = {
    AdapterMetadataRow: (col(AdapterMetadataRow.adapter_id), col(AdapterRow.id)),
    VersionMetadataRow: (col(VersionMetadataRow.version_id), col(VersionRow.id)),
}
"""Table → its column with the owner's id, and the id in the owner's table."""
_SELECTS = {
    table: select(owner, table.kind, table.key, table.value).where(any_of(owner, parameter="ids"))
    for table, (owner, _) in _OWNERS.items()
}


def read(session: Session, table: type[SQLModel], ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Id of an adapter or version → the fields `description`, `tags`, `links` and `expires_at` of its view."""
    return fields_of(ids, session.exec(_SELECTS[table], params={"ids": list(ids)}))


def fields_of(ids: Iterable[int], rows: Iterable[tuple[int, str, str, str]]) -> dict[int, dict[str, Any]]:
    """Do what `read` does, with rows of the owner's id, kind, key and value."""
    fields: dict[int, dict[str, Any]] = {row_id: {"description": "", "tags": {}, "links": {}} for row_id in ids}
    for row_id, kind, key, value in sorted(rows):
        if kind == DESCRIPTION:
            fields[row_id]["description"] = value
        elif kind == EXPIRES:
            fields[row_id]["expires_at"] = None if value == NEVER else datetime.fromisoformat(value)
        else:
            fields[row_id]["links" if kind == LINK else "tags"][key] = value
    return fields


def expiry_text(moment: datetime) -> str:
    """An expiry as it is stored: UTC in whole seconds, so texts compare as moments do."""
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def has_tag(key: str, value: str | None = None) -> ColumnElement[bool]:
    """The condition on `adapter` and `version` that one of the two has this tag."""
    return or_(
        *(exists().where(owner == owner_id, *is_tag(table, key, value)) for table, (owner, owner_id) in _OWNERS.items())
    )


def is_tag(table: Any, key: str, value: str | None = None) -> list[ColumnElement[bool]]:
    """The conditions on a table of metadata that a row is this tag."""
    conditions = [col(table.kind) == _IS_TAG, col(table.key) == key]
    return conditions if value is None else [*conditions, col(table.value) == value]
