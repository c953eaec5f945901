"""Tables of the audit log: events, checkpoints, and tiles of its tree."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, LargeBinary, Text, text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import UtcTime

_UNNUMBERED = text("position IS NULL")


class EventRow(SQLModel, table=True):
    """An event, appended in the transaction of the change. The sequencer sets `position` once, without a gap.

    Readers of `namespace` may see it; if that is empty, only administrators.
    """

    __tablename__ = "event"
    __table_args__ = (
        Index("ix_event_namespace_position", "namespace", "position"),
        Index("uq_event_position", "position", unique=True),
        Index("ix_event_unnumbered", "seq", sqlite_where=_UNNUMBERED),
        Index("ix_event_object", "object"),
    )
    seq: int | None = Field(default=None, primary_key=True)
    """Order of insertion, with gaps. The `seq` of REST responses is `position`."""
    at: datetime = Field(sa_type=UtcTime, index=True)
    actor: str
    token_id: str = ""
    action: str
    object: str
    namespace: str = ""
    detail: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    request_id: str = ""
    position: int | None = Field(default=None, sa_type=BigInteger)
    """Number in the log, from 1 without a gap, once the event has one. REST responses call it `seq`."""


class AuditCheckpointRow(SQLModel, table=True):
    """A checkpoint: the signed size and root of the log, as a whole note."""

    __tablename__ = "audit_checkpoint"
    size: int = Field(primary_key=True, sa_type=BigInteger, sa_column_kwargs={"autoincrement": False})
    note: str = Field(sa_type=Text)
    at: datetime = Field(sa_type=UtcTime)


class AuditTileRow(SQLModel, table=True):
    """A tile of the log's tree: up to 256 hashes of 32 bytes. `stored_width`: how many of them are in the store."""

    __tablename__ = "audit_tile"
    level: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    index: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    width: int
    hashes: bytes = Field(sa_type=LargeBinary)
    stored_width: int = Field(default=0, index=True)
