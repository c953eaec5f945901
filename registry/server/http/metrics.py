"""`Metrics` of the server: how much is here, what waits, what fails, as Prometheus text for an administrator's token.

Invariants
- Everything but `requests_total` is read from the database, so every replica says the same; of tables that grow without
  end only an index is read.
- No name of a namespace, adapter or node is a label.

Example
    >>> "registry_adapters 200" in metrics.text(session, requests)
    True
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import case, func
from sqlmodel import Session, col, select

from registry import jobs
from registry.api.fleet import SlotState
from registry.server.database.models import (
    AdapterRow,
    DeliveryRow,
    EventRow,
    FleetNodeRow,
    FleetSlotRow,
    JobRow,
    PushRow,
    VersionRow,
)
from registry.server.serving import reports
from registry.server.storage.references import PushState

PREFIX = "registry_"
UNDELIVERED = ("waiting", "dead")
Requests = Mapping[tuple[str, int], int]
"""(method, status) → how many this process has answered."""
_Rows = Iterable[tuple[Mapping[str, Any], Any]]


def text(session: Session, requests: Requests) -> str:
    """The text format of Prometheus, version 0.0.4."""
    lines = [*_metric(
        "requests_total", "counter",
        "Requests that this process answered; look-ups that are answered from what is kept are not among them.",
        [({"method": method, "status": status}, count) for (method, status), count in sorted(requests.items())],
    )]  # fmt: skip
    lines += _metric("adapters", "gauge", "Adapters.", [({}, _count(session, AdapterRow))])
    lines += _metric("versions", "gauge", "Versions.", [({}, _count(session, VersionRow))])
    by_state = select(JobRow.state, func.count()).group_by(col(JobRow.state))
    lines += _metric("jobs", "gauge", "Jobs by state.", _labelled("state", jobs.State, session.exec(by_state)))
    open_pushes = select(func.count()).select_from(PushRow).where(PushRow.state == PushState.OPEN)
    lines += _metric("pushes_open", "gauge", "Pushes under way.", [({}, session.exec(open_pushes).one())])
    lines += _fleet(session)
    waiting = select(DeliveryRow.state, func.count()).where(col(DeliveryRow.state).in_(UNDELIVERED))
    found = session.exec(waiting.group_by(col(DeliveryRow.state)))
    lines += _metric("webhook_deliveries", "gauge", "Not delivered.", _labelled("state", UNDELIVERED, found))
    newest = session.exec(select(func.coalesce(func.max(EventRow.position), 0))).one()
    unnumbered = select(func.count()).select_from(EventRow).where(col(EventRow.position).is_(None))
    lines += _metric("audit_log_size", "gauge", "Numbered events of the audit log.", [({}, newest)])
    without = session.exec(unnumbered).one()
    lines += _metric("audit_events_waiting", "gauge", "Events that have no number yet.", [({}, without)])
    return "\n".join(lines) + "\n"


def _fleet(session: Session) -> list[str]:
    is_live = case((reports.live(), "live"), else_="lost")
    nodes = session.exec(select(is_live, func.count()).select_from(FleetNodeRow).group_by(is_live))
    states = select(FleetSlotRow.state, func.count()).join(
        FleetNodeRow, col(FleetNodeRow.id) == col(FleetSlotRow.node_id)
    )
    slots = session.exec(states.where(reports.live()).group_by(col(FleetSlotRow.state)))
    known = [state for state in SlotState if state is not SlotState.ABSENT]
    return [
        *_metric("fleet_nodes", "gauge", "Engines on nodes by whether their lease lasts.",
                 _labelled("state", ("live", "lost"), nodes)),
        *_metric("fleet_slots", "gauge", "Versions on engines of live nodes by state.",
                 _labelled("state", known, slots)),
    ]  # fmt: skip


def _count(session: Session, table: Any) -> int:
    return session.exec(select(func.count()).select_from(table)).one()


def _labelled(label: str, values: Iterable[str], rows: Iterable[tuple[Any, int]]) -> _Rows:
    """One row for each known value, 0 where there is none: a series that comes and goes cannot be watched."""
    found = dict(iter(rows))
    return [({label: value}, found.get(value, 0)) for value in values]


def _metric(name: str, kind: str, what: str, rows: _Rows) -> list[str]:
    full = PREFIX + name
    lines = [f"# HELP {full} {what}", f"# TYPE {full} {kind}"]
    for labels, value in rows:
        told = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines.append(f"{full}{{{told}}} {value}" if told else f"{full} {value}")
    return lines
