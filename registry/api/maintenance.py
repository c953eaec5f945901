"""The REST contract of upkeep: garbage collection, checking, re-indexing. For administrators only.

Invariants
- A long run is many short requests: each does what fits into its seconds and answers `next_cursor` to go on with;
  an empty one means that the run is through. Whoever stops in between loses nothing.
- `dry_run` counts what would be done, and changes nothing.
"""

from __future__ import annotations

from pydantic import Field

from registry.api import Answer, Request
from registry.evaluation.verdicts import Finding

YEAR_SECONDS = 366 * 86400


class GcRequest(Request):
    """POST /gc. `grace_seconds`: how long a blob stays that nobody needs; the server's setting if it is not given."""

    dry_run: bool = False
    grace_seconds: int | None = Field(default=None, ge=0, le=YEAR_SECONDS)
    cursor: str = Field(default="", max_length=100)


class GcReport(Answer):
    """What one request of garbage collection did, or would do. Reports of one run are added up."""

    dry_run: bool = False
    pushes_expired: int = 0
    pushes_forgotten: int = 0
    answers_forgotten: int = 0
    blobs_marked: int = 0
    blobs_deleted: int = 0
    bytes_deleted: int = 0
    staged_deleted: int = 0
    uploads_aborted: int = 0
    strays_deleted: int = 0
    """Final keys without a row: there should be none, so each is worth a question."""
    strays_kept: int = 0
    """The same, kept: younger than the grace, or versions are recorded here that the database does not know."""
    keys_refused: int = 0
    """What the store would not delete; the next run tries again."""
    records_written: int = 0
    versions_measured: int = 0
    next_cursor: str = ""

    def __add__(self, other: GcReport) -> GcReport:
        """Counts added, flags and cursor of the later one."""
        added = {
            field: getattr(self, field) + value
            for field, value in other.model_dump().items()
            if isinstance(value, int) and not isinstance(value, bool)
        }
        return other.model_copy(update=added)


class FsckRequest(Request):
    """POST /fsck. `deep` also reads every blob and hashes it: what is wrong is marked and, if possible, restored."""

    deep: bool = False
    cursor: str = Field(default="", max_length=100)


class FsckPage(Answer):
    """What one request of a check found. `share` is how far the run has come, from 0 to 1."""

    findings: list[Finding] = []
    checked: dict[str, int] = {}
    bytes_hashed: int = 0
    share: float = 1.0
    next_cursor: str = ""


class ReindexRequest(Request):
    """POST /reindex. Makes rows anew from the records beside the blobs; what is there stays as it is."""

    dry_run: bool = False
    cursor: str = Field(default="", max_length=400)


class ReindexPage(Answer):
    """What one request of a re-index made; `findings` are records that cannot be read or that disagree with rows."""

    bases: int = 0
    versions: int = 0
    tombstones: int = 0
    withdrawals: int = 0
    records: int = 0
    findings: list[Finding] = []
    next_cursor: str = ""
