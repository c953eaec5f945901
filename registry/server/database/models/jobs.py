"""The rows around jobs and bases' judging: thresholds, campaigns and their jobs, the steps of a job.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- `job_step` is only ever appended to; how many one job may have is `queue`'s to say.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Text
from sqlmodel import Field, SQLModel

from registry.server.database.columns import UtcTime


class BaseThresholdsRow(SQLModel, table=True):
    """What a base says instead of the default thresholds."""

    __tablename__ = "base_thresholds"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    thresholds: dict[str, Any] = Field(sa_type=JSON)
    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str


class CampaignRow(SQLModel, table=True):
    """`why`: what was asked for, as it was asked."""

    __tablename__ = "campaign"
    id: str = Field(primary_key=True)
    base: str = Field(index=True)
    base_fingerprint: str
    why: dict[str, Any] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str


class CampaignJobRow(SQLModel, table=True):
    """One version of a campaign. `before`: the outcome of its check `smoke` when it began; empty for none."""

    __tablename__ = "campaign_job"
    campaign_id: str = Field(foreign_key="campaign.id", primary_key=True)
    job_id: str = Field(foreign_key="job.id", primary_key=True)
    before: str = ""
    summary: str = Field(default="", sa_type=Text)


class JobStepRow(SQLModel, table=True):
    """What a worker said that it was doing."""

    __tablename__ = "job_step"
    id: int | None = Field(default=None, primary_key=True)
    job_id: str = Field(foreign_key="job.id", index=True)
    attempt: int
    at: datetime = Field(sa_type=UtcTime)
    says: str
