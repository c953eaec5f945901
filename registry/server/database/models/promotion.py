"""Tables of promotion: aliases and their history, gates, approvals."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import UtcTime


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
    """The history of an alias: one row per generation, never deleted, so a look at the past is one query."""

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


class NamespaceGateRow(SQLModel, table=True):
    """The gate of an alias in every adapter of a namespace that has no gate of its own for it."""

    __tablename__ = "namespace_gate"
    namespace: str = Field(primary_key=True)
    alias: str = Field(primary_key=True)
    gate: dict[str, Any] = Field(sa_type=JSON)
    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str


class AdapterGateRow(SQLModel, table=True):
    """The gate of an alias of one adapter. It stays with the adapter when that is renamed."""

    __tablename__ = "adapter_gate"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    gate: dict[str, Any] = Field(sa_type=JSON)
    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str


class ApprovalRow(SQLModel, table=True):
    """The approval of a version for an alias by one identity."""

    __tablename__ = "approval"
    __table_args__ = (UniqueConstraint("version_id", "alias", "identity"),)
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    alias: str
    identity: str
    token_id: str = ""
    comment: str = Field(default="", sa_type=Text)
    at: datetime = Field(sa_type=UtcTime)
