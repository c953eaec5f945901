"""Operations of the audit log, of attestations and of webhooks."""

from registry.api.audit import Consistency, EventPage, EventProof, LogKeys
from registry.api.audit.attestations import AttestationList, AttestationView, SignRequest
from registry.api.audit.webhooks import (
    DeliveryList,
    DeliveryView,
    WebhookCreate,
    WebhookCreated,
    WebhookPage,
    WebhookView,
)
from registry.api.operations.operation import ADMIN, ANY_TOKEN, AUDIT, NO_BODY, PULL, PUSH, Tag

# fmt: off

# fmt: off
audit = Tag("audit", "The audit log: events, checkpoints and proofs.")
attestations = Tag("attestations", "Signatures and other signed statements about a version.")
webhooks = Tag("webhooks", "Webhooks and their deliveries.")
LIST_EVENTS = audit.add("list_events", "GET /events", PULL, NO_BODY, EventPage)
STREAM_EVENTS = audit.add("stream_events", "GET /events/stream", PULL, NO_BODY, bytes)
READ_CHECKPOINT = audit.add("read_checkpoint", "GET /audit/checkpoint", ANY_TOKEN, NO_BODY, str)
LIST_LOG_KEYS = audit.add("list_log_keys", "GET /audit/keys", ANY_TOKEN, NO_BODY, LogKeys)
PROVE_CONSISTENCY = audit.add(
    "prove_consistency", "GET /audit/consistency", ANY_TOKEN, NO_BODY, Consistency, echo={"old": "old", "new": "new"},
)
READ_LOG_ENTRIES = audit.add("read_log_entries", "GET /audit/tile/entries/{path:path}", AUDIT, NO_BODY, bytes)
READ_LOG_TILE = audit.add("read_log_tile", "GET /audit/tile/{path:path}", ANY_TOKEN, NO_BODY, bytes)
PROVE_EVENT = audit.add("prove_event", "GET /audit/events/{seq}/proof", PULL, NO_BODY, EventProof, echo={"seq": "seq"})
LIST_ATTESTATIONS = attestations.add(
    "list_attestations", "GET /adapters/{namespace}/{name}/versions/{selector}/attestations",
    PULL, NO_BODY, AttestationList,
)
SIGN_VERSION = attestations.add(
    "sign_version", "POST /adapters/{namespace}/{name}/versions/{selector}/attestations",
    PUSH, SignRequest, AttestationView, status=201,
)
CREATE_WEBHOOK = webhooks.add(
    "create_webhook", "POST /webhooks", ADMIN, WebhookCreate, WebhookCreated,
    status=201, echo={f"webhook.{field}": field for field in ("url", "namespace", "actions")}, has_secret=True,
)
LIST_WEBHOOKS = webhooks.add("list_webhooks", "GET /webhooks", ADMIN, NO_BODY, WebhookPage)
DELETE_WEBHOOK = webhooks.add(
    "delete_webhook", "DELETE /webhooks/{webhook_id}", ADMIN, NO_BODY, WebhookView, echo={"id": "webhook_id"},
)
LIST_DELIVERIES = webhooks.add("list_deliveries", "GET /webhooks/{webhook_id}/deliveries", ADMIN, NO_BODY, DeliveryList)
RETRY_DELIVERY = webhooks.add(
    "retry_delivery", "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/retry", ADMIN, NO_BODY, DeliveryView,
    echo={"id": "delivery_id"},
)
