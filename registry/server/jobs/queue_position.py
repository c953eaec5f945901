"""Where a job that waits stands: whether a worker that takes such jobs is busy, and how many jobs come first.

Workers register nowhere: one is known by the jobs that it took. Of the jobs of others a caller learns only that they
keep a worker busy.
"""

from collections.abc import Sequence, Set
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, func, or_, true
from sqlmodel import Session, col, select

from registry.api.jobs import QueuePosition
from registry.jobs import KINDS_WITHOUT_BASE, State
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models.jobs import JobRow
from registry.server.jobs import queue

TAKEN_SECONDS = 24 * 60 * 60
"""How far back jobs say what a worker takes."""
AHEAD_ROWS = 1000
"""How many jobs ahead are counted at most."""


def show_position(session: Session, actor: Actor, job_id: str) -> QueuePosition:
    """The position of a job that the actor may see; of one that no longer waits, that nothing is before it."""
    row = queue.find_job(session, actor, Scope.PULL, job_id)
    if not queue.to_job(row).waits_for_a_worker:
        return QueuePosition(worker_is_busy=False)
    same_priority = and_(col(JobRow.priority) == row.priority, col(JobRow.created_at) < row.created_at)
    goes_first = or_(col(JobRow.state) == State.RUNNING, col(JobRow.priority) > row.priority, same_priority)
    ahead = select(JobRow.id).where(
        queue.visible(actor),
        col(JobRow.state).in_([State.QUEUED, State.RUNNING]),
        goes_first,
        col(JobRow.id) != row.id,
        ~queue.IS_WITHHELD,
    )
    count = db.count_rows(session, ahead.where(_needs(_loaded(row.kind, row.base))).limit(AHEAD_ROWS))
    return QueuePosition(worker_is_busy=has_busy_worker(session, [row]), jobs_ahead=count)


def has_busy_worker(session: Session, waiting: Sequence[JobRow]) -> bool:
    """Whether a worker runs a job now and may take one of these next. A few statements for each base.

    That is one which took a job of the same namespace and base within `TAKEN_SECONDS`, or which runs one on this base
    and has not passed these by. Jobs on quarantined versions do not count: no worker gets them.
    """
    is_running = and_(col(JobRow.state) == State.RUNNING, col(JobRow.lease_expires_at) >= db.now())
    runs = select(JobRow.worker, JobRow.kind, JobRow.base).where(is_running).distinct()
    running = session.exec(runs).all() if waiting else []
    if not running:
        return False
    own = any_of(col(JobRow.id), [row.id for row in waiting])
    withheld = set(session.exec(select(JobRow.id).where(own, queue.IS_WITHHELD)))
    by_base: dict[str, list[JobRow]] = {}
    for row in waiting:
        if row.id not in withheld:
            by_base.setdefault(_loaded(row.kind, row.base), []).append(row)
    return any(
        _takes_jobs(session, {worker for worker, _, _ in running}, base, rows)
        or _passes_none_by(session, {w for w, *job in running if base in ("", _loaded(*job))}, base, rows)
        for base, rows in by_base.items()
    )


def _takes_jobs(session: Session, workers: Set[str], base: str, waiting: Sequence[JobRow]) -> bool:
    since = db.now() - timedelta(seconds=TAKEN_SECONDS)
    statement = select(JobRow.id).where(_taken_by(workers, {row.namespace for row in waiting}, since), _needs(base))
    return session.exec(statement.limit(1)).first() is not None


def _passes_none_by(session: Session, workers: Set[str], base: str, waiting: Sequence[JobRow]) -> bool:
    """Whether a worker took no more jobs since these wait than namespaces which take turns with theirs have.

    Of several namespaces, that is true of the one that has waited for the shortest time, or of none.
    """
    if not workers:
        return False
    waits_since: dict[str, datetime] = {}
    for row in waiting:
        waits_since[row.namespace] = min(row.run_after, waits_since.get(row.namespace, row.run_after))
    namespace, since = max(waits_since.items(), key=lambda item: item[1])
    is_open = col(JobRow.state).in_([State.QUEUED, State.RUNNING])
    others = session.exec(select(JobRow.namespace).distinct().where(is_open, _needs(base))).all()
    turns = {other for other in others if other != namespace}
    priority = max(row.priority for row in waiting if row.namespace == namespace)
    passed = select(JobRow.worker, func.count()).where(
        _taken_by(workers, turns, since), col(JobRow.priority) <= priority, _needs(base)
    )
    counts = dict(session.exec(passed.group_by(col(JobRow.worker))).all())
    return any(counts.get(worker, 0) <= len(turns) for worker in workers)


def _taken_by(workers: Set[str], namespaces: Set[str], since: datetime) -> ColumnElement[bool]:
    return and_(
        any_of(col(JobRow.namespace), sorted(namespaces)),
        col(JobRow.started_at) > since,
        any_of(col(JobRow.worker), sorted(workers)),
    )


def _loaded(kind: str, base: str) -> str:
    """The base that a worker needs for a job; empty for none."""
    return "" if kind in KINDS_WITHOUT_BASE else base


def _needs(base: str) -> ColumnElement[bool]:
    """The condition on `job` that a worker needs this base for it; true for no base."""
    return and_(col(JobRow.base) == base, col(JobRow.kind).not_in(KINDS_WITHOUT_BASE)) if base else true()
