"""REST schemas of webhooks and their deliveries."""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemList, ItemPage, Request, Response
from registry.events import WEBHOOK_DEFAULT, DeliveryState


class WebhookCreate(Request):
    """A new webhook."""

    url: str = Field(min_length=1, max_length=2000)
    namespace: str = Field(default="*", max_length=100)
    actions: list[str] = Field(default=list(WEBHOOK_DEFAULT), min_length=1, max_length=32)


class WebhookView(Response):
    """A webhook without its secret."""

    id: str
    namespace: str
    url: str
    actions: list[str]
    created_at: datetime
    created_by: str


class WebhookCreated(Response):
    """A webhook and its secret, which is shown once."""

    webhook: WebhookView
    secret: str = Field(repr=False)


class WebhookPage(ItemPage[WebhookView]):
    """A page of the webhooks that the caller administers."""


class DeliveryView(Response):
    """One event for one webhook."""

    id: int
    seq: int
    state: DeliveryState
    attempt: int
    next_at: datetime
    status: int | None = None
    error: str = ""
    created_at: datetime
    ended_at: datetime | None = None


class DeliveryList(ItemList[DeliveryView]):
    """The deliveries of a webhook, newest first."""
