"""The pages of webhooks: those that the visitor administers, and one with its deliveries."""

from typing import Annotated, Literal

from fastapi import Query, Request, Response
from sqlmodel import Session

from registry.api.audit.webhooks import WebhookCreate
from registry.errors import Denied
from registry.events import WEBHOOK_DEFAULT, DeliveryState, EventType
from registry.roles import Scope
from registry.server import webhooks
from registry.server.http.dependencies import AuditLogDep, CursorDep, SessionDep, SettingsDep
from registry.server.http.request_body import limit_body
from registry.server.pages.rendering import create_router, redirect, render
from registry.server.pages.sessions.forms import FORM_BYTES, claim_form, confirm_identity, read_fields, to_request
from registry.server.pages.sessions.visitors import SignedInDep, Visitor
from registry.server.pages.settings.namespaces import SETTINGS

router = create_router()
WEBHOOKS = SETTINGS + "/webhooks"
WEBHOOKS_SHOWN = 50
DELIVERIES_SHOWN = 100


@router.get(WEBHOOKS)
def show_webhooks(request: Request, session: SessionDep, visitor: SignedInDep, cursor: CursorDep) -> Response:
    """Show the webhooks of the namespaces that the visitor administers."""
    return _render(request, session, visitor, cursor=cursor)


@router.post(WEBHOOKS)
@limit_body(FORM_BYTES)
def create_webhook(
    request: Request, session: SessionDep, visitor: SignedInDep, settings: SettingsDep, log: AuditLogDep
) -> Response:
    """Create a webhook and show the secret that signs its messages."""
    fields = read_fields(request, visitor)
    creation = to_request(
        WebhookCreate, url=fields.get("url", "").strip(), namespace=fields.get("namespace", "").strip(),
        actions=fields.get("actions", "").split(),
    )  # fmt: skip
    _require_owner(visitor)
    confirm_identity(request, session, visitor, fields.get("token", ""))
    claim_form(session, visitor, fields)
    view, secret = webhooks.create(session, visitor.actor, creation, settings, log.keys)
    return _render(request, session, visitor, created=view.url, secret=secret)


@router.get(WEBHOOKS + "/{webhook_id}")
def show_webhook(
    request: Request, session: SessionDep, visitor: SignedInDep, webhook_id: str,
    state: Annotated[Literal[""] | DeliveryState, Query()] = "",
) -> Response:  # fmt: skip
    """Show a webhook with its newest deliveries."""
    webhook = webhooks.find_webhook(session, visitor.actor, webhook_id)
    deliveries = webhooks.list_deliveries(session, visitor.actor, webhook_id, state=state, limit=DELIVERIES_SHOWN)
    return render(
        request, "webhook.html", title=f"Webhook {webhook.id}", webhook=webhook, deliveries=deliveries, state=state,
        states=DeliveryState,
    )  # fmt: skip


@router.post(WEBHOOKS + "/{webhook_id}/delete")
@limit_body(FORM_BYTES)
def delete_webhook(request: Request, session: SessionDep, visitor: SignedInDep, webhook_id: str) -> Response:
    """Delete a webhook. Events that wait for it are not sent any more."""
    read_fields(request, visitor)
    webhooks.delete_webhook(session, visitor.actor, webhook_id)
    return redirect(WEBHOOKS)


@router.post(WEBHOOKS + "/{webhook_id}/deliveries/{delivery_id}/retry")
@limit_body(FORM_BYTES)
def retry_delivery(
    request: Request, session: SessionDep, visitor: SignedInDep, webhook_id: str, delivery_id: int
) -> Response:
    """Send a delivery again, now and with all its attempts."""
    read_fields(request, visitor)
    webhooks.retry_delivery(session, visitor.actor, webhook_id, delivery_id)
    return redirect(f"{WEBHOOKS}/{webhook_id}")


def _render(
    request: Request, session: Session, visitor: Visitor, *, cursor: str = "", created: str = "", secret: str = ""
) -> Response:
    _require_owner(visitor)
    page = webhooks.list_webhooks(session, visitor.actor, cursor=cursor, limit=WEBHOOKS_SHOWN)
    return render(
        request, "webhooks.html", title="Webhooks", webhooks=page, cursor=cursor,
        created=created, secret=secret, events=sorted(EventType), default=" ".join(WEBHOOK_DEFAULT),
        may_create=bool(visitor.form_token), may_create_for_all=visitor.actor.may_everywhere(Scope.ADMIN),
    )  # fmt: skip


def _require_owner(visitor: Visitor) -> None:
    if not visitor.actor.has_scope(Scope.ADMIN):
        raise Denied("DENIED", "webhooks are shown to the owners of namespaces")
