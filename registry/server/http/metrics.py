"""Metrics of the server as Prometheus text.

What is about requests is of one server, with all its processes (`request_metrics`); all else is read from the database,
so that every replica reports the same.
No table that grows without end is scanned: counters are added up, and rows counted up to `COUNT_LIMIT`, from an index.
No label holds the name of a namespace, adapter or node.
"""

import platform
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import ColumnElement, case, func, literal, literal_column, union_all
from sqlmodel import Session, col, select

from registry import __version__, jobs
from registry.api.serving import SlotState
from registry.events import DeliveryState
from registry.server.database import db
from registry.server.database.models import EventRow
from registry.server.database.models.jobs import JobRow
from registry.server.database.models.namespaces import BaseUsageRow, NamespaceUsageRow
from registry.server.database.models.owner_rules import DeliveryRow
from registry.server.database.models.pushes import PushRow
from registry.server.database.models.serving import FleetNodeRow, FleetSlotRow
from registry.server.http.request_metrics import PREFIX, RequestMetrics
from registry.server.jobs import queue
from registry.server.serving import reports
from registry.server.storage.states import PushState

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
COUNT_LIMIT = 10_000
_UP_TO = f"counted up to {COUNT_LIMIT:,}"
UNDELIVERED = (DeliveryState.WAITING, DeliveryState.DEAD)
BUILD = "build_info", "1, with the `version` of this server and of its `python`."
QUEUE_AGE = "job_queue_age_seconds", "Age of the oldest job that waits for a worker, 0 without one."


def text(session: Session, requests: RequestMetrics) -> bytes:
    """The text format of Prometheus, version 0.0.4."""
    return requests.text() + generate_latest(_Stored(session))


class _Stored(Collector):
    def __init__(self, session: Session) -> None:
        self._session = session

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(PREFIX + BUILD[0], BUILD[1], labels=["version", "python"])
        build.add_metric([__version__, platform.python_version()], 1)
        yield build
        yield GaugeMetricFamily(PREFIX + QUEUE_AGE[0], QUEUE_AGE[1], value=self._queue_age())
        for name, description, total in _totals():
            yield GaugeMetricFamily(PREFIX + name, description, value=self._session.exec(total).one())
        for name, description, states, statement in _totals_by_state():
            totals = dict(self._session.exec(statement).all())
            family = GaugeMetricFamily(PREFIX + name, description, labels=["state"])
            for state in states:  # 0 where there is none: a series that comes and goes cannot be watched
                family.add_metric([state], totals.get(state, 0))
            yield family

    def _queue_age(self) -> float:
        """Seconds for which the oldest queued job waits, by the database's clock."""
        waits = col(JobRow.state) == jobs.State.QUEUED
        oldest = select(func.min(JobRow.created_at)).where(waits, ~queue.IS_WITHHELD)
        created_at = self._session.exec(oldest).one()
        return max(0.0, (db.now() - created_at).total_seconds()) if created_at is not None else 0.0


def _totals() -> Iterator[tuple[str, str, Any]]:
    count, position = select(func.count()), col(EventRow.position)
    adapters = "Adapters with a version that is not deleted, once for each base that their versions are on."
    yield "adapters", adapters, select(func.coalesce(func.sum(BaseUsageRow.adapters), 0))
    versions = "Versions whose files are stored, also deleted ones within their grace time."
    yield "versions", versions, select(func.coalesce(func.sum(NamespaceUsageRow.versions), 0))
    is_open = col(PushRow.state) == literal_column(f"'{PushState.OPEN}'")  # a literal, so that the index is taken
    yield "pushes_open", f"Pushes under way, {_UP_TO}.", _count_some(PushRow.namespace, is_open)
    yield "audit_log_size", "Numbered events of the audit log.", select(func.coalesce(func.max(position), 0))
    unnumbered = count.select_from(EventRow).where(position.is_(None))
    yield "audit_events_waiting", "Events that have no number yet.", unnumbered


def _totals_by_state() -> Iterator[tuple[str, str, Iterable[str], Any]]:
    yield "jobs", f"Jobs by state, {_UP_TO} of each.", jobs.State, _count_states(JobRow.state, jobs.State)
    is_live = case((reports.lease_is_live(), "live"), else_="lost")
    nodes = select(is_live, func.count()).select_from(FleetNodeRow).group_by(is_live)
    yield "fleet_nodes", "Engines on nodes by whether their lease lasts.", ("live", "lost"), nodes
    on_node = col(FleetNodeRow.id) == col(FleetSlotRow.node_id)
    slots = select(FleetSlotRow.state, func.count()).join(FleetNodeRow, on_node).where(reports.lease_is_live())
    states = [state for state in SlotState if state is not SlotState.ABSENT]
    description = "Versions on engines of live nodes by state."
    yield "fleet_slots", description, states, slots.group_by(col(FleetSlotRow.state))
    undelivered = _count_states(DeliveryRow.state, UNDELIVERED)
    yield "webhook_deliveries", f"Not delivered, {_UP_TO} of each.", UNDELIVERED, undelivered


def _count_some(column: Any, condition: ColumnElement[bool]) -> Any:
    """Select how many rows of the column's table meet the condition, up to `COUNT_LIMIT`."""
    return select(func.count()).select_from(select(column).where(condition).limit(COUNT_LIMIT).subquery())


def _count_states(column: Any, states: Iterable[str]) -> Any:
    """Select each state and how many rows have it, up to `COUNT_LIMIT`."""
    counts = ((state, _count_some(column, col(column) == state).scalar_subquery()) for state in states)
    return union_all(*(select(literal(str(state)), count) for state, count in counts))
