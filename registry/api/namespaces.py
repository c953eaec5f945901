"""The REST contract of namespaces: roles, limits, trusted publishers, exchange, transfer, removal.

Invariants
- Roles are shown to the owners of a namespace only; limits and what is used of them to whoever may look into it.
"""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from registry.api import Answer, Request, ServedOn
from registry.api.access import SUBJECT, SUBJECT_LIMIT

COUNT_LIMIT = 2**31 - 1
BYTES_LIMIT = 2**62
CLAIMS_LIMIT = 16
CLAIM_LIMIT = 512


class NamespaceCreate(Request):
    name: str
    owner: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    """The subject that owns it. Empty: the one who asks, if its token has a subject."""


class NamespaceSet(Request):
    """What is given is changed. A limit of 0 takes the limit away."""

    public: bool | None = None
    quota_bytes: int | None = Field(default=None, ge=0, le=BYTES_LIMIT)
    quota_versions: int | None = Field(default=None, ge=0, le=COUNT_LIMIT)
    pushes_per_hour: int | None = Field(default=None, ge=0, le=COUNT_LIMIT)


class NamespaceView(Answer):
    """`used_bytes` counts every version in full, whoever else has the same bytes."""

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
    """Subject → role, for owners."""


class NamespacePage(Answer):
    items: list[NamespaceView]
    next_cursor: str = ""


class RoleGrant(Request):
    role: str = Field(max_length=20)


class PublisherAdd(Request):
    """Identity tokens of `issuer` whose claims match all of `claims` may push: values may hold `*`."""

    issuer: str = Field(min_length=1, max_length=500)
    claims: dict[str, str] = Field(min_length=1, max_length=CLAIMS_LIMIT)


class PublisherView(Answer):
    id: str
    adapter: str
    issuer: str
    claims: dict[str, str]
    created_at: datetime
    created_by: str


class PublisherList(Answer):
    items: list[PublisherView]


class ExchangeRequest(Request):
    """`assertion` is the identity token. With `adapter` only the right to push that one is asked for."""

    assertion: str = Field(min_length=1, max_length=16_384)
    adapter: str = Field(default="", max_length=200)


class RenameRequest(Request):
    to: str = Field(max_length=200)
    """The new name, `namespace/name`."""


class Removed(Answer):
    """What deleted; its name is never reused. `served_on`: the live nodes that still have versions of it."""

    name: str
    versions: int = 0
    served_on: list[ServedOn] = []
