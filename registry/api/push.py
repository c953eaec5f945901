"""The REST contract of a push: plan, uploads, commit. Used by server and client alike.

Invariants
- A plan names what is missing, never what others hold.
- A relative URL in a plan is on the registry and takes the token; an absolute one is on the store and never does.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT, Answer, Request, Said, VersionView
from registry.digest import Digest
from registry.manifest import FILES_LIMIT, Manifest

SMALL_BYTES = 16 * 2**10


class PushRequest(Request):
    """POST /adapters/{namespace}/{name}/pushes: what I want to push. The digest is of the manifest's bytes."""

    manifest: Manifest
    message: Said = Field(default="", max_length=MESSAGE_LIMIT)


class Part(Answer):
    """Where to PUT bytes `start` to `start + size_bytes` of a big blob. The store remembers the parts that arrived."""

    number: int
    start: int
    size_bytes: int
    url: str


class Upload(Answer):
    """Where to send one missing blob. A relative `url` is on the registry and takes the token; an absolute one never.

    A big blob may have `parts` instead of a `url`: those that have not arrived yet.
    """

    digest: Digest
    size_bytes: int
    method: str = "PUT"
    url: str = ""
    headers: dict[str, str] = {}
    parts: list[Part] = []


class PushPlan(Answer):
    """What the server still lacks. `uploads` is empty when nothing needs sending."""

    push_id: str
    digest: Digest
    uploads: list[Upload]
    expires_at: datetime


class Small(Request):
    """The bytes of a small blob of the plan (base64), which are not worth a request of their own."""

    digest: Digest
    data: str = Field(max_length=4 * SMALL_BYTES // 3 + 4)


class PushCommit(Request):
    """POST /pushes/{push_id}/commit. `alias` moves through its gate after the version exists.

    `small` brings blobs of at most `SMALL_BYTES` that were not uploaded: most versions have a large one and these.
    """

    alias: str = ""
    small: tuple[Small, ...] = Field(default=(), max_length=FILES_LIMIT)


class Pushed(Answer):
    """The version that exists now. `created` is False when the same bytes were there already.

    `alias_refused` says why the alias that the commit asked for did not move; the version exists all the same.
    """

    version: VersionView
    created: bool
    job_id: str = ""
    alias_refused: str = ""
