"""Jobs as people see them: look, list, cancel. What workers do is the queue's.

Invariants
- A job belongs to the namespace of what it is about. Where it names adapters of others, too, only who sees all of them
  is told which.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, or_
from sqlmodel import Session, col, select

from registry import jobs
from registry.api.jobs import JobPage
from registry.digest import Digest
from registry.errors import Conflict, Invalid
from registry.events import EventType
from registry.jobs import Job, JobStep, Kind, State
from registry.names import Ref
from registry.roles import Scope
from registry.server import audit
from registry.server.actors import Actor
from registry.server.database.models import JobRow
from registry.server.jobs import queue, steps


def cancel_job(session: Session, actor: Actor, job_id: str) -> Job:
    """Ends a job that waits or runs; its worker learns it at the next renewal. Twice is the same as once."""
    row = queue.find_job(session, actor, Scope.PUSH, job_id, lock=True)
    if row.state == State.CANCELLED:
        return redact(actor, row)
    if not jobs.allowed(State(row.state), State.CANCELLED):
        raise Conflict("JOB_STATE", f"job {row.id} is {row.state} and cannot be cancelled")
    queue.end_job(row, State.CANCELLED)
    session.add(row)
    audit.append(session, actor, EventType.JOB_CANCEL, row.id, {"subject": row.subject}, namespace=row.namespace)
    return redact(actor, row)


def redact(actor: Actor, row: JobRow, steps: tuple[JobStep, ...] = ()) -> Job:
    """The job, without what may name adapters that the actor may not see: its payload, and all that was said of it."""
    job = queue.to_job(row)
    if all(map(actor.sees, queue.named_adapters(row))):
        return job.model_copy(update={"steps": steps})
    return job.model_copy(update={"payload": {}, "progress": "", "result": {}, "error": ""})


def show_job(session: Session, actor: Actor, job_id: str) -> Job:
    """The job with its steps, which lists leave out."""
    row = queue.find_job(session, actor, Scope.PULL, job_id)
    return redact(actor, row, steps.list_steps(session, row))


def list_jobs(
    session: Session, actor: Actor, *, state: str = "", kind: str = "", ref: str = "", cursor: str = "", limit: int
) -> JobPage:
    """Jobs that the actor may see, newest first. `ref` is an adapter, or one of its versions by number or digest."""
    statement = select(JobRow).where(queue.visible(actor))
    if state:
        statement = statement.where(col(JobRow.state) == _one_of(State, "state", state))
    if kind:
        statement = statement.where(col(JobRow.kind) == _one_of(Kind, "kind", kind))
    if ref:
        statement = statement.where(_about(ref))
    if cursor:
        last = queue.find_job(session, actor, Scope.PULL, cursor)
        older = col(JobRow.created_at) < last.created_at
        same_moment = (col(JobRow.created_at) == last.created_at) & (col(JobRow.id) < last.id)
        statement = statement.where(or_(older, same_moment))
    ordered = statement.order_by(col(JobRow.created_at).desc(), col(JobRow.id).desc())
    rows = session.exec(ordered.limit(limit + 1)).all()
    items = [redact(actor, row) for row in rows[:limit]]
    return JobPage(items=items, next_cursor=items[-1].id if len(rows) > limit else "")


def _about(text: str) -> ColumnElement[bool]:
    ref = Ref.parse(text)
    if isinstance(ref.selector, Digest):
        return (col(JobRow.subject_digest) == ref.selector) & col(JobRow.subject).startswith(f"{ref.name}@")
    if isinstance(ref.selector, int):
        return col(JobRow.subject) == str(ref)
    return col(JobRow.subject).startswith(f"{ref.name}@", autoescape=True)


def _one_of(words: type[State] | type[Kind], field: str, text: str) -> str:
    if text not in [str(word) for word in words]:
        raise Invalid("REQUEST_INVALID", f"{field}: {text[:40]!r} is not one of {', '.join(words)}")
    return text
