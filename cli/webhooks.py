"""`adapter webhook`: create, list, delete, deliveries. A webhook's secret is printed once, when it is created."""

from typing import Any

import click

from registry.api.audit.webhooks import DeliveryView, WebhookCreate, WebhookView
from registry.client.audit import Audit
from registry.events import WEBHOOK_DEFAULT, DeliveryState

from .console import arguments, output, session, tables
from .console.options import Group
from .console.tables import Column, Table


@click.group(cls=Group)
def webhook() -> None:
    """Webhooks: send events of the registry to a URL."""


@webhook.command()
@click.argument("url")
@click.option("--namespace", default="*", show_default=True, help="Namespace of the events; * is all.")
@click.option(
    "--action", "actions", multiple=True, default=WEBHOOK_DEFAULT, show_default=True, help="Event type (repeatable)."
)
def create(url: str, namespace: str, actions: tuple[str, ...]) -> None:
    """Send events to URL from now on. The signing secret is shown only now."""
    with session.versions() as registry:
        created = Audit(registry).create_webhook(WebhookCreate(url=url, namespace=namespace, actions=list(actions)))

    def text() -> None:
        output.line(created.secret)
        output.note(f"webhook {created.webhook.id}; verify its requests by the Standard Webhooks rules")

    output.result(created, text)


WEBHOOKS: Table[WebhookView] = Table((
    Column("id", lambda item: item.id, whole=True),
    Column("namespace", lambda item: item.namespace),
    Column("url", lambda item: item.url),
    Column("actions", lambda item: item.actions, flows=True),
), empty="No webhooks.")  # fmt: skip
DELIVERIES: Table[DeliveryView] = Table((
    Column("id", lambda item: item.id, whole=True),
    Column("event", lambda item: item.seq),
    Column("state", lambda item: item.state),
    Column("attempts", lambda item: item.attempt),
    Column("next or last attempt", lambda item: item.next_at),
    Column("error", lambda item: item.error, flows=True),
), empty="No deliveries.")  # fmt: skip


@webhook.command("list")
@tables.prints(WEBHOOKS)
def list_webhooks() -> None:
    """List webhooks, without their secrets."""
    with session.versions() as registry:
        WEBHOOKS.print(Audit(registry).webhooks().items)


@webhook.command()
@click.argument("webhook_id", metavar="ID")
@arguments.changes
def delete(webhook_id: str, **change: Any) -> None:
    """Delete a webhook and its deliveries."""
    with session.versions() as registry:
        deleted = Audit(registry).delete_webhook(webhook_id, **change)
    output.result(deleted, lambda: output.line(f"{deleted.id} deleted."))


@webhook.command()
@click.argument("webhook_id", metavar="ID")
@click.option("--state", type=click.Choice([s.value for s in DeliveryState]), help="Only deliveries in this state.")
@click.option("--retry", type=int, metavar="DELIVERY", help="Send this delivery again.")
@tables.prints(DELIVERIES)
def deliveries(webhook_id: str, state: str | None, retry: int | None) -> None:
    """List the deliveries of a webhook, newest first."""
    with session.versions() as registry:
        audit = Audit(registry)
        if retry is not None:
            retried = audit.retry_delivery(webhook_id, retry)
            DELIVERIES.print([retried], document=retried)
            return
        DELIVERIES.print(audit.deliveries(webhook_id, state=state or "").items)
