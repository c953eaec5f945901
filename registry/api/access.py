"""REST schemas of tokens and the caller; of namespaces, roles and trusted publishers.

A secret is in one response only, `TokenCreated`, and is not stored. Roles are visible to the owners of a namespace.
"""

from datetime import datetime

from pydantic import Field

from registry.api.models import ItemList, ItemPage, PrintableText, Request, Response
from registry.roles import SUBJECT_LIMIT
from registry.validation import pattern

LIFETIME_LIMIT_SECONDS = 366 * 24 * 3600
SUBJECT = pattern(r"^[!-~]*$", "must be visible ASCII characters without spaces")
"""A subject is visible ASCII without spaces, such as `alice@example.org`."""


class TokenCreate(Request):
    """A new token."""

    name: PrintableText = Field(
        min_length=1, max_length=100,
        pattern=pattern(r"^[^\n\t]*\S[^\n\t]*$", "must have a visible character, no line breaks and no tabs"),
    )  # fmt: skip
    scopes: list[str]
    namespaces: list[str] = ["*"]
    expires_in_seconds: int | None = Field(default=None, ge=1, le=LIFETIME_LIMIT_SECONDS)
    subject: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    adapters: list[str] = Field(default=[], max_length=100)


class TokenView(Response):
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


class TokenPage(ItemPage[TokenView]):
    """A page of the tokens that the caller may revoke, newest first."""


class TokenCreated(Response):
    """A token and its secret, which is shown once."""

    token: TokenView
    secret: str = Field(repr=False)


class TokenRotate(Request):
    """Replace the secret of a token."""

    keep_seconds: int = Field(default=0, ge=0, le=86400)


class Whoami(Response):
    """The token of the request and its rights."""

    actor: str
    token_id: str
    scopes: list[str]
    namespaces: list[str]
    expires_at: datetime | None = None
    subject: str = ""
    roles: dict[str, str] = {}
    adapters: list[str] = []
    groups: list[str] = []


QUOTA_LIMIT = 2**31 - 1
QUOTA_LIMIT_BYTES = 2**62
CLAIMS_LIMIT = 16
CLAIM_LIMIT = 512


class NamespaceCreate(Request):
    """A new namespace."""

    name: str
    owner: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)


class NamespaceSet(Request):
    """Changes of a namespace. Fields that are absent do not change."""

    public: bool | None = None
    quota_bytes: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT_BYTES)
    quota_versions: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT)
    pushes_per_hour: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT)
    strict: bool | None = None
    unregistered_bases: bool | None = None


class NamespaceView(Response):
    """A namespace, its limits, and how much of them is used."""

    name: str
    public: bool = False
    created_at: datetime
    created_by: str = ""
    quota_bytes: int | None = None
    quota_versions: int | None = None
    pushes_per_hour: int | None = None
    strict: bool = False
    unregistered_bases: bool = False
    used_bytes: int = 0
    used_versions: int = 0
    roles: dict[str, str] | None = None


class NamespacePage(ItemPage[NamespaceView]):
    """A page of the namespaces that the caller may see, by name."""


class RoleGrant(Request):
    """The new role of a subject."""

    role: str = Field(max_length=20)


class RenameRequest(Request):
    """Rename an adapter."""

    to: str = Field(max_length=200)


class PublisherAdd(Request):
    """Identity tokens of `issuer` may push if all of `claims` match."""

    issuer: str = Field(min_length=1, max_length=500)
    claims: dict[str, str] = Field(min_length=1, max_length=CLAIMS_LIMIT)


class PublisherView(Response):
    """A trusted publisher of an adapter."""

    id: str
    adapter: str
    issuer: str
    claims: dict[str, str]
    issuer_is_configured: bool
    created_at: datetime
    created_by: str


class PublisherList(ItemList[PublisherView]):
    """The trusted publishers of an adapter."""


class ExchangeRequest(Request):
    """An identity token, in exchange for a token of the registry."""

    assertion: str = Field(min_length=1, max_length=16_384, repr=False)
    adapter: str = Field(default="", max_length=200)
