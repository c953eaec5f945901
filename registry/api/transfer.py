"""REST schemas of push and pull: plan, upload, commit, download.

- A push plan says what is missing, and nothing about what other tenants have.
- Pushes and pulls are planned and committed in bulk; one adapter is a bulk of one. Each item of a request has its own
  outcome; an error of the whole request concerns all of them.
- A relative URL is on the registry and needs the token. An absolute one is on the store and must not get it.
"""

from typing import Annotated

from msgspec import Meta

from registry.api import (
    MESSAGE_LIMIT,
    REF_LIMIT,
    ItemOutcome,
    RequestStruct,
    ResponseStruct,
    check_field,
    check_message,
)
from registry.api.catalog import Resolved, VersionView
from registry.digest import Digest
from registry.structs import Moment
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

Name = Annotated[str, Meta(max_length=REF_LIMIT)]
ExcerptKey = tuple[str, int, int]
"""Path and size of a file, and the position of its excerpt or -1."""
BULK_COUNT = Meta(min_length=1, max_length=BULK_LIMIT)


class PushRequest(RequestStruct, frozen=True, kw_only=True):
    """What the client wants to push. The digest of the version is that of the manifest's bytes.

    If the manifest has no base, `base` names it; if that is empty, too, the configuration does.
    """

    manifest: ManifestDraft
    base: Name = ""
    message: Annotated[str, Meta(max_length=MESSAGE_LIMIT)] = ""

    def __post_init__(self) -> None:
        check_field("message", check_message, self.message)


class PushItem(PushRequest, frozen=True, kw_only=True):
    """One push of a request. `name` is the adapter's: `namespace/name`.

    `excerpts`: path → position of the file's first bytes in the request's `excerpts`.
    """

    name: Name
    excerpts: Annotated[dict[str, int], Meta(max_length=FILES_LIMIT)] = {}

    @property
    def excerpt_keys(self) -> frozenset[ExcerptKey]:
        """What the evaluation of its excerpts depends on. Two items with equal keys are evaluated once."""
        return frozenset((f.path, f.size_bytes, self.excerpts.get(f.path, -1)) for f in self.manifest.files)


class BulkPushRequest(RequestStruct, frozen=True, kw_only=True):
    """Pushes to plan. Each has its own outcome.

    `excerpts`: the first bytes of files (base64), each once, by which pushes are evaluated before their files are sent:
    of weights the header, of other small files all. `dry_run`: evaluate and respond, but store nothing.
    """

    items: Annotated[tuple[PushItem, ...], BULK_COUNT]
    excerpts: Annotated[tuple[bytes, ...], Meta(max_length=EXCERPTS_LIMIT)] = ()
    dry_run: bool = False

    def __post_init__(self) -> None:
        check_field("excerpts", lambda _: self._check_excerpts(), "")

    def _check_excerpts(self) -> None:
        if any(not 0 <= position < len(self.excerpts) for item in self.items for position in item.excerpts.values()):
            raise ValueError("an item refers to one that is not there")
        read = {item.excerpt_keys for item in self.items}
        size_bytes = sum(len(self.excerpts[position]) for keys in read for _, _, position in keys if position >= 0)
        if size_bytes > READ_LIMIT_BYTES:
            raise ValueError(f"items read {size_bytes} bytes, over the limit of {READ_LIMIT_BYTES}: plan fewer at once")


class UploadPart(ResponseStruct, frozen=True, kw_only=True):
    """Where to PUT the bytes `start` to `start + size_bytes` of a large blob. The store keeps received parts."""

    hidden_fields = frozenset({"url"})

    number: int
    start: int
    size_bytes: int
    url: str


class Upload(ResponseStruct, frozen=True, kw_only=True):
    """Where to send one missing blob. A large one may have `parts` instead of a `url`: the parts still missing."""

    hidden_fields = frozenset({"url"})

    digest: Digest
    size_bytes: int
    method: str = "PUT"
    url: str = ""
    headers: dict[str, str] = {}
    parts: list[UploadPart] = []


class PushPlan(ResponseStruct, frozen=True, kw_only=True):
    """What the server still needs. `uploads` may be empty. `digest` is that of the manifest with this `base`.

    Of a dry run, `push_id` and `uploads` are empty.
    """

    push_id: str
    base: BaseRef
    digest: Digest
    uploads: list[Upload]
    expires_at: Moment


class SmallBlob(RequestStruct, frozen=True, kw_only=True):
    """The bytes of a small blob (base64)."""

    digest: Digest
    data: Annotated[str, Meta(max_length=4 * SMALL_BLOB_BYTES // 3 + 4)]


class CommitItem(RequestStruct, frozen=True, kw_only=True):
    """One commit of a request. `alias` moves through its gate after the version exists.

    `small` holds small blobs that were not uploaded: most versions have few large files.
    """

    push_id: Name
    alias: str = ""
    small: Annotated[tuple[SmallBlob, ...], Meta(max_length=FILES_LIMIT)] = ()


class BulkCommitRequest(RequestStruct, frozen=True, kw_only=True):
    """Pushes to commit. Each has its own outcome.

    `atomic`: if one cannot be committed, or its alias may not move, none is.
    """

    items: Annotated[tuple[CommitItem, ...], BULK_COUNT]
    atomic: bool = False


class PushResult(ResponseStruct, frozen=True, kw_only=True):
    """The version. `created` is False if it existed already.

    `alias_refused` says why the alias of the commit did not move; the version exists anyway. If its weights are over
    16 MiB, the gate of the alias is closed until the version has a verdict `weights`: move the alias then.
    """

    version: VersionView
    created: bool
    job_id: str = ""
    alias_refused: str = ""


class BulkPullRequest(RequestStruct, frozen=True, kw_only=True):
    """Refs to pull: `namespace/name`, with `:alias`, `@number` or `@digest`. Each has its own outcome."""

    refs: Annotated[tuple[Name, ...], BULK_COUNT]


class PullPlan(ResponseStruct, frozen=True, kw_only=True):
    """`direct`: path → a link of the store that needs no token and is valid for `direct_seconds`."""

    resolved: Resolved
    direct: dict[str, str] = {}
    direct_seconds: int = 0


# ------------------------------------------------------------------ outcomes of bulk requests
class PlannedPush(ItemOutcome[PushPlan], frozen=True, kw_only=True):
    """The outcome of planning one push."""


class BulkPushPlan(ResponseStruct, frozen=True, kw_only=True):
    """The plans, in the order of the request."""

    items: list[PlannedPush]


class CommittedPush(ItemOutcome[PushResult], frozen=True, kw_only=True):
    """The outcome of committing one push."""


class BulkPushResult(ResponseStruct, frozen=True, kw_only=True):
    """The versions, in the order of the request."""

    items: list[CommittedPush]


class PlannedPull(ItemOutcome[PullPlan], frozen=True, kw_only=True):
    """The outcome of planning one pull."""


class BulkPullPlan(ResponseStruct, frozen=True, kw_only=True):
    """The plans, in the order of the request. `small` holds the bytes of small files of all of them, each once."""

    items: list[PlannedPull]
    small: list[SmallBlob] = []
