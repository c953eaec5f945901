"""Tables of webhooks and their deliveries."""

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.events import DeliveryState
from registry.server.database.models.columns import CreatedColumns, UtcTime


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
    key: str = Field(default="", sa_column_kwargs={"server_default": ""})


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
