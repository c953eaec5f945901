"""The REST contract: request and answer shapes that are not already domain words. Used by server and client alike.

Invariants
- What a client claims is informational unless said otherwise; the server recomputes it.
- Times are UTC and aware. Sizes are bytes. Lists come with `next_cursor`, which is empty on the last page.
- Requests refuse unknown fields; answers may gain fields, so a client ignores those that it does not know.

Example
    >>> PushRequest(manifest=manifest.model_dump(mode="json")).message
    ''
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from registry.bases import BaseSpec
from registry.digest import Digest
from registry.jobs import Job, Kind, Lease
from registry.manifest import Descriptor, Edge, Manifest
from registry.verdicts import Report, Verdict

PREFIX = "/api/v1"
PAGE_LIMIT = 200
PAGE_DEFAULT = 50
MESSAGE_LIMIT = 2000


class Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_nul(cls, data: Any) -> Any:
        """PostgreSQL cannot store U+0000 in a text, and no field of ours needs it."""
        waiting = [data]
        while waiting:
            value = waiting.pop()
            if isinstance(value, str) and "\0" in value:
                raise ValueError("a text holds the character U+0000")
            if isinstance(value, dict):
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                waiting += value
        return data


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


# ------------------------------------------------------------------ push
class PushRequest(Request):
    """POST /adapters/{namespace}/{name}/pushes: what I want to push. The digest is of the manifest's bytes."""

    manifest: Manifest
    message: str = Field(default="", max_length=MESSAGE_LIMIT)


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


class PushCommit(Request):
    """POST /pushes/{push_id}/commit. `alias` moves through its gate after the version exists."""

    alias: str = ""


class Pushed(Answer):
    """The version that exists now. `created` is False when the same bytes were there already.

    `alias_refused` says why the alias that the commit asked for did not move; the version exists all the same.
    """

    version: VersionView
    created: bool
    job_id: str = ""
    alias_refused: str = ""


# ------------------------------------------------------------------ adapters and versions
class AliasView(Answer):
    alias: str
    number: int
    digest: Digest
    generation: int
    moved_at: datetime
    moved_by: str
    reason: str = ""


class AliasMove(Answer):
    """One row of an alias's history: generation `n` pointed at `number` from `at` until the next row."""

    alias: str
    generation: int
    from_number: int | None
    number: int | None
    digest: Digest | None
    at: datetime
    actor: str
    reason: str
    evidence: list[dict[str, Any]] = []


class VersionView(Answer):
    name: str
    number: int
    digest: Digest
    base: str
    base_fingerprint: Digest
    files: list[Descriptor]
    parents: list[Edge]
    facts: dict[str, Any]
    verdicts: list[Verdict]
    aliases: list[str]
    size_bytes: int
    message: str
    created_at: datetime
    created_by: str
    yanked_at: datetime | None = None
    yank_reason: str = ""


class VersionPage(Answer):
    """The versions of one adapter, newest first."""

    items: list[VersionView]
    next_cursor: str = ""


class AliasList(Answer):
    items: list[AliasView]


class AdapterView(Answer):
    """One line of a list: an adapter and its newest version in short."""

    name: str
    versions: int
    newest: int
    digest: Digest
    base: str
    method: str
    rank: int | None
    size_bytes: int
    aliases: dict[str, int]
    verdicts: dict[str, str]
    updated_at: datetime


class AdapterPage(Answer):
    items: list[AdapterView]
    next_cursor: str = ""


class FileLink(Answer):
    """A file and where its bytes are now. `url` is relative (takes the token) or presigned (does not)."""

    path: str
    media_type: str
    digest: Digest
    size_bytes: int
    url: str


class Resolved(Answer):
    """GET /resolve/{namespace}/{name}/{selector}: everything that a serving system asks."""

    name: str
    selector: str
    number: int
    digest: Digest
    manifest: Manifest
    files: list[FileLink]
    verdicts: dict[str, str]
    yanked: bool = False
    generation: int | None = None


class PromoteRequest(Request):
    """PUT /adapters/{ns}/{name}/aliases/{alias}. Needs If-Match: the alias's generation, 0 for a new one."""

    version: str
    reason: str = Field(default="", max_length=MESSAGE_LIMIT)


class RollbackRequest(Request):
    """POST /adapters/{ns}/{name}/aliases/{alias}/rollback. Empty `to` is the version before this one."""

    to: str = ""
    reason: str = Field(default="", max_length=MESSAGE_LIMIT)


class YankRequest(Request):
    reason: str = Field(min_length=1, max_length=MESSAGE_LIMIT)


class History(Answer):
    name: str
    moves: list[AliasMove]
    next_cursor: str = ""


class LineageNode(Answer):
    """A version or base in the tree. `hidden` is a parent that the actor may not see: its digest and nothing else."""

    id: str
    kind: str
    name: str = ""
    number: int | None = None
    digest: str = ""
    hidden: bool = False


class LineageEdge(Answer):
    child: str
    parent: str
    relation: str


class Lineage(Answer):
    root: str
    nodes: list[LineageNode]
    edges: list[LineageEdge]


class CheckRequest(Request):
    """POST /check: judge a header and a configuration that are not pushed (yet)."""

    base: str
    config: str
    header: str
    size_bytes: int


# ------------------------------------------------------------------ bases
class BaseAdd(Request):
    spec: BaseSpec
    source: str = Field(default="", max_length=1000)


class BaseView(Answer):
    name: str
    fingerprint: Digest
    spec: BaseSpec
    source: str
    adapters: int = 0
    created_at: datetime
    created_by: str


class BaseList(Answer):
    items: list[BaseView]


# ------------------------------------------------------------------ jobs
class JobSubmit(Request):
    kind: Kind
    ref: str = ""
    payload: dict[str, Any] = {}


class ClaimRequest(Request):
    """POST /jobs/claim. `bases` are what this worker can load, warm ones first; empty means any."""

    worker: str = Field(min_length=1, max_length=200)
    kinds: list[Kind] = [Kind.VALIDATE]
    bases: list[str] = []


class Claimed(Answer):
    job: Job
    lease: Lease
    subject: Resolved | None = None
    base: BaseView | None = None


class RenewRequest(Request):
    lease_token: str
    progress: str = Field(default="", max_length=500)


class FinishRequest(Request):
    """POST /jobs/{id}/finish: the report of a job done. The server makes the verdict from it."""

    lease_token: str
    report: Report | None = None
    result: dict[str, Any] = {}


class FailRequest(Request):
    """POST /jobs/{id}/fail: this attempt could not answer. `final` parks the job at once."""

    lease_token: str
    error: str = Field(max_length=4000)
    final: bool = False


class JobPage(Answer):
    items: list[Job]
    next_cursor: str = ""


# ------------------------------------------------------------------ access
class TokenCreate(Request):
    name: str = Field(min_length=1, max_length=100)
    scopes: list[str]
    namespaces: list[str] = ["*"]
    expires_in_seconds: int | None = Field(default=None, ge=1, le=366 * 86400)


class TokenView(Answer):
    id: str
    name: str
    scopes: list[str]
    namespaces: list[str]
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class TokenList(Answer):
    items: list[TokenView]


class TokenCreated(Answer):
    """Shown once: `secret` is not stored."""

    token: TokenView
    secret: str


class Whoami(Answer):
    actor: str
    token_id: str
    scopes: list[str]
    namespaces: list[str]
    expires_at: datetime | None = None


class Health(Answer):
    status: str
    version: str
    database: str
    blobs: str
    schema_revision: str = ""
    capabilities: dict[str, Any] = {}


class EventView(Answer):
    seq: int
    at: datetime
    actor: str
    action: str
    object: str
    detail: dict[str, Any] = {}
    request_id: str = ""


class EventPage(Answer):
    items: list[EventView]
    next_cursor: str = ""


Pushed.model_rebuild()
