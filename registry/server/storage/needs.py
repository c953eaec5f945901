"""What garbage collection asks of a blob's row: whether anything refers to it (see `references`)."""

from sqlalchemy import ColumnElement, exists, not_, or_
from sqlmodel import col

from registry.api.serving import STATES_WITH_BYTES
from registry.jobs import State
from registry.server.database import db
from registry.server.database.models import BlobRow, VerdictRow, VersionFileRow, VersionRow
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.owner_rules import AttestationRow
from registry.server.database.models.pushes import PushBlobRow, PushRow
from registry.server.database.models.serving import FleetBlobRow, FleetNodeRow, FleetSlotRow
from registry.server.storage.states import PushState


def is_referenced() -> ColumnElement[bool]:
    """Condition on `blob`: a version, also as its manifest, a verdict or an attestation refers to it."""
    by_version = exists().where(col(VersionFileRow.digest) == col(BlobRow.digest))
    by_verdict = exists().where(col(VerdictRow.report) == col(BlobRow.digest))
    by_attestation = exists().where(col(AttestationRow.digest) == col(BlobRow.digest))
    by_manifest = exists().where(col(VersionRow.digest) == col(BlobRow.digest), col(VersionRow.purged_at).is_(None))
    return or_(by_version, by_manifest, by_verdict, by_attestation)


def is_held(*, by_expired_pushes: bool = True) -> ColumnElement[bool]:
    """Condition on `blob`: an open push, a running job or a live serving node needs it."""
    is_open = [col(PushRow.state) == PushState.OPEN]
    if not by_expired_pushes:
        is_open.append(col(PushRow.expires_at) > db.now())
    of_push = (col(PushRow.id) == col(PushBlobRow.push_id), col(PushBlobRow.digest) == col(BlobRow.digest))
    is_manifest = col(PushRow.manifest_digest) == col(BlobRow.digest)
    by_push = or_(exists().where(*of_push, *is_open), exists().where(is_manifest, *is_open))
    by_job = exists().where(col(JobRow.report) == col(BlobRow.digest), col(JobRow.state) == State.RUNNING)
    on_node = [col(FleetSlotRow.digest) == col(FleetBlobRow.version), col(FleetSlotRow.state).in_(STATES_WITH_BYTES)]
    leased = [col(FleetNodeRow.id) == col(FleetSlotRow.node_id), col(FleetNodeRow.expires_at) > db.now()]
    by_node = exists().where(col(FleetBlobRow.digest) == col(BlobRow.digest), *on_node, *leased)
    return or_(by_push, by_job, by_node)


def is_unneeded(*, by_expired_pushes: bool = True) -> ColumnElement[bool]:
    """Condition on `blob`: nothing refers to it or holds it."""
    return not_(or_(is_referenced(), is_held(by_expired_pushes=by_expired_pushes)))
