"""The REST contract of access: tokens, who am I, events, health. Used by server and client alike.

Invariants
- A secret is in one answer only, `TokenCreated`, and is stored nowhere.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import Answer, Request, Said

SUBJECT_LIMIT = 200
SUBJECT = r"^[!-~]*$"
"""A subject is visible ASCII without spaces, such as `alice@example.org`."""


class TokenCreate(Request):
    name: Said = Field(min_length=1, max_length=100, pattern=r"^[^\n\t]*$")
    scopes: list[str]
    namespaces: list[str] = ["*"]
    expires_in_seconds: int | None = Field(default=None, ge=1, le=366 * 86400)
    subject: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    """Whose roles bound what this token may do. Empty: it stands for itself."""
    adapters: list[str] = Field(default=[], max_length=100)
    """The adapters outside which it gives nothing, as `namespace/name`. Empty: all of its namespaces."""


class TokenView(Answer):
    id: str
    name: str
    scopes: list[str]
    namespaces: list[str]
    subject: str = ""
    adapters: list[str] = []
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class TokenRotate(Request):
    keep_seconds: int = Field(default=0, ge=0, le=86400)
    """How long the old secret still counts beside the new one."""


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
    subject: str = ""
    roles: dict[str, str] = {}
    """Namespace → role of the subject, for a token that has one."""
    adapters: list[str] = []


class Health(Answer):
    status: str
    reason: str = ""
    version: str
    database: str
    blobs: str
    schema_revision: str = ""
    capabilities: dict[str, bool] = {}
