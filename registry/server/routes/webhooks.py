"""Routes of webhooks: create, list, end; deliveries, and once more.

Invariants
- Only who administers the namespace of a webhook knows of it. Its secret is in one answer only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Response

from registry.api.audit import DeliveryList, DeliveryView, WebhookCreate, WebhookCreated, WebhookList, WebhookView
from registry.server import webhooks
from registry.server.http import routing
from registry.server.http.dependencies import PAGE, Admin, LimitDep, SessionDep, SettingsDep
from registry.server.routes.audit import LogDep

router = routing.create_router("webhooks")


@router.post("/webhooks", status_code=201)
def create_webhook(
    session: SessionDep, actor: Admin, request: WebhookCreate, settings: SettingsDep, log: LogDep, response: Response
) -> WebhookCreated:
    """Create a webhook. Its secret is in this answer only."""
    response.headers["Cache-Control"] = "no-store"
    view, secret = webhooks.create(session, actor, request, settings, log.keys)
    return WebhookCreated(webhook=view, secret=secret)


@router.get("/webhooks")
def list_webhooks(session: SessionDep, actor: Admin) -> WebhookList:
    """List webhooks."""
    return WebhookList(items=webhooks.list_webhooks(session, actor))


@router.delete("/webhooks/{webhook_id}")
def delete_webhook(session: SessionDep, actor: Admin, webhook_id: str) -> WebhookView:
    """Delete a webhook."""
    return webhooks.delete_webhook(session, actor, webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    session: SessionDep,
    actor: Admin,
    webhook_id: str,
    state: Annotated[Literal["", "waiting", "delivered", "dead"], Query()] = "",
    limit: LimitDep = PAGE,
) -> DeliveryList:
    """List the deliveries of a webhook, newest first."""
    return DeliveryList(items=webhooks.list_deliveries(session, actor, webhook_id, state=state, limit=limit))


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/retry")
def retry_delivery(session: SessionDep, actor: Admin, webhook_id: str, delivery_id: int) -> DeliveryView:
    """Send a delivery again."""
    return webhooks.retry_delivery(session, actor, webhook_id, delivery_id)
