"""Operations of webhooks and their deliveries."""

from registry.api.audit.webhooks import (
    DeliveryList,
    DeliveryView,
    WebhookCreate,
    WebhookCreated,
    WebhookPage,
    WebhookView,
)
from registry.api.operations.operation import ADMIN, DRY_RUN, NO_BODY, REASON, Tag

# fmt: off
webhooks = Tag("webhooks", "Webhooks and their deliveries.")
CREATE_WEBHOOK = webhooks.add(
    "create_webhook", "POST /webhooks", ADMIN, WebhookCreate, WebhookCreated,
    status=201, echo={f"webhook.{field}": field for field in ("url", "namespace", "actions")}, has_secret=True,
    example={"url": "https://hooks.example.org/registry", "namespace": "acme", "actions": ["alias.move"]},
)
LIST_WEBHOOKS = webhooks.add("list_webhooks", "GET /webhooks", ADMIN, NO_BODY, WebhookPage)
DELETE_WEBHOOK = webhooks.add(
    "delete_webhook", "DELETE /webhooks/{webhook_id}", ADMIN, NO_BODY, WebhookView, echo={"id": "webhook_id"},
    takes=(REASON, DRY_RUN),
)
LIST_DELIVERIES = webhooks.add("list_deliveries", "GET /webhooks/{webhook_id}/deliveries", ADMIN, NO_BODY, DeliveryList)
RETRY_DELIVERY = webhooks.add(
    "retry_delivery", "POST /webhooks/{webhook_id}/deliveries/{delivery_id}/retry", ADMIN, NO_BODY, DeliveryView,
    echo={"id": "delivery_id"},
)
