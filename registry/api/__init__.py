"""The REST contract: request and answer shapes that are not already domain words. Used by server and client alike.

    wire           adapters, versions, bases as they are seen
    wire.push      plan, uploads, commit                     wire.aliases   promote, rollback, history, yank
    wire.jobs      submit, claim, renew, finish, fail        wire.access    tokens, health
    …              one file a conversation: a command loads those that it takes part in

Invariants
- What a client claims is informational unless said otherwise; the server recomputes it.
- Times are UTC and aware. Sizes are bytes. Lists come with `next_cursor`, which is empty on the last page.
- Requests refuse unknown fields; answers may gain fields, so a client ignores those that it does not know.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

from registry.bases import BaseSpec
from registry.bases.similarity import Similarity
from registry.digest import Digest
from registry.evaluation.verdicts import Verdict
from registry.manifest import Descriptor, Edge, Manifest
from registry.provenance import Provenance

PREFIX = "/api/v1"
PAGE_LIMIT = 200
PAGE_DEFAULT = 50
MESSAGE_LIMIT = 2000
DEPTH_LIMIT = 64
"""How deep lists and objects of a request may lie in each other."""
_HALF = re.compile(r"[\ud800-\udfff]")
_STEERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def _said(text: str) -> str:
    match = _STEERS.search(text)
    if match is not None:
        raise ValueError(f"holds U+{ord(match[0][0]):04X}, which steers a terminal or turns a line")
    return text


Said = Annotated[str, AfterValidator(_said)]
"""What somebody writes and others read in their terminals and logs: reasons, messages, names of tokens."""


class Request(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, data: Any) -> Any:
        """PostgreSQL stores no U+0000, UTF-8 no half of a surrogate pair, and no answer holds what is too deep."""
        waiting = [(data, 0)]
        while waiting:
            value, depth = waiting.pop()
            text = value if isinstance(value, str) else ""
            if "\0" in text or (depth > 1 and not text.isascii() and _HALF.search(text)):  # a field says so itself
                raise ValueError("a text holds the character U+0000, or half a surrogate pair")
            if depth > DEPTH_LIMIT:
                raise ValueError(f"values are nested more than {DEPTH_LIMIT} deep")
            if isinstance(value, dict):
                waiting += [(inner, depth + 1) for inner in (*value.keys(), *value.values())]
            elif isinstance(value, list):
                waiting += [(inner, depth + 1) for inner in value]
        return data


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


# ------------------------------------------------------------------ adapters and versions
class ServedOn(Answer):
    """A node with a live lease that has a version; see wire/fleet.py for its states."""

    node: str
    engine: str
    served_name: str
    number: int | None
    state: str
    heard_at: datetime


class VersionView(Answer):
    """One version. `damaged`: files whose stored bytes are wrong or lost. `provenance`: what was declared at its push.

    `served_on`: who still has it, said by the answers that withdraw it and by no other.
    """

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
    quarantined_at: datetime | None = None
    quarantine_reason: str = ""
    damaged: list[str] = []
    served_on: list[ServedOn] = []
    provenance: Provenance | None = None


class VersionPage(Answer):
    """The versions of one adapter, newest first."""

    items: list[VersionView]
    next_cursor: str = ""


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


# ------------------------------------------------------------------ bases
class BaseView(Answer):
    """`relatives`: the other bases whose weights are known and how they are related. `thresholds`: what a smoke test on
    this base takes instead of the defaults. A list leaves both out.
    """

    name: str
    fingerprint: Digest
    spec: BaseSpec
    source: str
    adapters: int = 0
    created_at: datetime
    created_by: str
    relatives: list[Similarity] = []
    parents: list[Edge] = []
    thresholds: dict[str, float] = {}


class BaseList(Answer):
    items: list[BaseView]
