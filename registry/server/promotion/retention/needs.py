"""What keeps a version although a rule or its expiry would delete it: aliases, gates, nodes, jobs, descendants, people.

No reason names what its reader may not see. A descendant counts if it is in the same namespace or in one that everyone
may read; one in the same adapter does not, else a chain of checkpoints would stay as a whole. Nor does one whose own
adapter has an equal version, unless it names this adapter's as its parent. The lineage of a deleted version stays with
its row.
"""

from collections.abc import Iterator, Sequence

from sqlalchemy import ColumnElement, and_, exists, or_
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry.api.serving import STATES_WITH_BYTES
from registry.jobs import State
from registry.names import AdapterName
from registry.server.database.expressions import any_of
from registry.server.database.models import (
    EXPIRES,
    NEVER,
    TAG,
    AdapterRow,
    AliasRow,
    BaseEdgeRow,
    EdgeRow,
    RoleRow,
    VersionMetadataRow,
    VersionRow,
)
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.owner_rules import SIGNATURE, UNVERIFIED, ApprovalRow, AttestationRow
from registry.server.database.models.serving import FleetNodeRow, FleetSlotRow
from registry.server.jobs import queue
from registry.server.promotion import aliases, deletion
from registry.server.serving import reports


def find_needs(session: Session, adapter: AdapterRow, version_ids: Sequence[int]) -> dict[int, str]:
    """Version id → why the version stays, of those of these versions of an adapter that something needs."""
    own = and_(col(VersionRow.adapter_id) == adapter.id, any_of(col(VersionRow.id), version_ids))
    needs: dict[int, str] = {}
    for version_id, reason in _needs(session, adapter, own):
        needs.setdefault(version_id, reason)
    return needs


def _needs(session: Session, adapter: AdapterRow, own: ColumnElement[bool]) -> Iterator[tuple[int, str]]:
    for alias, version_id in session.exec(
        select(AliasRow.alias, AliasRow.version_id).where(AliasRow.adapter_id == adapter.id).order_by(AliasRow.alias)
    ):
        yield version_id, f"is where alias '{alias}' points"
    for alias, version_id in aliases.find_rollback_targets(session, adapter.id).items():
        yield version_id, f"is where a rollback of alias '{alias}' returns"
    approved = select(ApprovalRow.version_id, ApprovalRow.alias).join(
        VersionRow, col(VersionRow.id) == col(ApprovalRow.version_id)
    )
    for version_id, alias in session.exec(approved.where(own)):
        yield version_id, f"is approved for alias '{alias}'"
    yield from _used(session, adapter, own)
    yield from _of_people(session, own)


def _used(session: Session, adapter: AdapterRow, own: ColumnElement[bool]) -> Iterator[tuple[int, str]]:
    """On nodes, by jobs, and by what was made from it."""
    loaded = exists().where(
        col(FleetSlotRow.digest) == col(VersionRow.digest), col(FleetSlotRow.namespace) == adapter.namespace,
        col(FleetSlotRow.name) == adapter.name, col(FleetSlotRow.node_id) == col(FleetNodeRow.id),
        reports.lease_is_live(), col(FleetSlotRow.state).in_(STATES_WITH_BYTES),
    )  # fmt: skip
    at_work = or_(
        col(JobRow.state) == State.RUNNING, and_(col(JobRow.state) == State.QUEUED, col(JobRow.automatic).is_(False))
    )
    used_by_job = exists().where(col(JobRow.version_id) == col(VersionRow.id), at_work)
    child, owner, name = aliased(VersionRow), aliased(AdapterRow), AdapterName(adapter.namespace, adapter.name)
    everyone = exists().where(
        col(RoleRow.subject) == "*", or_(col(RoleRow.namespace) == owner.namespace, col(RoleRow.namespace) == "*")
    )
    has_child = exists().where(
        col(EdgeRow.parent_digest) == col(VersionRow.digest), col(EdgeRow.child_id) == col(child.id),
        col(child.deleted_at).is_(None), col(child.adapter_id) != adapter.id, col(owner.id) == col(child.adapter_id),
        or_(col(owner.namespace) == adapter.namespace, everyone), deletion.counts_as_child(name, child),
    )  # fmt: skip
    has_base = exists().where(col(BaseEdgeRow.parent_digest) == col(VersionRow.digest))
    for condition, reason in (
        (loaded, "is loaded on a serving node"),
        (used_by_job, "is needed by a job"),
        (has_child, "is what another adapter was made from"),
        (has_base, "is what a base was made from"),
    ):
        for version_id in session.exec(select(VersionRow.id).where(own, condition)):
            yield version_id or 0, reason
    sources = queue.find_sources(session, name, (State.QUEUED, State.RUNNING))
    numbers = select(VersionRow.id).where(own, col(VersionRow.number).in_([number for _, number in sources]))
    for version_id in session.exec(numbers) if sources else ():
        yield version_id or 0, "is needed by a job"


def _of_people(session: Session, own: ColumnElement[bool]) -> Iterator[tuple[int, str]]:
    """Quarantined and restored versions, and tags and signatures of others than the pusher."""
    tagged = exists().where(
        col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == TAG,
        col(VersionMetadataRow.set_by) != col(VersionRow.created_by),
    )  # fmt: skip
    signed = exists().where(
        col(AttestationRow.version_id) == col(VersionRow.id), col(AttestationRow.made_by) != col(VersionRow.created_by),
        col(AttestationRow.kind).in_((SIGNATURE, UNVERIFIED)),
    )  # fmt: skip
    restored = exists().where(
        col(VersionMetadataRow.version_id) == col(VersionRow.id), col(VersionMetadataRow.kind) == EXPIRES,
        col(VersionMetadataRow.value) == NEVER,
    )  # fmt: skip
    quarantined = col(VersionRow.quarantined_at).is_not(None)
    for condition, reason in (
        (quarantined, "is quarantined, and may be evidence"),
        (tagged, "was tagged by someone other than its pusher"),
        (signed, "was signed by someone other than its pusher"),
        (restored, "was restored after its deletion"),
    ):
        for version_id in session.exec(select(VersionRow.id).where(own, condition)):
            yield version_id or 0, reason
