"""The queue: enqueue, claim, renew, finish, fail. It knows jobs and leases, not what jobs do.

- A job is enqueued in the transaction of the change that caused it, and what it leaves is written in the transaction
  that finishes it. Finishing twice with one lease is the same as once.
- A claim is one statement, so two workers never hold one job. The lease's token is a fencing token: once the lease is
  lost, a late result is refused (LEASE_LOST) and changes nothing.
- Every claim takes back expired leases: the job is requeued while attempts are left, else it fails.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Text, case, cast, exists, func, literal, true, update
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from registry import jobs
from registry.errors import Conflict, NotFound, TooLarge
from registry.events import EventType
from registry.jobs import Job, JobStep, Kind, Lease, State
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import SYSTEM, Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.database.expressions import bytes_between
from registry.server.database.models import EventRow, VersionRow
from registry.server.database.models.jobs import JobRow, JobStepRow
from registry.server.jobs import ended

if TYPE_CHECKING:  # a push, which queues a test, does not load these schemas
    from registry.api.jobs import ClaimRequest, FailRequest

AFFINITY_SECONDS = 120
"""How long jobs for another base wait while a worker takes those for its loaded one."""


class Unclaimed(Enum):
    """Why a claim brings no job: there is none, or another request has locked each, such as a campaign."""

    NONE = "none"
    LOCKED = "locked"


IS_WITHHELD = exists().where(col(VersionRow.id) == col(JobRow.version_id), col(VersionRow.quarantined_at).is_not(None))
"""The condition on `job` that its version is in quarantine or deleted: no worker gets it until that ends."""


def enqueue(
    session: Session, actor: Actor, kind: Kind, version: VersionRow, *, name: AdapterName, base: str,
    payload: dict[str, Any] | None = None, priority: int = 0,
) -> JobRow:  # fmt: skip
    """Queue a job on one version. An equal job that is queued or running is returned instead.

    `Denied` for a priority over 0, which delays the jobs of others, unless the actor is an administrator.
    """
    if priority > 0:
        actor.require_everywhere(Scope.ADMIN)
    if len(json.dumps(payload or {})) > jobs.PAYLOAD_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"payload: over the limit of {jobs.PAYLOAD_LIMIT_BYTES} bytes")
    same = select(JobRow).where(
        col(JobRow.version_id) == version.id,
        col(JobRow.kind) == kind,
        col(JobRow.state).in_([State.QUEUED, State.RUNNING]),
    )
    locked = same.order_by(col(JobRow.created_at)).limit(1).with_for_update().execution_options(populate_existing=True)
    waiting = session.exec(locked).first()  # locked: else what ends it at this moment would take it from its caller
    if waiting is not None and waiting.payload == (payload or {}):
        waiting.automatic = False  # it was asked for now
        session.add(waiting)
        return waiting
    ended.delete_surplus(session, version.id, kind)
    row, event = build(session, actor, kind, version, name=name, base=base, payload=payload, priority=priority)
    session.add(row)
    db.bulk_insert(session, [event])
    return row


def build(
    session: Session, actor: Actor, kind: Kind, version: VersionRow, *, name: AdapterName, base: str,
    payload: dict[str, Any] | None = None, priority: int = 0, automatic: bool = False,
) -> tuple[JobRow, EventRow]:  # fmt: skip
    """The rows of a new job and of its event, for a caller that inserts many at once. `automatic`: see `JobRow`."""
    moment = db.now()
    row = db.new_row(
        JobRow,
        id="job_" + secrets.token_hex(10), kind=kind, state=State.QUEUED, namespace=name.namespace,
        version_id=version.id, subject=f"{name}@{version.number}", subject_digest=version.digest, base=base,
        priority=priority, automatic=automatic, attempts_limit=jobs.ATTEMPTS_LIMIT, payload=payload or {},
        run_after=moment, created_at=moment, created_by=actor.identity,
    )  # fmt: skip
    detail = {"kind": kind, "subject": row.subject}
    return row, audit.build(session, actor, EventType.JOB_ENQUEUE, row.id, detail, namespace=row.namespace)


def supersede(session: Session, causes: Mapping[int, str]) -> None:
    """End the queued jobs on these versions that pushes queued and no one asked for. `causes`: version id → why."""
    if not causes:
        return
    waiting = select(JobRow).where(
        col(JobRow.version_id).in_(causes), col(JobRow.state) == State.QUEUED, col(JobRow.automatic)
    )
    for row in session.exec(waiting.with_for_update(skip_locked=True)).all():
        cause = causes[row.version_id or 0]
        end_job(row, State.SUPERSEDED)
        row.error = f"superseded: {cause}"
        session.add(row)
        detail = {"subject": row.subject, "cause": cause}
        audit.append(session, SYSTEM, EventType.JOB_SUPERSEDE, row.id, detail, namespace=row.namespace)


# ------------------------------------------------------------------ the worker's side
def claim(session: Session, actor: Actor, request: ClaimRequest) -> tuple[JobRow, Lease] | Unclaimed:
    """The next job for this worker and its lease, or why there is none. It never waits for another request.

    By priority; then namespaces take turns: the next one is that whose last job began first, with its job for the first
    of `request.bases` (loaded ones first), else its oldest. Jobs that have waited for less than `AFFINITY_SECONDS` come
    after all others, by the order of `request.bases` first: so a loaded base delays no one for longer. Quarantined
    versions wait.
    """
    requeue_expired(session)
    moment = db.now()
    conditions = [
        col(JobRow.state) == State.QUEUED,
        col(JobRow.kind).in_([str(kind) for kind in request.kinds]),
        col(JobRow.run_after) <= moment,
        _may_work(actor),
        col(JobRow.id).not_in(_find_invisible_jobs(session, actor, request.kinds)),
        ~IS_WITHHELD,
    ]
    base_order: Any = literal(0)
    if request.bases:
        conditions.append(col(JobRow.base).in_(request.bases))
        base_order = case({base: i for i, base in enumerate(request.bases)}, value=col(JobRow.base))
    if session.exec(select(JobRow.id).where(*conditions).limit(1)).first() is None:
        return Unclaimed.NONE  # as for idle workers, which ask all the time: nothing is sorted or locked for them
    other = aliased(JobRow)
    last_started = select(func.max(other.started_at)).where(other.namespace == col(JobRow.namespace)).scalar_subquery()
    has_waited = col(JobRow.run_after) <= moment - timedelta(seconds=AFFINITY_SECONDS)
    order: list[Any] = [col(JobRow.priority).desc(), case((has_waited, -1), else_=base_order)]
    order += [last_started.asc().nulls_first(), base_order, col(JobRow.created_at), col(JobRow.id)]
    picked = select(JobRow.id).where(*conditions).order_by(*order).limit(1)
    picked = picked.with_for_update(skip_locked=True, key_share=True)
    lease = Lease(token=secrets.token_hex(16), expires_at=moment + timedelta(seconds=jobs.JOB_LEASE_SECONDS))
    claimed = (
        update(JobRow)
        .where(col(JobRow.id) == picked.scalar_subquery(), col(JobRow.state) == State.QUEUED)
        .values(state=State.RUNNING, worker=request.worker, attempt=col(JobRow.attempt) + 1, started_at=moment)
        .values(lease_token=lease.token, lease_expires_at=lease.expires_at, progress="")
        .returning(col(JobRow.id))
    )
    job_id = session.connection().execute(claimed).scalar()
    if job_id is None:
        return Unclaimed.LOCKED
    return session.get_one(JobRow, job_id, populate_existing=True), lease


def _find_invisible_jobs(session: Session, actor: Actor, kinds: Sequence[Kind]) -> list[str]:
    """Queued jobs that name an adapter which this worker may not see: it would learn the name and could only fail."""
    kinds_with_names = [str(kind) for kind in kinds if kind is not Kind.SMOKE_TEST]
    if not kinds_with_names or actor.may_everywhere(Scope.PULL):
        return []
    waiting = select(JobRow).where(
        col(JobRow.state) == State.QUEUED, col(JobRow.kind).in_(kinds_with_names), _may_work(actor)
    )
    return [row.id for row in session.exec(waiting) if not all(map(actor.sees, named_adapters(row)))]


def renew(session: Session, actor: Actor, job_id: str, token: str, *, progress: str = "") -> Lease:
    """Extend the lease by `JOB_LEASE_SECONDS`. `Conflict` (LEASE_LOST) if another worker has it or it ended."""
    row = _lock_leased(session, actor, job_id, token)
    row.lease_expires_at = db.now() + timedelta(seconds=jobs.JOB_LEASE_SECONDS)
    if progress and progress != row.progress:
        row.progress = progress
        _add_step(session, row, progress)
    session.add(row)
    return Lease(token=token, expires_at=row.lease_expires_at)


def lock_running(session: Session, actor: Actor, job_id: str, token: str) -> JobRow | None:
    """The job, locked, while this lease holds it; None if this lease has finished it. `Conflict` (LEASE_LOST)."""
    row = find_job(session, actor, Scope.WORK, job_id, lock=True)
    if row.state == State.DONE and secrets.compare_digest(row.lease_token, token):
        return None
    return _lock_leased(session, actor, job_id, token)


def finish(session: Session, actor: Actor, job_id: str, token: str, result: dict[str, Any]) -> tuple[JobRow, bool]:
    """Mark the job as done; also says whether this call did. `Conflict` (LEASE_LOST) for an old lease."""
    if len(json.dumps(result)) > jobs.RESULT_LIMIT_BYTES:
        raise TooLarge("SIZE_INVALID", f"result: over the limit of {jobs.RESULT_LIMIT_BYTES} bytes")
    row = lock_running(session, actor, job_id, token)
    if row is None:
        return find_job(session, actor, Scope.WORK, job_id), False
    end_job(row, State.DONE)
    row.result = result
    session.add(row)
    detail = {"worker": row.worker, "attempt": row.attempt}
    audit.append(session, actor, EventType.JOB_FINISH, row.id, detail, namespace=row.namespace)
    return row, True


def fail(session: Session, actor: Actor, job_id: str, request: FailRequest) -> JobRow:
    """End an attempt with an error: the job is requeued with a delay, or fails."""
    row = _lock_leased(session, actor, job_id, request.lease_token)
    _retry_or_fail(session, actor, row, request.error, final=request.final)
    return row


def requeue_expired(session: Session) -> int:
    """Take back the jobs whose lease has expired; returns how many."""
    expired = select(JobRow).where(col(JobRow.state) == State.RUNNING, col(JobRow.lease_expires_at) < db.now())
    locked = expired.with_for_update(skip_locked=True).execution_options(populate_existing=True)
    rows = session.exec(locked).all()
    for row in rows:
        error = f"worker {row.worker!r} did not renew its lease in attempt {row.attempt}"
        _retry_or_fail(session, SYSTEM, row, error, final=False, wait=False)
    session.flush()
    return len(rows)


def _retry_or_fail(session: Session, actor: Actor, row: JobRow, error: str, *, final: bool, wait: bool = True) -> None:
    row.error = error
    if final or row.attempt >= row.attempts_limit:
        end_job(row, State.FAILED)
    else:
        row.state = State.QUEUED
        row.run_after = db.now() + timedelta(seconds=jobs.backoff_seconds(row.attempt) if wait else 0)
        row.lease_token, row.lease_expires_at = "", None
    session.add(row)
    detail: dict[str, Any] = {"attempt": row.attempt}
    if all(name.namespace == row.namespace for name in named_adapters(row)):  # else some readers may not see the names
        detail["error"] = error[:500]
    event_type = EventType.JOB_FAIL if row.state == State.FAILED else EventType.JOB_REQUEUE
    audit.append(session, actor, event_type, row.id, detail, namespace=row.namespace)


def cancel_waiting(session: Session, version: VersionRow) -> None:
    """Cancel the queued jobs on a version that nothing can be done with any more."""
    queued = select(JobRow).where(JobRow.version_id == version.id, JobRow.state == State.QUEUED)
    for row in session.exec(queued.with_for_update(skip_locked=True)).all():
        cancel(session, SYSTEM, row)


def cancel(session: Session, actor: Actor, row: JobRow) -> None:
    """Cancel a job that has not ended. The caller holds its lock."""
    end_job(row, State.CANCELLED)
    session.add(row)
    audit.append(session, actor, EventType.JOB_CANCEL, row.id, {"subject": row.subject}, namespace=row.namespace)


def end_job(row: JobRow, state: State) -> None:
    """Put the job into a final state."""
    row.state = state
    row.finished_at = db.now()
    row.lease_expires_at = None  # the token stays: a repeated finish shows it


def named_adapters(row: JobRow) -> list[AdapterName]:
    """The adapters that a job's payload names: its sources, and where the result goes."""
    adapters = [Ref.parse(source).name for source in row.payload.get("sources") or ()]
    into = row.payload.get("into") if row.kind != Kind.FUSE else ""  # a fuse creates a base, which everyone sees
    return [*adapters, *([AdapterName.parse(into)] if into else [])]


def find_sources(session: Session, name: AdapterName, states: Sequence[State]) -> list[tuple[str, int]]:
    """The versions of an adapter, by number, that jobs in these states merge or fuse, each with the id of its job.

    Only of jobs of the adapter's namespace, or into it: readers of a public adapter cannot hold its versions.
    """
    rows = session.exec(
        select(JobRow).where(
            col(JobRow.state).in_(states), col(JobRow.kind).in_([Kind.MERGE, Kind.FUSE]),
            cast(JobRow.payload, Text).contains(f"{name}@", autoescape=True),
        ).order_by(col(JobRow.created_at))
    )  # fmt: skip
    own = [r for r in rows if name.namespace in (r.namespace, str(r.payload.get("into", "")).partition("/")[0].lower())]
    sources = [(row.id, Ref.parse(source)) for row in own for source in row.payload.get("sources") or ()]
    return [(job_id, ref.selector) for job_id, ref in sources if ref.name == name and isinstance(ref.selector, int)]


def to_job(row: JobRow) -> Job:
    """The row as the API returns it: without the lease's token."""
    is_expired = row.state == State.RUNNING and row.lease_expires_at is not None and row.lease_expires_at < db.now()
    return Job.model_validate({**row.model_dump(include=set(Job.model_fields)), "lease_expired": is_expired})


# ------------------------------------------------------------------ steps
def _add_step(session: Session, job: JobRow, message: str) -> None:
    count = session.exec(select(func.count(col(JobStepRow.id))).where(col(JobStepRow.job_id) == job.id)).one()
    if count < jobs.STEPS_LIMIT:
        session.add(JobStepRow(job_id=job.id, attempt=job.attempt, at=db.now(), message=message))


def list_steps(session: Session, job: JobRow) -> tuple[JobStep, ...]:
    """What workers reported while they worked on the job, in order."""
    statement = select(JobStepRow).where(col(JobStepRow.job_id) == job.id).order_by(col(JobStepRow.id))
    return tuple(JobStep(at=row.at, attempt=row.attempt, message=row.message) for row in session.exec(statement))


# ------------------------------------------------------------------ rights and locks
def visible(actor: Actor, scope: Scope = Scope.PULL) -> ColumnElement[bool]:
    """The condition on `job` that the actor has this scope for its adapter."""
    return versions.permitted(actor, scope, col(JobRow.namespace), has_adapter)


def has_adapter(name: AdapterName) -> ColumnElement[bool]:
    """The condition on `job` that its subject is a version of this adapter."""
    return bytes_between(col(JobRow.subject), f"{name}@", f"{name}A")  # no index of SQLite serves LIKE


def _may_work(actor: Actor) -> ColumnElement[bool]:
    return visible(actor, Scope.WORK) if actor.has_scope(Scope.WORK) else ~true()


def find_job(session: Session, actor: Actor, scope: Scope, job_id: str, *, lock: bool = False) -> JobRow:
    """The row of a job for an actor with this scope. `NotFound` (JOB_UNKNOWN)."""
    statement = select(JobRow).where(col(JobRow.id) == job_id[:100]).execution_options(populate_existing=True)
    row = session.exec(statement.with_for_update() if lock else statement).first()
    if row is None or not actor.may(scope, row.namespace, subject_adapter(row).name):
        retention = f"{ended.ENDED_RETENTION.days} days, of one version all beyond {ended.ENDED_CHARACTERS >> 20} MiB"
        raise NotFound(
            "JOB_UNKNOWN", f"there is no job {job_id[:100]!r}, or you may not see it",
            next_step=f"see `adapter job list`; ended jobs are deleted after {retention}",
        )  # fmt: skip
    return row


def subject_adapter(row: JobRow) -> AdapterName:
    """The adapter whose version a job is about."""
    return AdapterName.parse(row.subject.partition("@")[0])


def _lock_leased(session: Session, actor: Actor, job_id: str, token: str) -> JobRow:
    row = find_job(session, actor, Scope.WORK, job_id, lock=True)
    if row.state != State.RUNNING or not token or not secrets.compare_digest(row.lease_token, token):
        raise Conflict(
            "LEASE_LOST",
            f"this lease on job {row.id} is over: the job is {row.state}",
            next_step="stop working on it; its result would be ignored",
        )
    return row
