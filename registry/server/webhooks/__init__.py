"""Webhooks: create, list, delete, and their deliveries. They send events of the audit log to other systems.

- A webhook belongs to a namespace or to all (`*`). Only administrators there see it.
- Its secret is shown once and not stored: it derives from its id and the key that signed the log when it was created.
- Events show only the origin of a webhook's URL, because the path may contain a secret.
"""

import base64
import secrets
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

from sqlalchemy import func, tuple_
from sqlmodel import Session, col, select

from registry.api import check_field
from registry.api.audit import EventView
from registry.api.audit.webhooks import DeliveryView, WebhookCreate, WebhookPage, WebhookView
from registry.errors import Invalid, NotFound, invalid_cursor
from registry.events import DeliveryState, EventType, require_type
from registry.roles import Scope
from registry.server import audit
from registry.server.access import namespaces
from registry.server.actors import EVERY_NAMESPACE, Actor
from registry.server.audit import tree
from registry.server.audit.keys import Keys
from registry.server.database import db
from registry.server.database.expressions import any_of
from registry.server.database.models import EventRow
from registry.server.database.models.owner_rules import DeliveryRow, WebhookRow
from registry.server.settings import Settings
from registry.server.webhooks.target import check_url

WEBHOOKS_LIMIT = 100
FAILING_LIMIT, FAILING_SINCE = 20, timedelta(days=1)


def create(
    session: Session, actor: Actor, request: WebhookCreate, settings: Settings, keys: Keys
) -> tuple[WebhookView, str]:
    """Create a webhook for events from now on and return it with its secret. `Invalid` (URL_REFUSED), `Denied`."""
    namespaces.require_admin(session, actor, request.namespace)
    for action in request.actions:
        check_field("actions", require_type, action)
    check_url(request.url, settings.webhook_private)
    db.lock_names(session, f"webhooks of {request.namespace}")
    existing = session.exec(select(WebhookRow.id).where(WebhookRow.namespace == request.namespace)).all()
    if len(existing) >= WEBHOOKS_LIMIT:
        raise Invalid("REQUEST_INVALID", f"'{request.namespace}' has {WEBHOOKS_LIMIT} webhooks, which is the limit")
    row = WebhookRow(
        id="whk_" + secrets.token_hex(8),
        namespace=request.namespace,
        url=request.url,
        actions=sorted(set(request.actions)),
        after=tree.read_size(session),
        key=keys.signer.verifier.text,
        created_at=db.now(),
        created_by=actor.identity,
    )
    session.add(row)
    detail = {"to": origin_of(row.url), "actions": row.actions}
    audit.append(session, actor, EventType.WEBHOOK_CREATE, row.id, detail, namespace=_event_namespace(row))
    return db.to_view(row, WebhookView), secret_of(row, keys)


def find_failing(session: Session, actor: Actor) -> list[tuple[str, str]]:
    """Ids and URLs of at most `FAILING_LIMIT` webhooks of the actor that wait for a next attempt, or gave up lately."""
    if not actor.has_scope(Scope.ADMIN):
        return []
    namespaces = actor.namespaces_with(Scope.ADMIN)
    is_dead = (col(DeliveryRow.state) == DeliveryState.DEAD) & (col(DeliveryRow.next_at) > db.now() - FAILING_SINCE)
    is_waiting = (col(DeliveryRow.state) == DeliveryState.WAITING) & (col(DeliveryRow.attempt) > 0)
    failing = select(DeliveryRow.webhook_id).where(is_dead | is_waiting)
    statement = select(WebhookRow.id, WebhookRow.url).where(col(WebhookRow.id).in_(failing)).order_by(WebhookRow.id)
    if namespaces is not None:
        statement = statement.where(any_of(col(WebhookRow.namespace), sorted(namespaces)))
    return list(session.exec(statement.limit(FAILING_LIMIT)).all())


def list_webhooks(session: Session, actor: Actor, *, cursor: str = "", limit: int) -> WebhookPage:
    """Return the webhooks that the actor administers, oldest first, from the one that follows `cursor`."""
    order = (col(WebhookRow.created_at), col(WebhookRow.id))
    statement = select(WebhookRow).order_by(*order).limit(limit + 1)
    namespaces = actor.namespaces_with(Scope.ADMIN)
    if namespaces is not None:
        statement = statement.where(any_of(col(WebhookRow.namespace), sorted(namespaces)))
    if cursor:
        last = session.get(WebhookRow, cursor[:80])
        if last is None or not _administers(actor, last):
            raise invalid_cursor()
        statement = statement.where(tuple_(*order) > tuple_(last.created_at, last.id))
    rows = session.exec(statement).all()
    items = [db.to_view(row, WebhookView) for row in rows[:limit] if _administers(actor, row)]
    return WebhookPage(items=items, next_cursor=rows[limit - 1].id if len(rows) > limit else "")


def delete_webhook(session: Session, actor: Actor, webhook_id: str) -> WebhookView:
    """Delete a webhook with its deliveries. `NotFound` (WEBHOOK_UNKNOWN)."""
    row = find_webhook(session, actor, webhook_id)
    view = db.to_view(row, WebhookView)
    detail = {"to": origin_of(row.url)}
    audit.append(session, actor, EventType.WEBHOOK_DELETE, row.id, detail, namespace=_event_namespace(row))
    session.delete(row)
    session.flush()
    return view


def list_deliveries(
    session: Session, actor: Actor, webhook_id: str, *, state: str = "", limit: int
) -> list[DeliveryView]:
    """Return the newest deliveries of a webhook, newest first."""
    find_webhook(session, actor, webhook_id)
    statement = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
    if state:
        statement = statement.where(DeliveryRow.state == state)
    return [_delivery_view(row) for row in session.exec(statement.order_by(col(DeliveryRow.id).desc()).limit(limit))]


def retry_delivery(session: Session, actor: Actor, webhook_id: str, delivery_id: int) -> DeliveryView:
    """Start a delivery again with all its attempts. `NotFound` (WEBHOOK_UNKNOWN)."""
    webhook = find_webhook(session, actor, webhook_id)
    row = session.get(DeliveryRow, delivery_id) if 0 < delivery_id < 2**31 else None
    if row is None or row.webhook_id != webhook_id:
        raise NotFound("WEBHOOK_UNKNOWN", f"webhook {webhook_id[:80]!r} has no delivery {delivery_id}")
    row.state, row.attempt, row.next_at, row.ended_at = DeliveryState.WAITING, 0, db.now(), None
    session.add(row)
    detail = {"seq": row.position}
    audit.append(session, actor, EventType.WEBHOOK_RETRY, webhook_id, detail, namespace=_event_namespace(webhook))
    session.flush()
    return _delivery_view(row)


def find_webhook(session: Session, actor: Actor, webhook_id: str) -> WebhookRow:
    """Return the row of a webhook. `NotFound` (WEBHOOK_UNKNOWN) if the actor does not administer it."""
    row = session.get(WebhookRow, webhook_id[:80])
    if row is None or not _administers(actor, row):
        raise NotFound("WEBHOOK_UNKNOWN", f"there is no webhook {webhook_id[:80]!r}, or you may not see it")
    return row


@dataclass(frozen=True, slots=True)
class DueDelivery:
    """A delivery whose time has come, its webhook and its event."""

    delivery: DeliveryRow
    webhook: WebhookRow
    event: EventView


def read_due_deliveries(session: Session, per_webhook: int) -> list[DueDelivery]:
    """Return the deliveries whose time has come, oldest first, and at most so many of each webhook."""
    order = (col(DeliveryRow.next_at), col(DeliveryRow.id))
    rank = func.row_number().over(partition_by=col(DeliveryRow.webhook_id), order_by=order).label("rank")
    due = select(DeliveryRow.id, rank).where(
        DeliveryRow.state == DeliveryState.WAITING, col(DeliveryRow.next_at) <= db.now()
    )
    ranked = due.subquery()
    statement = (
        select(DeliveryRow, WebhookRow, EventRow)
        .join(ranked, ranked.c.id == col(DeliveryRow.id))
        .join(WebhookRow, col(WebhookRow.id) == col(DeliveryRow.webhook_id))
        .join(EventRow, col(EventRow.position) == col(DeliveryRow.position))
        .where(ranked.c.rank <= per_webhook)
    )
    rows = session.exec(statement.order_by(*order)).all()
    return [DueDelivery(delivery, webhook, audit.to_view(event)) for delivery, webhook, event in rows]


def read_failing(session: Session) -> set[str]:
    """Return the webhooks with a delivery that failed and waits for its next attempt."""
    failed = (
        select(DeliveryRow.webhook_id)
        .where(DeliveryRow.state == DeliveryState.WAITING, DeliveryRow.attempt > 0)
        .distinct()
    )
    return set(session.exec(failed))


def secret_of(row: WebhookRow, keys: Keys) -> str:
    """Return the secret that signs the messages of a webhook (Standard Webhooks: `whsec_` and base64).

    `Invalid` (SETTING_INVALID) if its key is no longer in the key file.
    """
    return "whsec_" + base64.b64encode(bytes.fromhex(keys.derive_secret(f"webhook:{row.id}", row.key))).decode()


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")


def _event_namespace(row: WebhookRow) -> str:
    return "" if row.namespace == EVERY_NAMESPACE else row.namespace


def _administers(actor: Actor, row: WebhookRow) -> bool:
    if row.namespace == EVERY_NAMESPACE:
        return actor.may_everywhere(Scope.ADMIN)
    return actor.may(Scope.ADMIN, row.namespace)


def _delivery_view(row: DeliveryRow) -> DeliveryView:
    return db.to_view(row, DeliveryView, seq=row.position)
