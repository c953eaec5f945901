"""Routes of webhooks and their deliveries."""

from typing import Annotated, Literal

from fastapi import Query

from registry.api.audit.webhooks import (
    DeliveryList,
    DeliveryView,
    WebhookCreate,
    WebhookCreated,
    WebhookPage,
    WebhookView,
)
from registry.api.operations import webhooks as operations
from registry.events import DeliveryState
from registry.server import webhooks
from registry.server.http import dependencies as deps
from registry.server.http.documents import JsonBody
from registry.server.http.operation_router import OperationRouter

router = OperationRouter()


@router.serves(operations.CREATE_WEBHOOK)
def create_webhook(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    request: JsonBody[WebhookCreate],
    settings: deps.SettingsDep,
    log: deps.AuditLogDep,
) -> WebhookCreated:
    """Create a webhook. Its secret is in this response only."""
    view, secret = webhooks.create(session, actor, request, settings, log.keys)
    return WebhookCreated(webhook=view, secret=secret)


@router.serves(operations.LIST_WEBHOOKS)
def list_webhooks(
    session: deps.SessionDep, actor: deps.ActorDep, cursor: deps.CursorDep, limit: deps.LimitDep = deps.PAGE
) -> WebhookPage:
    """List the webhooks of the namespaces that the caller administers."""
    return webhooks.list_webhooks(session, actor, cursor=cursor, limit=limit)


@router.serves(operations.DELETE_WEBHOOK)
def delete_webhook(session: deps.SessionDep, actor: deps.ActorDep, webhook_id: str) -> WebhookView:
    """Delete a webhook. Events that wait for it are not sent any more."""
    return webhooks.delete_webhook(session, actor, webhook_id)


@router.serves(operations.LIST_DELIVERIES)
def list_deliveries(
    session: deps.SessionDep,
    actor: deps.ActorDep,
    webhook_id: str,
    state: Annotated[Literal[""] | DeliveryState, Query()] = "",
    limit: deps.LimitDep = deps.PAGE,
) -> DeliveryList:
    """List the deliveries of a webhook, newest first."""
    return DeliveryList(items=webhooks.list_deliveries(session, actor, webhook_id, state=state, limit=limit))


@router.serves(operations.RETRY_DELIVERY)
def retry_delivery(session: deps.SessionDep, actor: deps.ActorDep, webhook_id: str, delivery_id: int) -> DeliveryView:
    """Send a delivery again, now and with all its attempts."""
    return webhooks.retry_delivery(session, actor, webhook_id, delivery_id)
