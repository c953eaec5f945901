"""`adapter webhook`: create, list, delete, deliveries. A webhook's secret is printed once, when it is created."""

from __future__ import annotations

import click

from registry.api.audit import DeliveryView, WebhookCreate, WebhookView
from registry.client.audit import Audit
from registry.events import WEBHOOK_DEFAULT, DeliveryState, EventType

from .console import output, session


@click.group()
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
    for unknown in sorted(set(actions) - set(EventType)):
        output.note(f"unknown event type {unknown!r}; docs/reference/events.md lists them")
    with session.versions() as registry:
        created = Audit(registry).create_webhook(WebhookCreate(url=url, namespace=namespace, actions=list(actions)))

    def text() -> None:
        output.line(created.secret)
        output.note(f"webhook {created.webhook.id}; verify its requests by the Standard Webhooks rules")

    output.answer(created, text)


@webhook.command("list")
def list_webhooks() -> None:
    """List webhooks, without their secrets."""
    with session.versions() as registry:
        listing = Audit(registry).webhooks()
    output.answer(listing, lambda: _print(listing.items))


def _print(items: list[WebhookView]) -> None:
    rows = [(item.id, item.namespace, item.url, ",".join(item.actions)) for item in items]
    output.table(("id", "namespace", "url", "actions"), rows, empty="No webhooks.")


@webhook.command()
@click.argument("webhook_id", metavar="ID")
def delete(webhook_id: str) -> None:
    """Delete a webhook and its deliveries."""
    with session.versions() as registry:
        deleted = Audit(registry).delete_webhook(webhook_id)
    output.answer(deleted, lambda: output.line(f"{deleted.id} deleted."))


@webhook.command()
@click.argument("webhook_id", metavar="ID")
@click.option("--state", type=click.Choice([state.value for state in DeliveryState]), help="Only this state.")
@click.option("--retry", type=int, metavar="DELIVERY", help="Send this delivery again.")
def deliveries(webhook_id: str, state: str | None, retry: int | None) -> None:
    """List the deliveries of a webhook, newest first."""
    with session.versions() as registry:
        audit = Audit(registry)
        if retry is not None:
            retried = audit.retry_delivery(webhook_id, retry)
            output.answer(retried, lambda: _print_deliveries([retried]))
            return
        listing = audit.deliveries(webhook_id, state=state or "")
    output.answer(listing, lambda: _print_deliveries(listing.items))


def _print_deliveries(items: list[DeliveryView]) -> None:
    rows = [
        (str(item.id), str(item.seq), item.state, str(item.attempt), output.moment(item.next_at), item.error or "-")
        for item in items
    ]
    output.table(("id", "event", "state", "attempts", "next or last attempt", "error"), rows, empty="No deliveries.")
