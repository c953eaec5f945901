"""The tables as SQLModel rows. The migrations write the same columns by hand, and a test compares the two.

- A row has no behavior, validates nothing and never leaves `registry/server/`.
- JSON columns hold what canonical JSON or pydantic wrote; `manifest` holds the canonical bytes as text.
"""

# ruff: noqa: F401 - mypy takes every name here as exported (pyproject.toml)
from sqlmodel import SQLModel

from registry.server.database.models.access import (
    AccessStateRow,
    IdempotencyRow,
    NamespaceRow,
    PageSessionRow,
    PublisherRow,
    RoleRow,
    TakenNameRow,
    TokenRow,
    UsedAssertionRow,
)
from registry.server.database.models.audit import (
    AttestationRow,
    AuditCheckpointRow,
    AuditTileRow,
    DeliveryRow,
    EventRow,
    WebhookRow,
)
from registry.server.database.models.columns import UtcTime
from registry.server.database.models.content import (
    DESCRIPTION,
    EXPIRES,
    FACT,
    LINK,
    NEVER,
    TAG,
    AdapterGateRow,
    AdapterMetadataRow,
    AdapterRetentionRow,
    AdapterRow,
    AliasMoveRow,
    AliasRow,
    ApprovalRow,
    BaseEdgeRow,
    BaseIdentityRow,
    BaseRow,
    BaseSimilarityRow,
    BlobRow,
    DraftFileRow,
    DraftRow,
    EdgeRow,
    NamespaceGateRow,
    NamespaceRetentionRow,
    PushBlobRow,
    PushRow,
    VerdictRow,
    VersionAttributeRow,
    VersionFileRow,
    VersionInputRow,
    VersionMetadataRow,
    VersionNormsRow,
    VersionRow,
    XorbRow,
)
from registry.server.database.models.jobs import (
    BaseThresholdsRow,
    CampaignJobRow,
    CampaignRow,
    JobRow,
    JobStepRow,
    ProcessLockRow,
)
from registry.server.database.models.serving import FleetBlobRow, FleetNodeRow, FleetSlotRow

metadata = SQLModel.metadata
