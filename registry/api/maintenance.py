"""REST schemas of operation: health, and for administrators garbage collection, retention, consistency check, re-index.

A long run is many short requests: each works for a few seconds and returns `next_cursor`, which is empty at the end.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT
from registry.api.models import ItemPage, PrintableText, Request, Response
from registry.digest import Digest
from registry.findings import Finding
from registry.versions.retention import RetentionRule

YEAR_SECONDS = 366 * 86400


class Health(Response):
    """The state of the server. Details require a token."""

    status: str
    """`ok` or `unavailable`."""
    reason: str = ""
    """What is unavailable. Empty if `ok`."""
    sign_in_with: list[str] = []
    """Identity providers by which people sign in to the pages, and so `adapter login` in the browser."""
    version: str = ""
    """Version of the server. Empty without a token, as are the fields below."""
    database: str = ""
    """`sqlite` or `postgresql`."""
    blobs: str = ""
    """Kind of blob store: `local` or `s3`."""
    schema_revision: str = ""
    """Last migration that the database has."""
    capabilities: dict[str, bool] = {}
    """What the blob store can do → whether it does, as probed."""


class GcRequest(Request):
    """Collect garbage: delete what nothing references, after a grace time."""

    dry_run: bool = False
    """Only report what would happen, and change nothing."""
    grace_seconds: int | None = Field(default=None, ge=0, le=YEAR_SECONDS)
    """How long blobs without a reference are kept; null: the server's setting."""
    cursor: str = Field(default="", max_length=100)
    """Where to continue: `next_cursor` of the previous response, unchanged. Empty to start."""


class GcReport(Response):
    """What one request of garbage collection did, or would do. Add up the reports of a run."""

    dry_run: bool = False
    """Whether the report only says what would happen."""
    pushes_expired: int = 0
    """Pushes whose time was over and that now cannot be committed."""
    pushes_deleted: int = 0
    """Rows of ended pushes that were deleted."""
    versions_retired: int = 0
    """Versions that a retention rule or their expiry deleted."""
    retired: list[str] = []
    """These versions, as `namespace/name@3`."""
    versions_purged: int = 0
    """Deleted versions whose files were erased, because their grace time is over."""
    responses_deleted: int = 0
    """Stored responses to idempotency keys that were deleted."""
    tokens_deleted: int = 0
    """Exchanged tokens that expired long ago."""
    assertions_deleted: int = 0
    """Records of identity tokens that cannot be exchanged any more."""
    sessions_deleted: int = 0
    """Sign-ins of browsers that were over."""
    deliveries_deleted: int = 0
    """Ended deliveries of webhooks that were deleted."""
    jobs_deleted: int = 0
    """Jobs that ended 90 days ago and were deleted."""
    campaigns_deleted: int = 0
    """Campaigns of that time that were deleted with their last job."""
    blobs_marked: int = 0
    """Blobs without a reference, whose grace time began."""
    blobs_deleted: int = 0
    """Blobs that were deleted."""
    bytes_deleted: int = 0
    """Bytes of the blobs that were deleted."""
    staged_deleted: int = 0
    """Uploads of ended pushes that were deleted."""
    uploads_aborted: int = 0
    """Unfinished multipart uploads that were ended in the store."""
    orphans_deleted: int = 0
    """Stored blobs without a row. There should be none: find out why."""
    orphans_kept: int = 0
    """Stored blobs without a row that were kept: too young, or the store has versions that the database lacks."""
    keys_refused: int = 0
    """Keys that the store did not delete. The next run tries again."""
    refs_written: int = 0
    """Refs of versions and bases that were missing in the store and were written."""
    versions_measured: int = 0
    """Versions whose large weights were read, because no one had done it."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""

    def __add__(self, other: GcReport) -> GcReport:
        """Add the counts and lists. Flags and cursor are those of `other`."""
        added = {
            field: getattr(self, field) + value
            for field, value in other.model_dump().items()
            if isinstance(value, int | list) and not isinstance(value, bool)
        }
        return other.model_copy(update=added)


class FsckRequest(Request):
    """Check database and store against each other."""

    deep: bool = False
    """Read and hash every blob too. Damaged ones are marked and, if possible, restored."""
    cursor: str = Field(default="", max_length=100)
    """Where to continue: `next_cursor` of the previous response, unchanged. Empty to start."""


class FsckPage(Response):
    """What one request of a check found."""

    findings: list[Finding] = []
    """What is wrong. Empty if nothing is."""
    checked: dict[str, int] = {}
    """What was checked → how many."""
    bytes_hashed: int = 0
    """Bytes that were read and hashed."""
    share: float = 1.0
    """How far the run has come, from 0 to 1."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class ReindexRequest(Request):
    """Import versions that the store has and the database does not. Existing rows do not change."""

    dry_run: bool = False
    """Only report what would happen, and change nothing."""
    cursor: str = Field(default="", max_length=400)
    """Where to continue: `next_cursor` of the previous response, unchanged. Empty to start."""


class ReindexPage(Response):
    """What one request of a re-index did."""

    bases: int = 0
    """Bases that were imported."""
    versions: int = 0
    """Versions that were imported."""
    rewritten: int = 0
    """Refs, bases and tiles of the audit log that the store had lost and got again."""
    findings: list[Finding] = []
    """What could not be imported, and why."""
    next_cursor: str = ""
    """Send it as `cursor` to continue. Empty on the last page."""


class RetentionSet(Request):
    """The new rule of an adapter or namespace."""

    rule: RetentionRule
    """The rule that replaces the former one."""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""


class RetentionView(Response):
    """The rule in force, null for none, and where it was set."""

    rule: RetentionRule | None = None
    """The rule in force; null for none."""
    set_on: str = ""
    """Adapter or namespace that the rule was set for. Empty if there is none."""
    set_at: datetime | None = None
    """When it was set; null without a rule."""
    set_by: str = ""
    """Identity whose token set it."""


class RetentionDecision(Response):
    """What the next garbage collection does to one version, and why."""

    name: str
    """Adapter, as `namespace/name`."""
    number: int
    """Number of the version in its adapter, from 1."""
    digest: Digest
    """Digest of the version's manifest, which names the version."""
    size_bytes: int
    """Size of the version's files. Other versions may share some of them."""
    deletes: bool
    """Whether the next garbage collection deletes the version."""
    reason: str
    """Why it is deleted or kept."""


class RetentionPlan(ItemPage[RetentionDecision]):
    """The versions of one adapter that are not deleted, newest first, under this rule."""

    items: list[RetentionDecision]
    """Versions that are not deleted, newest first."""

    rule: RetentionRule | None = None
    """The rule that decides; null for none."""
