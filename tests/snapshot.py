"""`snapshot`: the rows that a re-index makes anew, comparable before a disaster and after it."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, select

from registry.server.database.models import (
    AdapterRow,
    BaseEdgeRow,
    BaseRow,
    BlobRow,
    EdgeRow,
    VersionFileRow,
    VersionInputRow,
    VersionRow,
)
from tests.harness import Harness


def snapshot(harness: Harness) -> dict[str, list[dict[str, Any]]]:
    """Bases, versions, files, edges and the blobs of versions, with names in place of numbers that a database gives."""
    with harness.session() as session:
        names = {a.id: f"{a.namespace}/{a.name}" for a in session.exec(select(AdapterRow)).all()}
        bases = {b.id: b.name for b in session.exec(select(BaseRow)).all()}
        refs = {v.id: f"{names[v.adapter_id]}@{v.number}" for v in session.exec(select(VersionRow)).all()}
        return {
            "adapter": _plain(session, AdapterRow, id=None, created_at=None, updated_at=None),
            "base": _plain(session, BaseRow, id=None, recorded_at=None),
            "version": _plain(
                session,
                VersionRow,
                id=refs,
                adapter_id=names,
                base_id=bases,
                recorded_at=None,
                measured_at=None,
                yanked_at=None,
                quarantine=None,
            ),
            "file": _plain(session, VersionFileRow, version_id=refs),
            "edge": _plain(session, EdgeRow, child_id=refs),
            "base_edge": _plain(session, BaseEdgeRow, base_id=bases),
            "input": _plain(session, VersionInputRow, version_id=refs),
            "blob": [
                row
                for row in _plain(session, BlobRow, created_at=None, checked_at=None)
                if session.exec(select(VersionFileRow.path).where(VersionFileRow.digest == row["digest"])).first()
            ],
        }


def _plain(session: Session, table: type[Any], **renamed: dict[int | None, str] | None) -> list[dict[str, Any]]:
    plain = []
    for row in session.exec(select(table)).all():
        values = row.model_dump()
        for column, names in renamed.items():
            value = values.pop(column)
            if names is not None:
                values[column] = names[value]
        plain.append(values)
    return sorted(plain, key=repr)
