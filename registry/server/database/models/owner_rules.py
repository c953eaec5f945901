"""Tables of what owners set or sign: gates, approvals, retention, attestations, webhooks and their deliveries."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.events import DeliveryState
from registry.server.database.models.columns import CreatedColumns, SetColumns, UtcTime


class RuleKind(StrEnum):
    """What an owner sets."""

    GATE = "gate"
    RETENTION = "retention"


class RuleRow(SetColumns, table=True):
    """A rule of one adapter, with which it is renamed, or of a namespace, for adapters without one of their own.

    Either `adapter_id` or `namespace` is None. `alias`: of a gate; empty for retention.
    """

    __tablename__ = "owner_rule"
    __table_args__ = (UniqueConstraint("adapter_id", "kind", "alias"), UniqueConstraint("namespace", "kind", "alias"))
    id: int | None = Field(default=None, primary_key=True)
    adapter_id: int | None = Field(default=None, foreign_key="adapter.id")
    namespace: str | None = None
    kind: str
    alias: str = ""
    rule: dict[str, Any] = Field(sa_type=JSON)


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


SIGNATURE, UNVERIFIED = "signature", "unverified"
"""Kinds of attestations that clients send: by a known signer, or by one that the registry cannot tell."""


class AttestationRow(SQLModel, table=True):
    """A signed statement about a version, stored as the blob `digest`. `identity` is the signer."""

    __tablename__ = "attestation"
    id: int | None = Field(default=None, primary_key=True)
    version_id: int = Field(foreign_key="version.id", index=True)
    kind: str
    identity: str = Field(index=True)
    digest: str = Field(index=True)
    size_bytes: int
    public_key: str = Field(default="", sa_type=Text)
    position: int | None = Field(default=None, sa_type=BigInteger, unique=True)
    made_at: datetime = Field(sa_type=UtcTime)
    made_by: str


class WebhookRow(CreatedColumns, table=True):
    """An endpoint that receives events, queued up to position `after`.

    Its secret follows from its id and `key`, a key of the key file by its public half; empty is the oldest one there.
    """

    __tablename__ = "webhook"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    url: str = Field(sa_type=Text)
    actions: list[str] = Field(default_factory=list, sa_type=JSON)
    after: int = Field(default=0, sa_type=BigInteger)
    key: str = ""


class DeliveryRow(SQLModel, table=True):
    """The delivery of one event to one webhook: waiting, delivered or dead."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (UniqueConstraint("webhook_id", "position"), Index("ix_webhook_delivery_due", "state", "next_at"))
    id: int | None = Field(default=None, primary_key=True)
    webhook_id: str = Field(sa_column_args=(ForeignKey("webhook.id", ondelete="CASCADE"),))
    position: int = Field(sa_type=BigInteger)
    state: str = DeliveryState.WAITING
    attempt: int = 0
    next_at: datetime = Field(sa_type=UtcTime)
    status: int | None = None
    error: str = Field(default="", sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
