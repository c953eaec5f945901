"""`Audit`: the routes of the audit log, and the log of a server as something to replay.

Invariants
- Nothing is verified here but by `registry.tlog`, with keys that the caller trusts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

from registry.api import LogKeys
from registry.api.audit import (
    AttestationList,
    AttestationView,
    DeliveryList,
    DeliveryView,
    EventPage,
    EventProof,
    EventView,
    SignRequest,
    WebhookCreate,
    WebhookCreated,
    WebhookList,
    WebhookView,
)
from registry.client.checkpoints import Checkpoints
from registry.errors import Corrupt, NotFound
from registry.names import Ref
from registry.tlog import tiles
from registry.tlog.notes import Verifier

PAGE = 200


class Audit(Checkpoints):
    """All routes of the log, of attestations and of webhooks."""

    def proof(self, seq: int) -> EventProof:
        return self._get(f"/audit/events/{seq}/proof", EventProof)

    def page(self, after: int = 0, **search: Any) -> EventPage:
        """One page. `search`: wait (seconds), limit, action (a list), object."""
        return self._get("/events", EventPage, after=str(after), **search)

    def events(self, after: int = 0, **search: Any) -> Iterator[EventView]:
        """All events from the one that follows `after`, that are there now."""
        cursor = str(after)
        while cursor:
            page = self.page(int(cursor), limit=PAGE, **search)
            yield from page.items
            cursor = page.next_cursor

    def tile(self, level: int, index: int, width: int, *, stored: bool = False) -> bytes:
        path = f"/audit/{tiles.tile_path(level, index, width)}"
        return self._connection.send("GET", path, query={"stored": "true"} if stored else None).content

    def entries(self, index: int, width: int) -> bytes:
        return self._connection.send("GET", f"/audit/{tiles.tile_path('entries', index, width)}").content

    # ------------------------------------------------------------ attestations
    def attestations(self, ref: Ref | str) -> AttestationList:
        """What is signed about a version."""
        return self._get(f"{_version(ref)}/attestations", AttestationList)

    def sign(self, ref: Ref | str, request: SignRequest) -> AttestationView:
        """Bring a signature for a version."""
        body = request.model_dump(mode="json")
        answer = self._connection.send("POST", f"{_version(ref)}/attestations", json=body)
        return AttestationView.model_validate_json(answer.content)

    # ------------------------------------------------------------ webhooks
    def create_webhook(self, request: WebhookCreate) -> WebhookCreated:
        answer = self._connection.send("POST", "/webhooks", json=request.model_dump(mode="json"))
        return WebhookCreated.model_validate_json(answer.content)

    def webhooks(self) -> WebhookList:
        return self._get("/webhooks", WebhookList)

    def delete_webhook(self, webhook_id: str) -> WebhookView:
        return WebhookView.model_validate_json(self._connection.send("DELETE", _webhook(webhook_id)).content)

    def deliveries(self, webhook_id: str, *, state: str = "") -> DeliveryList:
        return self._get(f"{_webhook(webhook_id)}/deliveries", DeliveryList, state=state)

    def retry_delivery(self, webhook_id: str, delivery_id: int) -> DeliveryView:
        answer = self._connection.send("POST", f"{_webhook(webhook_id)}/deliveries/{delivery_id}/retry")
        return DeliveryView.model_validate_json(answer.content)


def _webhook(webhook_id: str) -> str:
    return f"/webhooks/{quote(webhook_id, safe='')}"


def _version(ref: Ref | str) -> str:
    parsed = ref if isinstance(ref, Ref) else Ref.parse(ref)
    return f"/adapters/{parsed.name}/versions/{parsed.selector}"


class ServerLog:
    """The log of a server as a source of a replay (registry.tlog.replay)."""

    def __init__(self, audit: Audit, note: str) -> None:
        self._audit, self._note = audit, note

    def checkpoint(self) -> str:
        return self._note

    def tiles(self, level: int, index: int, width: int) -> Sequence[bytes]:
        """The database's and the store's."""
        tiles = []
        for stored in (False, True):
            try:
                tiles.append(self._audit.tile(level, index, width, stored=stored))
            except (Corrupt, NotFound):
                tiles.append(b"")
        return tiles

    def entries(self, index: int, width: int) -> bytes:
        try:
            return self._audit.entries(index, width)
        except (Corrupt, NotFound):
            return b""

    def rows(self) -> Iterator[bytes]:
        for event in self._audit.events():
            yield event.entry()


def verifiers(keys: LogKeys) -> tuple[Verifier, ...]:
    """The keys as they verify. `Invalid` for a key that is none."""
    return tuple(Verifier.parse(text) for text in keys.keys)
