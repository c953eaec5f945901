"""Tables of jobs: queue, steps, campaigns, thresholds; and the locks between servers."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, Text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, SetColumns, UtcTime


class JobRow(CreatedColumns, table=True):
    """A job. While it runs it references the blob `report` that it is about to write.

    `automatic`: a push queued it and no one asked for it, so a newer checkpoint may supersede it.
    """

    __tablename__ = "job"
    __table_args__ = (
        Index("ix_job_claim", "state", "kind", "run_after", "priority"),
        Index("ix_job_namespace_started_at", "namespace", "started_at"),
        Index("ix_job_created_at_id", "created_at", "id"),
        Index("ix_job_subject", "subject"),
    )
    id: str = Field(primary_key=True)
    kind: str
    state: str
    namespace: str
    version_id: int | None = Field(default=None, foreign_key="version.id", index=True)
    subject: str
    subject_digest: str | None = None
    base: str = Field(index=True)
    priority: int = 0
    automatic: bool = False
    attempt: int = 0
    attempts_limit: int
    payload: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    progress: str = ""
    result: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    error: str = Field(default="", sa_type=Text)
    report: str | None = Field(default=None, index=True)
    worker: str = ""
    lease_token: str = Field(default="", repr=False)
    lease_expires_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    run_after: datetime = Field(sa_type=UtcTime)
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcTime)


class JobStepRow(SQLModel, table=True):
    """A line of a job's log. Rows are only appended; the queue limits how many."""

    __tablename__ = "job_step"
    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    attempt: int
    at: datetime = Field(sa_type=UtcTime)
    message: str


class ProcessLockRow(SQLModel, table=True):
    """A lock between servers on PostgreSQL: who has it, until when, and the number of this holder (`locks`)."""

    __tablename__ = "process_lock"
    name: str = Field(primary_key=True)
    number: int = Field(sa_type=BigInteger)
    holder: str
    expires_at: datetime = Field(sa_type=UtcTime)


class CampaignRow(CreatedColumns, table=True):
    """A campaign of smoke tests. `request`: as it was sent."""

    __tablename__ = "campaign"
    id: str = Field(primary_key=True)
    base: str = Field(index=True)
    base_fingerprint: str
    request: dict[str, Any] = Field(sa_type=JSON)


class CampaignJobRow(SQLModel, table=True):
    """One version of a campaign. `before`: the outcome of its check `smoke` when the campaign began; empty for none."""

    __tablename__ = "campaign_job"
    campaign_id: str = Field(foreign_key="campaign.id", primary_key=True)
    job_id: str = Field(foreign_key="job.id", primary_key=True, index=True)
    before: str = ""
    summary: str = Field(default="", sa_type=Text)


class BaseThresholdsRow(SetColumns, table=True):
    """Thresholds that a base sets instead of the defaults."""

    __tablename__ = "base_thresholds"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    thresholds: dict[str, Any] = Field(sa_type=JSON)
