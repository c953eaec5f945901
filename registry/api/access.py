"""REST schemas of tokens, the caller, and health.

A secret is in one answer only, `TokenCreated`, and is not stored.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import Answer, PrintableText, Request

SUBJECT_LIMIT = 200
SUBJECT = r"^[!-~]*$"
"""A subject is visible ASCII without spaces, such as `alice@example.org`."""


class TokenCreate(Request):
    """A new token."""

    name: PrintableText = Field(min_length=1, max_length=100, pattern=r"^[^\n\t]*$")
    scopes: list[str]
    namespaces: list[str] = ["*"]
    expires_in_seconds: int | None = Field(default=None, ge=1, le=366 * 86400)
    subject: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    """The subject whose roles limit the token. Empty: the token stands for itself."""
    adapters: list[str] = Field(default=[], max_length=100)
    """The only adapters that the token gives access to, as `namespace/name`. Empty: all of its namespaces."""


class TokenView(Answer):
    """A token without its secret."""

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


class TokenList(Answer):
    """The tokens that the caller may revoke."""

    items: list[TokenView]


class TokenCreated(Answer):
    """A token and its secret, which is shown once."""

    token: TokenView
    secret: str


class TokenRotate(Request):
    """`keep_seconds`: how long the old secret stays valid."""

    keep_seconds: int = Field(default=0, ge=0, le=86400)


class Whoami(Answer):
    """The token of the request and its rights. `roles`: namespace → role of its subject."""

    actor: str
    token_id: str
    scopes: list[str]
    namespaces: list[str]
    expires_at: datetime | None = None
    subject: str = ""
    roles: dict[str, str] = {}
    adapters: list[str] = []


class Health(Answer):
    """The state of the server, and what is behind it."""

    status: str
    reason: str = ""
    version: str
    database: str
    blobs: str
    schema_revision: str = ""
    capabilities: dict[str, bool] = {}
