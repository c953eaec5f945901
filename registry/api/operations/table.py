"""The whole table: every operation of the REST API by its id."""

from typing import Any

from registry.api.operations import (
    access,
    adapters,
    aliases,
    attestations,
    audit,
    bases,
    evaluation,
    jobs,
    maintenance,
    serving,
    transfer,
    webhooks,
)
from registry.api.operations.operation import Operation, Tag

TAGS: tuple[Tag, ...] = (
    transfer.transfer, adapters.adapters, serving.serving, bases.bases, jobs.jobs, access.access, access.namespaces,
    maintenance.retention, aliases.gates, maintenance.maintenance, evaluation.verdicts, audit.audit,
    attestations.attestations, webhooks.webhooks,
)  # fmt: skip
"""In the order of the documentation."""
OPERATIONS: dict[str, Operation[Any, Any]] = {operation.id: operation for tag in TAGS for operation in tag.operations}
