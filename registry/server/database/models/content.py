"""The rows: SQLModel tables, no behaviour and no validation. Those of access and audit are in rooms of their own.

Invariants
- A row ends in `Row` and never leaves `registry/server/`; `to_value()` or the catalog is the only crossing.
- Every time is UTC and aware (`UtcTime` refuses a naive one and gives an aware one back on SQLite too).
- JSON columns hold what canonical JSON or pydantic wrote; `manifest` holds the canonical bytes as text.
- `version`, `version_file` and `edge` can be rebuilt from the manifests in the blob store.
- `alias_move`, `event` and `verdict` are only ever appended to.

The migration in migrations/versions writes these columns out by hand; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Text, UniqueConstraint
from sqlmodel import Field
from sqlmodel import SQLModel as SQLModel

from registry.server.database.columns import UtcTime as UtcTime
from registry.server.database.models.access import AccessStateRow as AccessStateRow
from registry.server.database.models.access import IdempotencyRow as IdempotencyRow
from registry.server.database.models.access import NamespaceRow as NamespaceRow
from registry.server.database.models.access import PublisherRow as PublisherRow
from registry.server.database.models.access import RoleRow as RoleRow
from registry.server.database.models.access import TakenNameRow as TakenNameRow
from registry.server.database.models.access import TokenRow as TokenRow
from registry.server.database.models.access import UsedAssertionRow as UsedAssertionRow
from registry.server.database.models.audit import AttestationRow as AttestationRow
from registry.server.database.models.audit import AuditCheckpointRow as AuditCheckpointRow
from registry.server.database.models.audit import AuditTileRow as AuditTileRow
from registry.server.database.models.audit import DeliveryRow as DeliveryRow
from registry.server.database.models.audit import EventRow as EventRow
from registry.server.database.models.audit import WebhookRow as WebhookRow
from registry.server.database.models.fleet import FleetBlobRow as FleetBlobRow
from registry.server.database.models.fleet import FleetNodeRow as FleetNodeRow
from registry.server.database.models.fleet import FleetSlotRow as FleetSlotRow
from registry.server.database.models.gates import AdapterGateRow as AdapterGateRow
from registry.server.database.models.gates import ApprovalRow as ApprovalRow
from registry.server.database.models.gates import NamespaceGateRow as NamespaceGateRow
from registry.server.database.models.jobs import BaseThresholdsRow as BaseThresholdsRow
from registry.server.database.models.jobs import CampaignJobRow as CampaignJobRow
from registry.server.database.models.jobs import CampaignRow as CampaignRow
from registry.server.database.models.jobs import JobStepRow as JobStepRow
from registry.server.database.models.lineage import BaseEdgeRow as BaseEdgeRow
from registry.server.database.models.lineage import VersionInputRow as VersionInputRow
from registry.server.database.models.weights import VersionTagRow as VersionTagRow
from registry.server.database.models.weights import VersionValuesRow as VersionValuesRow


class BaseRow(SQLModel, table=True):
    __tablename__ = "base"
    id: int | None = Field(default=None, primary_key=True)
    name: str = Field(unique=True)
    fingerprint: str = Field(index=True)
    spec: dict[str, Any] = Field(sa_type=JSON)
    source: str = ""
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime)
    parents: list[dict[str, Any]] | None = Field(default=None, sa_type=JSON)


class BaseIdentityRow(SQLModel, table=True):
    """Which weights a base has. Given once, by whoever read them all, and never changed."""

    __tablename__ = "base_identity"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    exact: str = Field(index=True)
    identity: str = Field(sa_type=Text)
    made_at: datetime = Field(sa_type=UtcTime)
    made_by: str


class BaseLikenessRow(SQLModel, table=True):
    """How `other_id` is related to `base_id`: one row for each direction, made when an identity comes in."""

    __tablename__ = "base_likeness"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    other_id: int = Field(foreign_key="base.id", primary_key=True)
    likeness: dict[str, Any] = Field(sa_type=JSON)


class AdapterRow(SQLModel, table=True):
    __tablename__ = "adapter"
    __table_args__ = (UniqueConstraint("namespace", "name"),)
    id: int | None = Field(default=None, primary_key=True)
    namespace: str
    name: str
    newest_number: int = 0
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    updated_at: datetime = Field(sa_type=UtcTime, index=True)


class VersionRow(SQLModel, table=True):
    """A version. `recorded_at` is when its record was written beside the blobs; empty means that it still must be.

    `measured_at` is when the numbers of its weights were read (`weights`); empty means that they still must be.
    `created_by` is who pushed it; in older rows it is the token's name, and `pushed_by` who stood behind that.
    `quarantine` grows with each quarantine, and when one or a yank ends; `quarantined_at` is empty outside one.
    """

    __tablename__ = "version"
    __table_args__ = (UniqueConstraint("adapter_id", "number"), UniqueConstraint("adapter_id", "digest"))
    id: int | None = Field(default=None, primary_key=True)
    adapter_id: int = Field(foreign_key="adapter.id")
    number: int
    digest: str = Field(index=True)
    manifest: str = Field(sa_type=Text)
    base_id: int = Field(foreign_key="base.id", index=True)
    size_bytes: int = Field(sa_type=BigInteger)
    method: str = ""
    rank: int | None = None
    facts: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    message: str = Field(default="", sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    yanked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    yank_reason: str = Field(default="", sa_type=Text)
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    measured_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    pushed_by: str | None = None
    quarantine: int = 0
    quarantined_at: datetime | None = Field(default=None, sa_type=UtcTime)
    quarantine_reason: str = Field(default="", sa_type=Text)


class VersionFileRow(SQLModel, table=True):
    """A file of a version. `git_sha1` is the id of a git blob with its bytes, once a client of the Hub asked for it."""

    __tablename__ = "version_file"
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    path: str = Field(primary_key=True)
    digest: str = Field(index=True)
    size_bytes: int = Field(sa_type=BigInteger)
    media_type: str
    git_sha1: str | None = None


class EdgeRow(SQLModel, table=True):
    """Child → parent by the parent's manifest digest; the parent's row may not exist here (yet)."""

    __tablename__ = "edge"
    child_id: int = Field(foreign_key="version.id", primary_key=True)
    parent_digest: str = Field(primary_key=True, index=True)
    relation: str = Field(primary_key=True)
    parent_name: str = ""


class AliasRow(SQLModel, table=True):
    """Where an alias points now. `generation` grows by one with each move and is never reused."""

    __tablename__ = "alias"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    version_id: int = Field(foreign_key="version.id", index=True)
    generation: int
    moved_at: datetime = Field(sa_type=UtcTime)
    moved_by: str
    reason: str = Field(default="", sa_type=Text)


class AliasMoveRow(SQLModel, table=True):
    """The history of an alias, kept for ever: one row per generation, so time travel is one query."""

    __tablename__ = "alias_move"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    generation: int = Field(primary_key=True)
    from_version_id: int | None = Field(default=None, foreign_key="version.id")
    to_version_id: int | None = Field(default=None, foreign_key="version.id")
    at: datetime = Field(sa_type=UtcTime, index=True)
    actor: str
    token_id: str = ""
    reason: str = Field(default="", sa_type=Text)
    evidence: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)


class VerdictRow(SQLModel, table=True):
    """Appended, never changed: the newest row of (version, check, profile) is the verdict that counts."""

    __tablename__ = "verdict"
    __table_args__ = (Index("ix_verdict_version_check", "version_id", "check", "profile"),)
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    check: str
    profile: str = ""
    base_id: int = Field(foreign_key="base.id")
    base_fingerprint: str
    outcome: str
    findings: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    summary: str = Field(default="", sa_type=Text)
    report: str | None = Field(default=None, index=True)
    made_by: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    made_at: datetime = Field(sa_type=UtcTime)
    job_id: str = ""


class BlobRow(SQLModel, table=True):
    """A final key of the store; the row is there before the bytes are and goes after them. See `holds.BlobState`.

    `git_sha1` is not used any more (`VersionFileRow` has it): it goes in a later release.
    `marked_at` is when it became dead, `checked_at` when its bytes were last read and found true (or not: `corrupt`).
    """

    __tablename__ = "blob"
    digest: str = Field(primary_key=True)
    size_bytes: int = Field(sa_type=BigInteger)
    state: str = Field(default="live", index=True)
    created_at: datetime = Field(sa_type=UtcTime)
    checked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    marked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    git_sha1: str | None = None


class PushRow(SQLModel, table=True):
    """A push. While it is `open` it holds every blob that its manifest names; `gc` ends it after `expires_at`."""

    __tablename__ = "push"
    id: str = Field(primary_key=True)
    namespace: str
    name: str
    manifest: str = Field(sa_type=Text)
    manifest_digest: str
    message: str = Field(default="", sa_type=Text)
    state: str = "open"
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    token_id: str = ""
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class PushBlobRow(SQLModel, table=True):
    """A blob that a push names. `staging_key` is empty when the caller's own versions hold it already."""

    __tablename__ = "push_blob"
    push_id: str = Field(primary_key=True, sa_column_args=(ForeignKey("push.id", ondelete="CASCADE"),))
    digest: str = Field(primary_key=True, index=True)
    size_bytes: int = Field(sa_type=BigInteger)
    staging_key: str = ""


class JobRow(SQLModel, table=True):
    """A job. While it runs it holds the blob `report`, which it is about to leave behind."""

    __tablename__ = "job"
    __table_args__ = (Index("ix_job_claim", "state", "kind", "run_after", "priority"),)
    id: str = Field(primary_key=True)
    kind: str
    state: str
    namespace: str
    version_id: int | None = Field(default=None, foreign_key="version.id", index=True)
    subject: str
    subject_digest: str | None = None
    base: str = Field(index=True)
    priority: int = 0
    attempt: int = 0
    attempts_limit: int
    payload: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    progress: str = ""
    result: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    error: str = Field(default="", sa_type=Text)
    report: str | None = Field(default=None, index=True)
    worker: str = ""
    lease_token: str = ""
    lease_expires_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    run_after: datetime = Field(sa_type=UtcTime)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    started_at: datetime | None = Field(default=None, sa_type=UtcTime)
    finished_at: datetime | None = Field(default=None, sa_type=UtcTime)
