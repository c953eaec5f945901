"""Tables of access (tokens, namespaces, roles, publishers) and of the audit log and what follows from it.

No row has a secret: a token has its hash, and a webhook's is derived from the key file and the webhook's id.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class TokenRow(CreatedColumns, table=True):
    """A token, with the SHA-256 of its secret and never the secret.

    The roles of `subject` (if set) limit its scopes; so do `adapters` (empty: all).
    `previous_sha256` is the secret before the last rotation, valid until `previous_until`.
    """

    __tablename__ = "token"
    id: str = Field(primary_key=True)
    name: str
    secret_sha256: str = Field(unique=True)
    scopes: list[str] = Field(sa_type=JSON)
    namespaces: list[str] = Field(sa_type=JSON)
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    subject: str = ""
    adapters: list[str] = Field(default_factory=list, sa_type=JSON)
    previous_sha256: str | None = Field(default=None, index=True)
    previous_until: datetime | None = Field(default=None, sa_type=UtcTime)


class NamespaceRow(CreatedColumns, table=True):
    """A namespace and its limits; None means no limit. A namespace without a row is private and has no limits."""

    __tablename__ = "namespace"
    name: str = Field(primary_key=True)
    quota_bytes: int | None = Field(default=None, sa_type=BigInteger)
    quota_versions: int | None = None
    pushes_per_hour: int | None = None


class RoleRow(SQLModel, table=True):
    """The role of a subject in a namespace. Subject `*`: everybody with a token; namespace `*`: all of them."""

    __tablename__ = "namespace_role"
    namespace: str = Field(primary_key=True)
    subject: str = Field(primary_key=True, index=True)
    role: str
    granted_at: datetime = Field(sa_type=UtcTime)
    granted_by: str


class TakenNameRow(SQLModel, table=True):
    """A reserved name, by its skeleton. With `ended_at` it is a tombstone: the name is never available again.

    `owner` is the namespace of an adapter's name; empty for the name of a namespace. `recorded_at`: when the
    tombstone's backup was written.
    """

    __tablename__ = "taken_name"
    owner: str = Field(primary_key=True)
    skeleton: str = Field(primary_key=True)
    name: str
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime)


class PublisherRow(CreatedColumns, table=True):
    """A trusted publisher: the issuer and claims of identity tokens that may be exchanged for a push token."""

    __tablename__ = "publisher"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    issuer: str = Field(index=True)
    claims: dict[str, Any] = Field(sa_type=JSON)


class UsedAssertionRow(SQLModel, table=True):
    """An identity token that was exchanged, and cannot be a second time."""

    __tablename__ = "used_assertion"
    issuer: str = Field(primary_key=True)
    jti: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class AccessStateRow(SQLModel, table=True):
    """The access epoch, in one row: every transaction that grants or revokes a right increments `generation`.

    A cache of actors compares it to learn whether it is still valid.
    """

    __tablename__ = "access_state"
    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    generation: int


class IdempotencyRow(SQLModel, table=True):
    """The response to a mutation under the caller's idempotency key, for a retry."""

    __tablename__ = "idempotency"
    token_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_sha256: str
    status: int
    answer: str = Field(sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime, index=True)


_UNNUMBERED = text("position IS NULL")


class EventRow(SQLModel, table=True):
    """An event, appended in the transaction of the change. The sequencer sets `position` once, without a gap.

    Readers of `namespace` may see it; if that is empty, only administrators.
    """

    __tablename__ = "event"
    __table_args__ = (
        Index("ix_event_namespace_position", "namespace", "position"),
        Index("uq_event_position", "position", unique=True),
        Index("ix_event_unnumbered", "seq", postgresql_where=_UNNUMBERED, sqlite_where=_UNNUMBERED),
        Index("ix_event_object", "object", postgresql_ops={"object": "text_pattern_ops"}),
    )
    seq: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcTime, index=True)
    actor: str
    token_id: str = ""
    action: str
    object: str
    namespace: str = ""
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    request_id: str = ""
    position: int | None = Field(default=None, sa_type=BigInteger)


class AuditTileRow(SQLModel, table=True):
    """A tile of the log's tree: up to 256 hashes of 32 bytes. `stored_width`: how many of them are in the store."""

    __tablename__ = "audit_tile"
    level: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    index: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    width: int
    hashes: bytes = Field(sa_type=LargeBinary)
    stored_width: int = Field(default=0, index=True)


class AuditCheckpointRow(SQLModel, table=True):
    """A checkpoint: the signed size and root of the log, as a whole note."""

    __tablename__ = "audit_checkpoint"
    size: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    note: str = Field(sa_type=Text)
    at: datetime = Field(sa_type=UtcTime)


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
    """An endpoint that receives events. `after` is the position of the last event that was queued for it."""

    __tablename__ = "webhook"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    url: str = Field(sa_type=Text)
    actions: list[str] = Field(default_factory=list, sa_type=JSON)
    after: int = Field(default=0, sa_type=BigInteger)


class DeliveryRow(SQLModel, table=True):
    """The delivery of one event to one webhook: waiting, delivered or dead."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        UniqueConstraint("webhook_id", "position"),
        Index("ix_webhook_delivery_due", "state", "next_at"),
    )
    id: int | None = Field(default=None, primary_key=True)
    webhook_id: str = Field(sa_column_args=(ForeignKey("webhook.id", ondelete="CASCADE"),))
    position: int = Field(sa_type=BigInteger)
    state: str = "waiting"
    attempt: int = 0
    next_at: datetime = Field(sa_type=UtcTime)
    status: int | None = None
    error: str = Field(default="", sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime)
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
