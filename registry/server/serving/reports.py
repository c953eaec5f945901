"""Reports of serving nodes: what they hold and serve, for as long as their leases last.

- A repeated report only renews the lease: one row is written, and no event.
- A node belongs to its reporter: the same name by another token is another node. A slot counts only within the
  reporter's own rights, not because a namespace is public.
- Each version that begins or ends to be served is an event, in the transaction of the report.
- The blobs of a reported version are recorded under their rows' locks, so `gc` sees them or the report finds them gone.
"""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, func, insert, update
from sqlmodel import Session, col, select

from registry import names
from registry.api.catalog import ServedOn
from registry.api.serving import STATES_WITH_BYTES, NodeReport, ReportAccepted, SlotReport, SlotState
from registry.digest import Digest, canonical_json
from registry.errors import TooLarge
from registry.events import EventType
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import AdapterRow, BlobRow, VersionFileRow, VersionRow
from registry.server.database.models.serving import FleetBlobRow, FleetNodeRow, FleetSlotRow

NODES_LIMIT = 1000
"""Engines of one reporter."""
KEEP_SILENT = timedelta(days=1)
"""How long a silent node is still shown."""
SERVED_ON_LIMIT = 200
_Served = tuple[str, str, str]


def accept_report(session: Session, actor: Actor, node: str, engine: str, report: NodeReport) -> ReportAccepted:
    """Store a node's report and renew its lease. `Invalid`; `TooLarge` (QUOTA_EXCEEDED) for too many nodes."""
    names.node_name(node)
    names.node_name(engine)
    names.base_name(report.base)
    names.alias(report.alias)
    row = _node(session, actor, node, engine)
    now, reach = db.now(), actor.namespaces_with(Scope.PULL)
    lease = {"reported_at": now, "expires_at": now + timedelta(seconds=report.lease_seconds)}
    digest = Digest.of(
        canonical_json([report.model_dump(mode="json"), sorted(reach) if reach is not None else "*"])
    ).hex
    if row.report_digest == digest:
        session.connection().execute(update(FleetNodeRow).where(col(FleetNodeRow.id) == row.id).values(**lease))
        return ReportAccepted(expires_at=lease["expires_at"])
    slots = session.exec(select(FleetSlotRow).where(FleetSlotRow.node_id == row.id))
    before = {slot.served_name: slot for slot in slots}
    after, unknown = _accepted(session, actor, row, report.slots, before)
    _record_blobs(
        session,
        {slot.digest for slot in after if slot.state in STATES_WITH_BYTES} - {s.digest for s in before.values()},
    )
    _replace(session, row, after)
    _append_events(session, actor, row, before.values(), after)
    row.sqlmodel_update({
        **lease, "base": report.base, "alias": report.alias, "profile": report.profile, "on_demand": report.on_demand,
        "reach": sorted(reach) if reach is not None else None, "reporter_name": actor.identity,
        "report_digest": "" if unknown else digest,  # the unknown may be pushed later
    })  # fmt: skip
    session.add(row)
    session.flush()
    return ReportAccepted(expires_at=lease["expires_at"], unknown=unknown)


def find_serving_nodes(session: Session, name: AdapterName, digest: str = "", alias: str = "") -> list[ServedOn]:
    """The live nodes that have this version, or any version of the adapter; of those that follow `alias`."""
    conditions = [col(FleetSlotRow.namespace) == name.namespace, col(FleetSlotRow.name) == name.name]
    conditions += [col(FleetSlotRow.digest) == digest] if digest else []
    conditions += [col(FleetNodeRow.alias) == alias] if alias else []
    joined = select(FleetNodeRow, FleetSlotRow).join(FleetSlotRow, col(FleetSlotRow.node_id) == col(FleetNodeRow.id))
    statement = joined.where(*conditions, lease_is_live(), col(FleetSlotRow.state).in_(STATES_WITH_BYTES))
    records = session.exec(statement.order_by(col(FleetNodeRow.node), col(FleetNodeRow.engine)).limit(SERVED_ON_LIMIT))
    return [
        ServedOn(node=node.node, engine=node.engine, served_name=slot.served_name, number=slot.number,
                 state=slot.state, reported_at=node.reported_at)
        for node, slot in records
    ]  # fmt: skip


def lease_is_live() -> ColumnElement[bool]:
    """The condition on `fleet_node` that its lease is live."""
    return col(FleetNodeRow.expires_at) > db.now()


def delete_silent(session: Session) -> None:
    """Delete nodes that were silent for long, and blob records of versions that neither we nor a node has."""
    silent = select(FleetNodeRow.id).where(col(FleetNodeRow.expires_at) < db.now() - KEEP_SILENT)
    ids = session.exec(silent.with_for_update(skip_locked=True)).all()
    session.connection().execute(delete(FleetSlotRow).where(col(FleetSlotRow.node_id).in_(ids)))
    session.connection().execute(delete(FleetNodeRow).where(col(FleetNodeRow.id).in_(ids)))
    version = col(FleetBlobRow.version)
    stored = select(VersionRow.digest).where(col(VersionRow.purged_at).is_(None))
    gone = (version.not_in(select(FleetSlotRow.digest)), version.not_in(stored))
    session.connection().execute(delete(FleetBlobRow).where(*gone))


def _node(session: Session, actor: Actor, node: str, engine: str) -> FleetNodeRow:
    is_own = col(FleetNodeRow.reporter) == actor.owner
    statement = (
        select(FleetNodeRow).where(is_own, FleetNodeRow.node == node, FleetNodeRow.engine == engine).with_for_update()
    )
    row = session.exec(statement).first()
    if row is not None:
        return row
    if session.exec(select(func.count()).select_from(FleetNodeRow).where(is_own)).one() >= NODES_LIMIT:
        raise TooLarge(
            "QUOTA_EXCEEDED", f"{actor.identity!r} has {NODES_LIMIT} nodes already",
            next_step=f"use stable node names; a silent node is deleted after {KEEP_SILENT}",
        )  # fmt: skip
    moment = db.now()
    values = {
        "reporter": actor.owner, "reporter_name": actor.identity, "node": node, "engine": engine, "base": "",
        "alias": "", "profile": "", "on_demand": False, "report_digest": "", "reported_at": moment,
        "expires_at": moment,
    }  # fmt: skip
    db.insert_new(session, FleetNodeRow, values)
    return session.exec(statement).one()


def _accepted(
    session: Session, actor: Actor, node: FleetNodeRow, slots: Sequence[SlotReport], before: dict[str, FleetSlotRow]
) -> tuple[list[FleetSlotRow], list[str]]:
    """The rows of a report, and the served names that the registry does not know."""
    reach, numbers, moment = actor.namespaces_with(Scope.PULL), _numbers(session, slots), db.now()
    rows: dict[str, FleetSlotRow] = {}
    unknown = []
    for slot in slots:
        name = AdapterName.parse(slot.adapter)
        last = before.get(slot.served_name)
        same = last is not None and last.digest == slot.digest
        number = numbers.get((name.namespace, name.name, slot.digest), last.number if last and same else None)
        ours = (reach is None or name.namespace in reach) and (not actor.adapters or str(name) in actor.adapters)
        if not ours or slot.served_name in rows or (number is None and not same) or slot.state is SlotState.ABSENT:
            unknown.append(slot.served_name)
            continue
        rows[slot.served_name] = FleetSlotRow(
            node_id=node.id or 0, served_name=slot.served_name, namespace=name.namespace, name=name.name, number=number,
            digest=slot.digest, state=slot.state, reason=slot.reason, verified=slot.verified,
            since=last.since if last and same and last.state == slot.state else moment,
        )  # fmt: skip
    return list(rows.values()), unknown


def _numbers(session: Session, slots: Sequence[SlotReport]) -> dict[_Served, int]:
    """(namespace, name, digest) → number, of existing versions."""
    joined = select(AdapterRow.namespace, AdapterRow.name, VersionRow.digest, VersionRow.number)
    joined = joined.join(VersionRow, col(VersionRow.adapter_id) == col(AdapterRow.id))
    records = session.exec(joined.where(col(VersionRow.digest).in_({slot.digest for slot in slots})))
    return {(namespace, name, digest): number for namespace, name, digest, number in records}


def _record_blobs(session: Session, versions: set[str]) -> None:
    """Record the blobs of these versions. Their rows are locked first: `gc` checks again under the same lock."""
    files = select(VersionRow.digest, VersionFileRow.digest).join(
        VersionFileRow, col(VersionFileRow.version_id) == col(VersionRow.id)
    )
    pairs = set(session.exec(files.where(col(VersionRow.digest).in_(versions))).all()) if versions else set()
    if not pairs:
        return
    blobs = select(BlobRow.digest).where(col(BlobRow.digest).in_({blob for _, blob in pairs}))
    session.exec(blobs.order_by(col(BlobRow.digest)).with_for_update()).all()
    for version, blob in sorted(pairs):
        db.insert_new(session, FleetBlobRow, {"version": version, "digest": blob})


def _replace(session: Session, node: FleetNodeRow, after: Sequence[FleetSlotRow]) -> None:
    session.connection().execute(delete(FleetSlotRow).where(col(FleetSlotRow.node_id) == node.id))
    if after:
        session.connection().execute(insert(FleetSlotRow), [row.model_dump() for row in after])


def _append_events(
    session: Session, actor: Actor, node: FleetNodeRow, before: Iterable[FleetSlotRow], after: Iterable[FleetSlotRow]
) -> None:
    was, now = _serving(before), _serving(after)
    for event_type, changed in (
        (EventType.VERSION_UNSERVE, was.keys() - now.keys()),
        (EventType.VERSION_SERVE, now.keys() - was.keys()),
    ):
        for key in sorted(changed):
            slot = was.get(key) or now[key]
            detail: dict[str, Any] = {
                "digest": slot.digest, "node": node.node, "engine": node.engine, "served_name": slot.served_name,
            }  # fmt: skip
            detail |= {"verified": slot.verified} if event_type is EventType.VERSION_SERVE else {}
            audit.append(session, actor, event_type, f"{slot.namespace}/{slot.name}@{slot.number}", detail)


def _serving(slots: Iterable[FleetSlotRow]) -> dict[_Served, FleetSlotRow]:
    serving = [slot for slot in slots if slot.state == SlotState.SERVING]
    return {(slot.namespace, slot.name, slot.digest): slot for slot in serving}
