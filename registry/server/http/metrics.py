"""Metrics of the server as Prometheus text.

All but `requests_total` is read from the database, so that every replica reports the same. Of tables that grow without
end only an index is read. No label holds the name of a namespace, adapter or node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import case, func
from sqlmodel import Session, col, select

from registry import jobs
from registry.api.serving import SlotState
from registry.events import DeliveryState
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

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "registry_"
REQUESTS = "requests", "Requests that this process answered, without resolve answers from the cache."
"""Name and description of the counter, whose samples end in `_total`."""
UNDELIVERED = (DeliveryState.WAITING, DeliveryState.DEAD)
Requests = Mapping[tuple[str, int], int]
"""(method, status) → how many this process has answered."""


def text(session: Session, requests: Requests) -> bytes:
    """The text format of Prometheus, version 0.0.4."""
    return generate_latest(_Server(session, requests))


class _Server(Collector):
    def __init__(self, session: Session, requests: Requests) -> None:
        self._session, self._requests = session, requests

    def collect(self) -> Iterator[Metric]:
        name, description = REQUESTS
        requests = CounterMetricFamily(PREFIX + name, description, labels=["method", "status"])
        for (method, status), count in sorted(self._requests.items()):
            requests.add_metric([method, str(status)], count)
        yield requests
        for name, description, total in _totals():
            yield GaugeMetricFamily(PREFIX + name, description, value=self._session.exec(total).one())
        for name, description, states, statement in _totals_by_state():
            totals = dict(self._session.exec(statement).all())
            family = GaugeMetricFamily(PREFIX + name, description, labels=["state"])
            for state in states:  # 0 where there is none: a series that comes and goes cannot be watched
                family.add_metric([state], totals.get(state, 0))
            yield family


def _totals() -> Iterator[tuple[str, str, Any]]:
    count, position = select(func.count()), col(EventRow.position)
    yield "adapters", "Adapters.", count.select_from(AdapterRow)
    yield "versions", "Versions.", count.select_from(VersionRow).where(col(VersionRow.deleted_at).is_(None))
    yield "pushes_open", "Pushes under way.", count.select_from(PushRow).where(col(PushRow.state) == PushState.OPEN)
    yield "audit_log_size", "Numbered events of the audit log.", select(func.coalesce(func.max(position), 0))
    unnumbered = count.select_from(EventRow).where(position.is_(None))
    yield "audit_events_waiting", "Events that have no number yet.", unnumbered


def _totals_by_state() -> Iterator[tuple[str, str, Iterable[str], Any]]:
    by_state = select(JobRow.state, func.count()).group_by(col(JobRow.state))
    yield "jobs", "Jobs by state.", jobs.State, by_state
    is_live = case((reports.lease_is_live(), "live"), else_="lost")
    nodes = select(is_live, func.count()).select_from(FleetNodeRow).group_by(is_live)
    yield "fleet_nodes", "Engines on nodes by whether their lease lasts.", ("live", "lost"), nodes
    on_node = col(FleetNodeRow.id) == col(FleetSlotRow.node_id)
    slots = select(FleetSlotRow.state, func.count()).join(FleetNodeRow, on_node).where(reports.lease_is_live())
    states = [state for state in SlotState if state is not SlotState.ABSENT]
    description = "Versions on engines of live nodes by state."
    yield "fleet_slots", description, states, slots.group_by(col(FleetSlotRow.state))
    waiting = select(DeliveryRow.state, func.count()).where(col(DeliveryRow.state).in_(UNDELIVERED))
    yield "webhook_deliveries", "Not delivered.", UNDELIVERED, waiting.group_by(col(DeliveryRow.state))
