"""Pushes without a manifest, which stage bytes for a later push of a version. Their ids begin with what they are for.

Quotas, references and `gc` treat their bytes as those of any push that was not committed.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlmodel import Session, col, select

from registry.names import AdapterName
from registry.roles import Scope
from registry.server.access import quotas
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models.pushes import PushRow
from registry.server.storage import references
from registry.server.storage.states import PushState


def find_pushes(session: Session, prefix: str, name: AdapterName) -> list[PushRow]:
    """Return the open pushes for an adapter whose ids begin with `prefix`."""
    open_pushes = select(PushRow).where(
        col(PushRow.id).between(prefix, prefix + "z"),
        col(PushRow.namespace) == name.namespace,
        col(PushRow.name) == name.name,
        col(PushRow.state) == PushState.OPEN,
        col(PushRow.expires_at) > db.now(),
    )
    return list(session.exec(open_pushes.order_by(col(PushRow.id))).all())


def open_push(
    session: Session, actor: Actor, name: AdapterName, prefix: str, size_bytes: int, *, seconds: int
) -> PushRow:
    """Return an open push with this prefix, or a new one, with space for more bytes; all stay open for `seconds`.

    The transaction must write. Errors as of a plan of a push.
    """
    actor.require(Scope.PUSH, name)
    rows = find_pushes(session, prefix, name)
    if not rows:
        db.lock_names(session, f"{prefix} {name}")  # so that two requests of a client find one upload
        rows = find_pushes(session, prefix, name)
    quotas.check_before_staging(session, actor, name, size_bytes, is_new=not rows)
    now = db.now()
    until = now + timedelta(seconds=seconds)
    states = references.extend_pushes(session, [row.id for row in rows], until=until) if rows else {}
    for row in rows:
        if states.get(row.id) is PushState.OPEN:
            return row
    row = PushRow(
        id=prefix + secrets.token_hex(6), namespace=name.namespace, name=name.name, manifest="", manifest_digest="",
        state=PushState.OPEN, created_at=now, created_by=actor.identity, token_id=actor.token_id, expires_at=until,
    )  # fmt: skip
    db.bulk_insert(session, [row])
    return row
