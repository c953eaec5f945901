"""Webhooks: create, list, end; and the deliveries of each. Where events of the audit log are sent to.

Invariants
- A webhook belongs to a namespace, or to all (`*`); only who is administrator there sees it. To others it is absent.
- Its secret is shown once and kept nowhere: it is derived from the key file and the webhook's id.
- Events tell of a webhook by its origin only: a path may hold somebody else's secret.

Example
    >>> view, secret = webhooks.create(session, actor, WebhookCreate(url="https://ops.example/hook"), settings, keys)
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from urllib.parse import urlsplit

from sqlmodel import Session, col, select

from registry import names
from registry.api.audit import DeliveryView, WebhookCreate, WebhookView
from registry.errors import Invalid, NotFound
from registry.server import audit
from registry.server.actors import EVERY_NAMESPACE, Actor
from registry.server.audit import tree
from registry.server.audit.keys import Keys
from registry.server.database import db
from registry.server.database.models import DeliveryRow, WebhookRow
from registry.server.settings import Settings
from registry.server.webhooks import target

WAITING, DELIVERED, DEAD = "waiting", "delivered", "dead"
WEBHOOKS_LIMIT = 100


def create(
    session: Session, actor: Actor, request: WebhookCreate, settings: Settings, keys: Keys
) -> tuple[WebhookView, str]:
    """A new webhook and its secret. It is told of what happens from now on. `Invalid` (URL_REFUSED), `Denied`."""
    if request.namespace == EVERY_NAMESPACE:
        actor.require_everywhere("admin")
    else:
        actor.require_in("admin", names.namespace(request.namespace))
    target.find(request.url, settings.webhook_private)
    if (
        len(session.exec(select(WebhookRow.id).where(WebhookRow.namespace == request.namespace)).all())
        >= WEBHOOKS_LIMIT
    ):
        raise Invalid("REQUEST_INVALID", f"'{request.namespace}' has {WEBHOOKS_LIMIT} webhooks, which is the limit")
    row = WebhookRow(
        id="whk_" + secrets.token_hex(8),
        namespace=request.namespace,
        url=request.url,
        actions=sorted(set(request.actions)),
        after=tree.size(session),
        created_at=db.now(),
        created_by=actor.identity,
    )
    session.add(row)
    told = {"to": origin(row.url), "actions": row.actions}
    audit.append(session, actor, "webhook.create", row.id, told, namespace=_audience(row))
    return view(row), secret_of(row.id, keys)


def every(session: Session, actor: Actor) -> list[WebhookView]:
    """The webhooks that the actor administers."""
    rows = session.exec(select(WebhookRow).order_by(col(WebhookRow.created_at), col(WebhookRow.id))).all()
    return [view(row) for row in rows if _administers(actor, row)]


def end(session: Session, actor: Actor, webhook_id: str) -> WebhookView:
    """Delete a webhook with its deliveries. `NotFound` (WEBHOOK_UNKNOWN)."""
    row = find(session, actor, webhook_id)
    shown = view(row)
    audit.append(session, actor, "webhook.delete", row.id, {"to": origin(row.url)}, namespace=_audience(row))
    session.delete(row)
    session.flush()
    return shown


def deliveries(session: Session, actor: Actor, webhook_id: str, *, state: str = "", limit: int) -> list[DeliveryView]:
    """The newest deliveries of a webhook, newest first."""
    find(session, actor, webhook_id)
    statement = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
    if state:
        statement = statement.where(DeliveryRow.state == state)
    return [_delivery(row) for row in session.exec(statement.order_by(col(DeliveryRow.id).desc()).limit(limit))]


def retry(session: Session, actor: Actor, webhook_id: str, delivery_id: int) -> DeliveryView:
    """Send a delivery again from now on, with all its attempts. `NotFound` (WEBHOOK_UNKNOWN)."""
    webhook = find(session, actor, webhook_id)
    row = session.get(DeliveryRow, delivery_id) if 0 < delivery_id < 2**31 else None
    if row is None or row.webhook_id != webhook_id:
        raise NotFound("WEBHOOK_UNKNOWN", f"webhook {webhook_id[:80]!r} has no delivery {delivery_id}")
    row.state, row.attempt, row.next_at, row.ended_at = WAITING, 0, db.now(), None
    session.add(row)
    audit.append(session, actor, "webhook.retry", webhook_id, {"seq": row.position}, namespace=_audience(webhook))
    session.flush()
    return _delivery(row)


def find(session: Session, actor: Actor, webhook_id: str) -> WebhookRow:
    row = session.get(WebhookRow, webhook_id[:80])
    if row is None or not _administers(actor, row):
        raise NotFound("WEBHOOK_UNKNOWN", f"there is no webhook {webhook_id[:80]!r}, or you may not see it")
    return row


def secret_of(webhook_id: str, keys: Keys) -> str:
    """The secret that signs what this webhook is sent (Standard Webhooks: `whsec_` and base64)."""
    return "whsec_" + base64.b64encode(bytes.fromhex(keys.derived(f"webhook:{webhook_id}"))).decode()


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def view(row: WebhookRow) -> WebhookView:
    return WebhookView.model_validate(row.model_dump(include=set(WebhookView.model_fields)))


def _audience(row: WebhookRow) -> str:
    return "" if row.namespace == EVERY_NAMESPACE else row.namespace


def _administers(actor: Actor, row: WebhookRow) -> bool:
    if row.namespace == EVERY_NAMESPACE:
        return actor.may_everywhere("admin")
    return actor.may("admin", row.namespace)


def _delivery(row: DeliveryRow) -> DeliveryView:
    values = row.model_dump(include={"state", "attempt", "next_at", "status", "error", "created_at", "ended_at"})
    return DeliveryView(id=row.id or 0, seq=row.position, **values)


def due(session: Session, limit: int) -> Sequence[tuple[DeliveryRow, WebhookRow]]:
    """Deliveries whose time has come, the oldest first."""
    statement = (
        select(DeliveryRow, WebhookRow)
        .join(WebhookRow, col(WebhookRow.id) == col(DeliveryRow.webhook_id))
        .where(DeliveryRow.state == WAITING, col(DeliveryRow.next_at) <= db.now())
    )
    return session.exec(statement.order_by(col(DeliveryRow.next_at), col(DeliveryRow.id)).limit(limit)).all()
