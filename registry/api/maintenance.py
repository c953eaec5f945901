"""REST schemas of operation: health, and for administrators garbage collection, retention, consistency check, re-index.

A long run is many short requests: each works for a few seconds and returns `next_cursor`, which is empty at the end.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemPage, Request, Response
from registry.digest import Digest
from registry.findings import Finding
from registry.versions.retention import RetentionRule

YEAR_SECONDS = 366 * 86400


class Health(Response):
    """The state of the server. Details require a token."""

    status: str
    reason: str = ""
    version: str = ""
    database: str = ""
    blobs: str = ""
    schema_revision: str = ""
    capabilities: dict[str, bool] = {}


class GcRequest(Request):
    """Collect garbage: delete what nothing references, after a grace time."""

    dry_run: bool = False
    grace_seconds: int | None = Field(default=None, ge=0, le=YEAR_SECONDS)
    cursor: str = Field(default="", max_length=100)


class GcReport(Response):
    """What one request of garbage collection did, or would do. Add up the reports of a run."""

    dry_run: bool = False
    pushes_expired: int = 0
    pushes_deleted: int = 0
    versions_retired: int = 0
    versions_purged: int = 0
    responses_deleted: int = 0
    tokens_deleted: int = 0
    assertions_deleted: int = 0
    sessions_deleted: int = 0
    deliveries_deleted: int = 0
    jobs_deleted: int = 0
    campaigns_deleted: int = 0
    blobs_marked: int = 0
    blobs_deleted: int = 0
    bytes_deleted: int = 0
    staged_deleted: int = 0
    uploads_aborted: int = 0
    orphans_deleted: int = 0
    orphans_kept: int = 0
    keys_refused: int = 0
    records_written: int = 0
    versions_measured: int = 0
    next_cursor: str = ""

    def __add__(self, other: GcReport) -> GcReport:
        """Add the counts. Flags and cursor are those of `other`."""
        added = {
            field: getattr(self, field) + value
            for field, value in other.model_dump().items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
        return other.model_copy(update=added)


class FsckRequest(Request):
    """Check database and store against each other."""

    deep: bool = False
    cursor: str = Field(default="", max_length=100)


class FsckPage(Response):
    """What one request of a check found."""

    findings: list[Finding] = []
    checked: dict[str, int] = {}
    bytes_hashed: int = 0
    share: float = 1.0
    next_cursor: str = ""


class ReindexRequest(Request):
    """Rebuild rows from the records in the store. Existing rows do not change."""

    dry_run: bool = False
    cursor: str = Field(default="", max_length=400)


class ReindexPage(Response):
    """What one request of a re-index did."""

    bases: int = 0
    versions: int = 0
    tombstones: int = 0
    withdrawals: int = 0
    records: int = 0
    findings: list[Finding] = []
    next_cursor: str = ""


class RetentionSet(Request):
    """The new rule of an adapter or namespace."""

    rule: RetentionRule


class RetentionView(Response):
    """The rule in force, null for none, and where it was set."""

    rule: RetentionRule | None = None
    set_on: str = ""
    set_at: datetime | None = None
    set_by: str = ""


class RetentionDecision(Response):
    """What the next garbage collection does to one version, and why."""

    number: int
    digest: Digest
    deletes: bool
    reason: str


class RetentionPlan(ItemPage[RetentionDecision]):
    """The versions of one adapter that are not deleted, newest first, under this rule."""

    rule: RetentionRule | None = None
