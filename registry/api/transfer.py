"""REST schemas of push and pull: plan, upload, commit, download.

- A push plan says what is missing, and nothing about what other tenants have.
- Pushes and pulls are planned and committed in bulk; one adapter is a bulk of one. Each item of a request has its own
  outcome; an error of the whole request concerns all of them.
- A relative URL is on the registry and needs the token. An absolute one is on the store and must not get it.
"""

from datetime import datetime
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from registry.api import MESSAGE_LIMIT, REF_LIMIT, check_field, check_message
from registry.api.catalog import Resolved, VersionView
from registry.api.models import ItemOutcome, Request, Response
from registry.digest import Digest
from registry.findings import Finding
from registry.versions.manifest import FILES_LIMIT, BaseRef, ManifestDraft

SMALL_BLOB_BYTES = 16 * 2**10
SMALL_FILES_BYTES = 256 * 2**10
"""How many bytes of small files a pull plan holds at most for one version. Others are downloaded like large ones."""
BULK_SMALL_BYTES = 4 * 2**20
"""The same for all versions of a request."""
BULK_MANIFESTS_BYTES = 6 * 2**20
"""Manifests of one response to a pull, which is up to five times as large. The client requests others again."""
BULK_LIMIT = 100
"""Adapters of one request."""
BULK_BODY_BYTES = 8 * 2**20
EXCERPTS_LIMIT = 4096
READ_LIMIT_BYTES = 8 * 2**20
"""Bytes of different configurations and headers that one plan parses. 8 MiB take some 1.5 s and 150 MB."""
EXCERPT_LIMIT_BYTES = 4 * 2**20
"""Of one file in a plan. Longer headers are read when the file has come."""

Name = Annotated[str, Field(max_length=REF_LIMIT)]
ExcerptKey = tuple[str, int, int]
"""Path and size of a file, and the position of its excerpt or -1."""
BULK_COUNT = Field(min_length=1, max_length=BULK_LIMIT)


class PushRequest(Request):
    """What the client wants to push. The digest of the version is that of the manifest's bytes.

    If the manifest has no base, `base` names it; if that is empty, too, the configuration does.
    """

    manifest: ManifestDraft
    """What the version consists of. Its canonical JSON is hashed, and that digest names the version."""
    base: Name = ""
    """Name or alias of the base, if the manifest has none. Empty: the one that the configuration names."""
    message: str = Field(default="", max_length=MESSAGE_LIMIT)
    """Free text about the version. It is not part of the digest."""

    @model_validator(mode="after")
    def _check_message(self) -> Self:
        check_field("message", check_message, self.message)
        return self


class PushItem(PushRequest):
    """One push of a request. `name` is the adapter's: `namespace/name`.

    `excerpts`: path → position of the file's first bytes in the request's `excerpts`.
    """

    name: Name
    """Adapter, as `namespace/name`."""
    excerpts: dict[str, int] = Field(default={}, max_length=FILES_LIMIT)
    """Path of a file → index of its first bytes in the `excerpts` of the request. Files without one are evaluated by
    the commit."""

    @property
    def excerpt_keys(self) -> frozenset[ExcerptKey]:
        """What the evaluation of its excerpts depends on. Two items with equal keys are evaluated once."""
        return frozenset((f.path, f.size_bytes, self.excerpts.get(f.path, -1)) for f in self.manifest.files)


class BulkPushRequest(Request):
    """Pushes to plan. Each has its own outcome.

    `excerpts`: the first bytes of files (base64), each once, by which pushes are evaluated before their files are sent:
    of weights the header, of other small files all, which then need not be sent. `dry_run`: evaluate and store nothing.
    """

    model_config = ConfigDict(val_json_bytes="base64", ser_json_bytes="base64")

    items: Annotated[tuple[PushItem, ...], BULK_COUNT]
    """Pushes to plan. Each has its own outcome, at the same index of the response."""
    excerpts: tuple[bytes, ...] = Field(default=(), max_length=EXCERPTS_LIMIT)
    """First bytes of files in base64, each once: of weights the header, of other small files all, which then
    need not be sent. What is not a whole file can only have a push refused or choose its base."""
    dry_run: bool = False
    """Evaluate the pushes and respond, but store nothing."""

    @model_validator(mode="after")
    def _check_excerpts(self) -> Self:
        check_field("excerpts", lambda _: self._require_known_excerpts(), "")
        return self

    def _require_known_excerpts(self) -> None:
        if any(not 0 <= position < len(self.excerpts) for item in self.items for position in item.excerpts.values()):
            raise ValueError("an item refers to one that is not there")
        read = {item.excerpt_keys for item in self.items}
        size_bytes = sum(len(self.excerpts[position]) for keys in read for _, _, position in keys if position >= 0)
        if size_bytes > READ_LIMIT_BYTES:
            raise ValueError(f"items read {size_bytes} bytes, over the limit of {READ_LIMIT_BYTES}: plan fewer at once")


class UploadPart(Response):
    """Where to PUT the bytes `start` to `start + size_bytes` of a large blob. The store keeps received parts."""

    number: int
    """Number of the part, from 1."""
    start: int
    """Offset of its first byte in the blob."""
    size_bytes: int
    """Length of the part in bytes; only the last one is shorter than the others."""
    url: str = Field(repr=False)
    """Where to PUT the part. Absolute: send no token."""


class Upload(Response):
    """Where to send one missing blob. A large one may have `parts` instead of a `url`: the parts still missing."""

    digest: Digest
    """SHA-256 that the bytes must have."""
    size_bytes: int
    """Length of the blob in bytes."""
    method: str = "PUT"
    """HTTP method to send the bytes with."""
    url: str = Field(default="", repr=False)
    """Where to send the bytes. Empty if `parts` are listed. Relative: send the token. Absolute: send none."""
    headers: dict[str, str] = {}
    """Headers that the request must have, unchanged."""
    parts: list[UploadPart] = []
    """Parts of a large blob that are still missing; send them in any order, several at once."""


class PushPlan(Response):
    """What the server still needs. `uploads` may be empty. `digest` is that of the manifest with this `base`.

    Of a dry run, `push_id` and `uploads` are empty, and `findings` are there.
    """

    push_id: str
    """Identifier of the planned push (`psh_…`)."""
    base: BaseRef
    """The base of the version: put it into the manifest."""
    digest: Digest
    """Digest of the manifest, as the server computed it."""
    uploads: list[Upload]
    """Blobs that the registry lacks. Empty: commit at once."""
    expires_at: datetime
    """Commit before this time, or plan again."""
    findings: list[Finding] = []
    """Of a dry run: errors of the check `compat` that the version would have, as far as the plan can see."""


class SmallBlob(Response):
    """The bytes of a small blob (base64)."""

    digest: Digest
    """SHA-256 of the bytes."""
    data: str = Field(max_length=4 * SMALL_BLOB_BYTES // 3 + 4)
    """The bytes in base64."""


class CommitItem(Request):
    """One commit of a request. `alias` moves through its gate after the version exists."""

    push_id: Name
    """Identifier of the planned push (`psh_…`)."""
    alias: str = ""
    """Alias to move to the new version, if its gate is open. Empty: none."""


class BulkCommitRequest(Request):
    """Pushes to commit. Each has its own outcome.

    `atomic`: if one cannot be committed, or its alias may not move, none is.
    """

    items: Annotated[tuple[CommitItem, ...], BULK_COUNT]
    """Pushes to commit. Each has its own outcome, at the same index of the response."""
    atomic: bool = False
    """Commit all or none: none if one fails or its alias may not move."""


class PushResult(Response):
    """The version. `created` is False if it existed already.

    `alias_refused` says why the alias of the commit did not move; the version exists anyway. If its weights are over
    16 MiB, the gate of the alias is closed until the version has a verdict `weights`: move the alias then.
    """

    version: VersionView
    """The version that the push made, or that existed already with the same digest."""
    created: bool
    """False if this version existed already."""
    job_id: str = ""
    """Smoke test that the push queued; empty if none."""
    alias_refused: str = ""
    """Why the alias did not move, although the version exists. Empty if it moved or none was named."""
    main_number: int = 0
    """Number of the version that `main` names now."""
    main: str = ""
    """What `main` does now and why, such as `main stays at version 2: compat fails`."""


class BulkPullRequest(Request):
    """Refs to pull: `namespace/name`, with `:alias`, `@number` or `@digest`. Each has its own outcome."""

    refs: Annotated[tuple[Name, ...], BULK_COUNT]
    """Versions to pull: `namespace/name` with `:alias`, `@number` or `@digest`. Each has its own outcome."""


class PullPlan(Response):
    """`direct`: path → a link of the store that needs no token and is valid for `direct_seconds`."""

    resolved: Resolved
    """The version and its files."""
    direct: dict[str, str] = {}
    """Path → link of the store for files that are not in `small`. Send no token there."""
    direct_seconds: int = 0
    """How long those links are valid; 0 if there are none."""


# ------------------------------------------------------------------ outcomes of bulk requests
class PlannedPush(ItemOutcome[PushPlan]):
    """The outcome of planning one push."""


class BulkPushPlan(Response):
    """The plans, in the order of the request."""

    items: list[PlannedPush]
    """One outcome for each push of the request, in its order."""


class CommittedPush(ItemOutcome[PushResult]):
    """The outcome of committing one push."""


class BulkPushResult(Response):
    """The versions, in the order of the request."""

    items: list[CommittedPush]
    """One outcome for each commit of the request, in its order."""


class PlannedPull(ItemOutcome[PullPlan]):
    """The outcome of planning one pull."""


class BulkPullPlan(Response):
    """The plans, in the order of the request. `small` holds the bytes of small files of all of them, each once."""

    items: list[PlannedPull]
    """One outcome for each ref of the request, in its order."""
    small: list[SmallBlob] = []
    """Contents of small files, each once."""
