"""The REST contract of the audit log: events and their entries, keys, proofs; webhooks and their deliveries.

Invariants
- An event's entry is the canonical JSON of all that it tells: whoever has it can make the bytes that were hashed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from pydantic import Field

from registry.api import Answer, ItemList, Request
from registry.digest import Digest, canonical_json
from registry.events import WEBHOOK_DEFAULT


class EventView(Answer):
    """One event. `seq` counts from 1 without a gap; its leaf in the log's tree is `seq - 1`."""

    seq: int
    at: datetime
    actor: str
    token_id: str = ""
    action: str
    object: str
    namespace: str = ""
    detail: dict[str, Any] = {}
    request_id: str = ""

    def entry(self) -> bytes:
        """The bytes that the log's leaf is the hash of. `Invalid` for an event that no server could have written."""
        entry_fields: dict[str, Any] = {
            "action": self.action,
            "actor": self.actor,
            "at": moment(self.at),
            "detail": self.detail,
            "namespace": self.namespace,
            "object": self.object,
            "request_id": self.request_id,
            "seq": self.seq,
            "token_id": self.token_id,
        }
        return canonical_json(entry_fields)


def moment(at: datetime) -> str:
    """A time as entries write it: UTC to the microsecond."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class EventPage(Answer):
    """`next_cursor` is where to go on; `last` how far this answer has looked, also where nothing was to be seen."""

    items: list[EventView]
    next_cursor: str = ""
    last: int = 0


class EventProof(Answer):
    """An event's entry as text, and the proof that the log holds it (C2SP tlog-proof)."""

    seq: int
    entry: str
    proof: str


# ------------------------------------------------------------------ attestations
class AttestationView(Answer):
    """A signed statement about a version. `identity` says whose key made the signature, not that the version is good.

    `kind`: `push` and `verdict` are the registry's own, `signature` was brought by somebody and verifies; one that is
    `unverified` was brought, too, and its `identity` says why nobody here can tell whose it is.
    """

    kind: str
    identity: str
    digest: Digest
    size_bytes: int
    public_key: str = ""
    seq: int | None = None
    made_at: datetime
    made_by: str
    bundle: str = ""


class AttestationList(ItemList[AttestationView]):
    """The attestations of a version."""


class SignRequest(Request):
    """A signature for a version: a sigstore bundle or DSSE envelope as text, and its public key (PEM).

    Without the key the bundle brings a certificate.
    """

    bundle: str = Field(min_length=2, max_length=512 * 2**10)
    public_key: str = Field(default="", max_length=4096)


# ------------------------------------------------------------------ webhooks
class WebhookCreate(Request):
    url: str = Field(min_length=1, max_length=2000)
    namespace: str = Field(default="*", max_length=100)
    actions: list[str] = Field(default=list(WEBHOOK_DEFAULT), min_length=1, max_length=32)


class WebhookView(Answer):
    id: str
    namespace: str
    url: str
    actions: list[str]
    created_at: datetime
    created_by: str


class WebhookCreated(Answer):
    """Shown once: `secret` signs what is sent."""

    webhook: WebhookView
    secret: str


class WebhookList(ItemList[WebhookView]):
    """The webhooks that the caller administers."""


class DeliveryView(Answer):
    """One event on its way. `state`: waiting, delivered, or dead after the last attempt."""

    id: int
    seq: int
    state: str
    attempt: int
    next_at: datetime
    status: int | None = None
    error: str = ""
    created_at: datetime
    ended_at: datetime | None = None


class DeliveryList(ItemList[DeliveryView]):
    """The deliveries of a webhook, newest first."""
