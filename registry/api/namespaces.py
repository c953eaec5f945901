"""REST schemas of namespaces and their roles, trusted publishers, token exchange; rename and delete.

The roles of a namespace are visible to its owners only; limits and usage to everybody who may see it.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import Answer, Request
from registry.api.access import SUBJECT, SUBJECT_LIMIT
from registry.api.catalog import ServedOn

COUNT_LIMIT = 2**31 - 1
BYTES_LIMIT = 2**62
CLAIMS_LIMIT = 16
CLAIM_LIMIT = 512


class NamespaceCreate(Request):
    """A new namespace. `owner`: its subject; empty for the subject of the token, if it has one."""

    name: str
    owner: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)


class NamespaceSet(Request):
    """Fields that are absent do not change. A limit of 0 removes the limit."""

    public: bool | None = None
    quota_bytes: int | None = Field(default=None, ge=0, le=BYTES_LIMIT)
    quota_versions: int | None = Field(default=None, ge=0, le=COUNT_LIMIT)
    pushes_per_hour: int | None = Field(default=None, ge=0, le=COUNT_LIMIT)


class NamespaceView(Answer):
    """`used_bytes` counts every version in full, even if others hold the same bytes. `roles`: subject → role."""

    name: str
    public: bool = False
    created_at: datetime
    created_by: str = ""
    quota_bytes: int | None = None
    quota_versions: int | None = None
    pushes_per_hour: int | None = None
    used_bytes: int = 0
    used_versions: int = 0
    roles: dict[str, str] | None = None


class NamespacePage(Answer):
    """A page of namespaces."""

    items: list[NamespaceView]
    next_cursor: str = ""


class RoleGrant(Request):
    """The new role of a subject."""

    role: str = Field(max_length=20)


class RenameRequest(Request):
    """`to`: the new name, `namespace/name`."""

    to: str = Field(max_length=200)


class DeleteResult(Answer):
    """What was deleted; its name stays reserved. `served_on`: live nodes that still have versions of it."""

    name: str
    versions: int = 0
    served_on: list[ServedOn] = []


# ------------------------------------------------------------------ trusted publishers
class PublisherAdd(Request):
    """Identity tokens of `issuer` may push if all of `claims` match; `*` in a value matches any text."""

    issuer: str = Field(min_length=1, max_length=500)
    claims: dict[str, str] = Field(min_length=1, max_length=CLAIMS_LIMIT)


class PublisherView(Answer):
    """A trusted publisher of an adapter."""

    id: str
    adapter: str
    issuer: str
    claims: dict[str, str]
    created_at: datetime
    created_by: str


class PublisherList(Answer):
    """The trusted publishers of an adapter."""

    items: list[PublisherView]


class ExchangeRequest(Request):
    """`assertion` is the identity token. With `adapter`, the new token may push only that adapter."""

    assertion: str = Field(min_length=1, max_length=16_384)
    adapter: str = Field(default="", max_length=200)
