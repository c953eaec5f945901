"""Routes of webhooks: create, list, end; deliveries, and once more.

Invariants
- Only who administers the namespace of a webhook knows of it. Its secret is in one answer only.

Example
    POST /api/v1/webhooks      201
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Response

from registry.api.audit import DeliveryList, DeliveryView, WebhookCreate, WebhookCreated, WebhookList, WebhookView
from registry.server import webhooks
from registry.server.routes import idempotent
from registry.server.routes.audit import LogDep
from registry.server.routes.deps import PAGE, Admin, LimitDep, SessionDep, SettingsDep

router = idempotent.router("webhooks")


@router.post("/webhooks", status_code=201)
def create_webhook(
    session: SessionDep, actor: Admin, request: WebhookCreate, settings: SettingsDep, log: LogDep, response: Response
) -> WebhookCreated:
    """A webhook and its secret, which is shown now and never again."""
    response.headers["Cache-Control"] = "no-store"
    view, secret = webhooks.create(session, actor, request, settings, log.keys)
    return WebhookCreated(webhook=view, secret=secret)


@router.get("/webhooks")
def list_webhooks(session: SessionDep, actor: Admin) -> WebhookList:
    return WebhookList(items=webhooks.every(session, actor))


@router.delete("/webhooks/{webhook_id}")
def delete_webhook(session: SessionDep, actor: Admin, webhook_id: str) -> WebhookView:
    return webhooks.end(session, actor, webhook_id)


@router.get("/webhooks/{webhook_id}/deliveries")
def list_deliveries(
    session: SessionDep,
    actor: Admin,
    webhook_id: str,
    state: Annotated[Literal["", "waiting", "delivered", "dead"], Query()] = "",
    limit: LimitDep = PAGE,
) -> DeliveryList:
    """The newest deliveries, newest first."""
    return DeliveryList(items=webhooks.deliveries(session, actor, webhook_id, state=state, limit=limit))


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/retry")
def retry_delivery(session: SessionDep, actor: Admin, webhook_id: str, delivery_id: int) -> DeliveryView:
    """Send a delivery again, from now on and with all its attempts."""
    return webhooks.retry(session, actor, webhook_id, delivery_id)
