"""REST schemas of webhooks and their deliveries."""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemList, ItemPage, Request, Response
from registry.events import WEBHOOK_DEFAULT, DeliveryState


class WebhookCreate(Request):
    """A new webhook."""

    url: str = Field(min_length=1, max_length=2000)
    """Where to POST deliveries. https to a public address, unless the server allows a private network."""
    namespace: str = Field(default="*", max_length=100)
    """Namespace whose events are sent; `*` for all."""
    actions: list[str] = Field(default=list(WEBHOOK_DEFAULT), min_length=1, max_length=32)
    """Types of events to send."""


class WebhookView(Response):
    """A webhook without its secret."""

    id: str
    """Identifier, with a prefix that names the kind (`tok_`, `job_` …)."""
    namespace: str
    """Namespace whose events are sent; `*` for all."""
    url: str
    """Where deliveries are sent."""
    actions: list[str]
    """Types of events that are sent."""
    created_at: datetime
    """When it was created."""
    created_by: str
    """Identity whose token created it."""


class WebhookCreated(Response):
    """A webhook and its secret, which is shown once."""

    webhook: WebhookView
    """The webhook without its secret."""
    secret: str = Field(repr=False)
    """Key of the signatures (Standard Webhooks: `whsec_` and base64). Shown in this response only."""


class WebhookPage(ItemPage[WebhookView]):
    """A page of the webhooks that the caller administers."""

    items: list[WebhookView]
    """Webhooks that the caller administers, oldest first."""


class DeliveryView(Response):
    """One event for one webhook."""

    id: int
    """Number of the delivery."""
    seq: int
    """Number of the event in the audit log, from 1 without a gap."""
    state: DeliveryState
    """`waiting`, `delivered`, or `dead` after the last attempt failed."""
    attempt: int
    """Number of attempts so far."""
    next_at: datetime
    """When the next attempt is due."""
    status: int | None = None
    """HTTP status of the last attempt; null if there was no response."""
    error: str = ""
    """Why the last attempt failed. Empty if it did not."""
    created_at: datetime
    """When it was created."""
    ended_at: datetime | None = None
    """When it was delivered or given up; null before."""


class DeliveryList(ItemList[DeliveryView]):
    """The deliveries of a webhook, newest first."""

    items: list[DeliveryView]
    """Deliveries, newest first."""
