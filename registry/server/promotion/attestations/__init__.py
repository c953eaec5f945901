"""Attestations of versions: list them, who signed a version, and what proves an event of the log.

`signatures` stores those that users add, `attester` makes the registry's own. An attestation is shown once its blob is
live.
"""

from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, exists, or_
from sqlmodel import Session, col, select

from registry.api.audit import EventProof
from registry.api.audit.attestations import AttestationList, AttestationView
from registry.digest import Digest
from registry.errors import NotFound
from registry.names import AdapterName, Selector, is_alias
from registry.server import audit
from registry.server.actors import Actor
from registry.server.audit import audit_log
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import AdapterRow, BlobRow, EventRow, VersionRow
from registry.server.database.models.owner_rules import SIGNATURE, AttestationRow
from registry.server.storage import blobs
from registry.server.storage.blobs import BlobStore
from registry.server.storage.states import BlobState

SHOWN_LIMIT = 200


def signers_by_version(session: Session, version_ids: Collection[int]) -> dict[int, frozenset[str]]:
    """Version → the identities that signed it: `key:…`, `pki:…`, `sigstore:…`, each verified when it was stored."""
    if not version_ids:
        return {}
    statement = _live().where(any_of(col(AttestationRow.version_id), version_ids), AttestationRow.kind == SIGNATURE)
    signers: dict[int, frozenset[str]] = {}
    for row in session.exec(statement):
        signers[row.version_id] = signers.get(row.version_id, frozenset()) | {row.identity}
    return signers


def list_attestations(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, store: BlobStore | None
) -> AttestationList:
    """All attestations of a version, oldest first, each with its bundle; without a store, without bundles."""
    version = versions.find(session, actor, name, selector, include_withdrawn=not is_alias(selector))
    statement = _live().where(AttestationRow.version_id == version.id).order_by(col(AttestationRow.id))
    rows = session.exec(statement.limit(SHOWN_LIMIT)).all()
    db.commit_early(session)
    if store is None:
        return AttestationList(items=[db.to_view(row, AttestationView, seq=row.position) for row in rows])
    return AttestationList(items=[view(row, store) for row in rows])


def visible_events(actor: Actor) -> ColumnElement[bool]:
    """The condition on `event` that it attests a version which the actor may see, also under a former name."""
    return exists().where(
        col(AttestationRow.position) == col(EventRow.position),
        col(VersionRow.id) == col(AttestationRow.version_id),
        col(AdapterRow.id) == col(VersionRow.adapter_id),
        versions.visible(actor),
    )


def prove_event(session: Session, actor: Actor, seq: int) -> EventProof:
    """The event as an entry of the log, and the proof that the log holds it. `NotFound` (EVENT_UNKNOWN)."""
    visible = or_(audit.visible_to(actor), visible_events(actor))
    statement = select(EventRow).where(col(EventRow.position) == seq, visible)
    row = session.exec(statement).first() if 0 < seq < 2**53 else None
    if row is None:
        raise NotFound("EVENT_UNKNOWN", f"there is no event {seq}, or you may not see it")
    return audit_log.prove_event(session, row)


def _live() -> Any:
    return (
        select(AttestationRow)
        .join(BlobRow, col(BlobRow.digest) == col(AttestationRow.digest))
        .where(col(BlobRow.state) == BlobState.LIVE)
    )


def view(row: AttestationRow, store: BlobStore) -> AttestationView:
    """The attestation with its bundle."""
    text = store.read(blobs.key_of(Digest(row.digest)), 0, row.size_bytes).decode(errors="replace")
    return db.to_view(row, AttestationView, seq=row.position, bundle=text)


def attestation_row(
    version: VersionRow, kind: str, identity: str, digest: Digest, size_bytes: int, *, made_by: str, **columns: Any
) -> AttestationRow:
    """The row of an attestation that is made now."""
    return AttestationRow(
        version_id=version.id or 0, kind=kind, identity=identity, digest=digest, size_bytes=size_bytes,
        made_at=db.now(), made_by=made_by, **columns,
    )  # fmt: skip
