"""The rows of gates: what somebody has set for a channel of a namespace or of one adapter, and who has approved what.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- An adapter's gate and its approvals go with the adapter, also under another name.

The migrations write these columns out by hand; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.server.database.columns import UtcTime


class NamespaceGateRow(SQLModel, table=True):
    """What this alias asks for in every adapter of a namespace that has no gate of its own for it."""

    __tablename__ = "namespace_gate"
    namespace: str = Field(primary_key=True)
    alias: str = Field(primary_key=True)
    gate: dict[str, Any] = Field(sa_type=JSON)
    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str


class AdapterGateRow(SQLModel, table=True):
    __tablename__ = "adapter_gate"
    adapter_id: int = Field(foreign_key="adapter.id", primary_key=True)
    alias: str = Field(primary_key=True)
    gate: dict[str, Any] = Field(sa_type=JSON)
    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str


class ApprovalRow(SQLModel, table=True):
    """One identity's yes to a version in a channel."""

    __tablename__ = "approval"
    __table_args__ = (UniqueConstraint("version_id", "alias", "identity"),)
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id")
    alias: str
    identity: str
    token_id: str = ""
    comment: str = Field(default="", sa_type=Text)
    at: datetime = Field(sa_type=UtcTime)
