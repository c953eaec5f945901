"""Where a job that waits stands: whether a worker that takes such jobs is busy, and how many jobs come first.

Workers register nowhere: one is known by the jobs that it took. Of the jobs of others a caller learns only that they
keep a worker busy.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, or_, true
from sqlmodel import Session, col, select

from registry.api.jobs import QueuePosition
from registry.jobs import KINDS_WITHOUT_BASE, State
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import JobRow
from registry.server.jobs import queue

TAKEN_SECONDS = 24 * 60 * 60
"""How far back jobs say what a worker takes."""
AHEAD_ROWS = 1000
"""How many jobs ahead are counted at most."""


def show_position(session: Session, actor: Actor, job_id: str) -> QueuePosition:
    """The position of a job that the actor may see; of one that no longer waits, that nothing is before it."""
    row = queue.find_job(session, actor, Scope.PULL, job_id)
    if not queue.to_job(row).waits_for_a_worker:
        return QueuePosition()
    same_priority = and_(col(JobRow.priority) == row.priority, col(JobRow.created_at) < row.created_at)
    goes_first = or_(col(JobRow.state) == State.RUNNING, col(JobRow.priority) > row.priority, same_priority)
    ahead = select(JobRow.id).where(
        queue.visible(actor),
        col(JobRow.state).in_([State.QUEUED, State.RUNNING]),
        goes_first,
        col(JobRow.id) != row.id,
        ~queue.IS_WITHHELD,
    )
    count = db.count_rows(session, ahead.where(_needs(_loaded(row))).limit(AHEAD_ROWS))
    return QueuePosition(worker_is_busy=has_busy_worker(session, [row]), jobs_ahead=count)


def has_busy_worker(session: Session, waiting: Sequence[JobRow]) -> bool:
    """Whether a worker runs a job now and may take one of these next.

    That is one which took a job of the same namespace and base within `TAKEN_SECONDS`, or which runs one on this base
    and has not passed these by. Jobs on quarantined versions do not count: no worker gets them.
    """
    is_running = and_(col(JobRow.state) == State.RUNNING, col(JobRow.lease_expires_at) >= db.now())
    running = session.exec(select(JobRow).where(is_running)).all() if waiting else []
    if not running:
        return False
    withheld = set(session.exec(select(JobRow.id).where(col(JobRow.state) == State.QUEUED, queue.IS_WITHHELD)))
    groups: dict[tuple[str, str], list[JobRow]] = {}
    for row in waiting:
        if row.id not in withheld:
            groups.setdefault((row.namespace, _loaded(row)), []).append(row)
    return any(
        _takes_jobs(session, running, namespace, base) or _passes_none_by(session, running, rows)
        for (namespace, base), rows in groups.items()
    )


def _takes_jobs(session: Session, running: Sequence[JobRow], namespace: str, base: str) -> bool:
    since = db.now() - timedelta(seconds=TAKEN_SECONDS)
    statement = select(JobRow.id).where(_taken_by(running, [namespace], since), _needs(base))
    return session.exec(statement.limit(1)).first() is not None


def _passes_none_by(session: Session, running: Sequence[JobRow], waiting: Sequence[JobRow]) -> bool:
    """Whether a worker took no more jobs since these wait than namespaces which take turns with theirs have."""
    namespace, base = waiting[0].namespace, _loaded(waiting[0])
    is_open = col(JobRow.state).in_([State.QUEUED, State.RUNNING])
    others = session.exec(select(JobRow.namespace).distinct().where(is_open, _needs(base))).all()
    turns = [other for other in others if other != namespace]
    since, priority = min(row.run_after for row in waiting), max(row.priority for row in waiting)
    for row in running:
        if base in ("", _loaded(row)):
            passed = select(JobRow.id).where(_taken_by([row], turns, since), col(JobRow.priority) <= priority)
            if db.count_rows(session, passed.where(_needs(base)).limit(len(turns) + 1)) <= len(turns):
                return True
    return False


def _taken_by(running: Sequence[JobRow], namespaces: Sequence[str], since: datetime) -> ColumnElement[bool]:
    return and_(
        col(JobRow.namespace).in_(namespaces), col(JobRow.started_at) > since,
        col(JobRow.worker).in_({row.worker for row in running}),
    )  # fmt: skip


def _loaded(row: JobRow) -> str:
    """The base that a worker needs for this job; empty for none."""
    return "" if row.kind in KINDS_WITHOUT_BASE else row.base


def _needs(base: str) -> ColumnElement[bool]:
    """The condition on `job` that a worker needs this base for it; true for no base."""
    return and_(col(JobRow.base) == base, col(JobRow.kind).not_in(KINDS_WITHOUT_BASE)) if base else true()
