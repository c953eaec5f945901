"""REST schemas of push and pull: plan, upload, commit, download.

- A push plan says what is missing, and nothing about what other tenants have.
- A relative URL is on the registry and needs the token. An absolute one is on the store and must not get it.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, PrintableText, Request
from registry.api.catalog import Resolved, VersionView
from registry.digest import Digest
from registry.manifest import FILES_LIMIT, Manifest

SMALL_BLOB_BYTES = 16 * 2**10
SMALL_FILES_BYTES = 256 * 2**10
"""How many bytes of small files a pull plan holds at most. The others are downloaded like large ones."""

NAME_LIMIT = 300
"""Characters of a name, a ref or an id in a request. Longer ones are refused before they are parsed."""


class PushRequest(Request):
    """What the client wants to push. The digest of the version is that of the manifest's bytes."""

    manifest: Manifest
    message: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)


class PushItem(PushRequest):
    """One of the pushes of a request. `name` is the adapter's: `namespace/name`."""

    name: str = Field(max_length=NAME_LIMIT)


class UploadPart(Answer):
    """Where to PUT the bytes `start` to `start + size_bytes` of a large blob. The store keeps received parts."""

    number: int
    start: int
    size_bytes: int
    url: str


class Upload(Answer):
    """Where to send one missing blob. A large one may have `parts` instead of a `url`: the parts still missing."""

    digest: Digest
    size_bytes: int
    method: str = "PUT"
    url: str = ""
    headers: dict[str, str] = {}
    parts: list[UploadPart] = []


class PushPlan(Answer):
    """What the server still needs. `uploads` may be empty."""

    push_id: str
    digest: Digest
    uploads: list[Upload]
    expires_at: datetime


class SmallBlob(Request):
    """The bytes of a small blob (base64)."""

    digest: Digest
    data: str = Field(max_length=4 * SMALL_BLOB_BYTES // 3 + 4)


class PushCommit(Request):
    """`alias` moves through its gate after the version exists.

    `small` holds small blobs that were not uploaded: most versions have few large files.
    """

    alias: str = ""
    small: tuple[SmallBlob, ...] = Field(default=(), max_length=FILES_LIMIT)


class CommitItem(PushCommit):
    """One of the commits of a request."""

    push_id: str = Field(max_length=NAME_LIMIT)


class PushResult(Answer):
    """The version. `created` is False if it existed already.

    `alias_refused` says why the alias of the commit did not move; the version exists anyway. If its weights are over
    16 MiB, the gate of the alias is closed until the version has a verdict `weights`: move the alias then.
    """

    version: VersionView
    created: bool
    job_id: str = ""
    alias_refused: str = ""


class PullPlan(Answer):
    """`small`: bytes of small files. `direct`: path → a link of the store that needs no token and is valid for
    `direct_seconds`.
    """

    resolved: Resolved
    small: list[SmallBlob] = []
    direct: dict[str, str] = {}
    direct_seconds: int = 0
