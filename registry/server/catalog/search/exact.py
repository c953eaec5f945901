"""Find versions by what names them exactly: a digest or its beginning, of the version or of a file; a training run."""

import re
from typing import Any

from sqlmodel import Session, col, select

from registry.names import AdapterName
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.catalog.search.candidates import CANDIDATES_LIMIT
from registry.server.database.expressions import any_of
from registry.server.database.models import FACT, AdapterRow, VersionAttributeRow, VersionFileRow, VersionRow

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})\Z")
_AFTER_DIGITS = "g"


def find_versions(session: Session, actor: Actor, text: str, *, limit: int) -> list[tuple[AdapterName, int]]:
    """The versions that this text names, the newest first."""
    statements: list[Any] = [
        select(VersionAttributeRow.version_id).where(VersionAttributeRow.key == f"{FACT}run:{text}")
    ]
    if match := _DIGEST.match(text):
        first = f"sha256:{match[1]}"
        statements += [
            select(version_id).where(digest >= first, digest < first + _AFTER_DIGITS)
            for version_id, digest in (
                (VersionRow.id, col(VersionRow.digest)), (VersionFileRow.version_id, col(VersionFileRow.digest))
            )
        ]  # fmt: skip
    ids = {id for statement in statements for id in session.exec(statement.limit(CANDIDATES_LIMIT))}
    if not ids:
        return []
    statement = select(AdapterRow.namespace, AdapterRow.name, VersionRow.number).join(
        VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id)
    )
    is_listed = (any_of(col(VersionRow.id), sorted(ids)), col(VersionRow.deleted_at).is_(None), versions.visible(actor))
    rows = session.exec(statement.where(*is_listed).order_by(col(VersionRow.id).desc()).limit(limit))
    return [(AdapterName(namespace, name), number) for namespace, name, number in rows]
