"""Steps: what workers said that they were doing with a job, in order.

Invariants
- Written in the transaction of the renewal that told it; at most `STEPS_LIMIT` for one job.
"""

from __future__ import annotations

from sqlalchemy import func
from sqlmodel import Session, col, select

from registry.jobs import STEPS_LIMIT, JobStep
from registry.server.database import db
from registry.server.database.models import JobRow, JobStepRow


def add_step(session: Session, job: JobRow, says: str) -> None:
    there = session.exec(select(func.count(col(JobStepRow.id))).where(col(JobStepRow.job_id) == job.id)).one()
    if there < STEPS_LIMIT:
        session.add(JobStepRow(job_id=job.id, attempt=job.attempt, at=db.now(), says=says))


def list_steps(session: Session, job: JobRow) -> tuple[JobStep, ...]:
    statement = select(JobStepRow).where(col(JobStepRow.job_id) == job.id).order_by(col(JobStepRow.id))
    return tuple(JobStep(at=row.at, attempt=row.attempt, says=row.says) for row in session.exec(statement))
