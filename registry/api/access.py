"""REST schemas of tokens and the caller; of namespaces, roles and trusted publishers.

A secret is in one response only, `TokenCreated`, and is not stored. Roles are visible to the owners of a namespace.
"""

from dataclasses import dataclass
from datetime import datetime

from pydantic import Field

from registry.api import MESSAGE_LIMIT
from registry.api.models import ItemList, ItemPage, PrintableText, Request, Response
from registry.roles import SUBJECT_LIMIT, GrantedRole, Role
from registry.validation import pattern

LIFETIME_LIMIT_SECONDS = 366 * 24 * 3600
ALIASES_LIMIT = 100
"""Aliases that one role, token or trusted publisher names."""
SUBJECT = pattern(r"^[!-~]*$", "must be visible ASCII characters without spaces")
"""A subject is visible ASCII without spaces, such as `alice@example.org`."""


class TokenCreate(Request):
    """A new token."""

    name: PrintableText = Field(
        min_length=1, max_length=100,
        pattern=pattern(r"^[^\n\t]*\S[^\n\t]*$", "must have a visible character, no line breaks and no tabs"),
    )  # fmt: skip
    """What people call the token."""
    scopes: list[str]
    """What the token may do: `pull`, `push`, `promote`, `work`, `audit`, `metrics`, `admin`."""
    namespaces: list[str] = ["*"]
    """Namespaces that it reaches; `*` for all."""
    expires_in_seconds: int | None = Field(default=None, ge=1, le=LIFETIME_LIMIT_SECONDS)
    """How long it is valid; null for no end. It never outlives the token that creates it."""
    subject: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    """Person or program whose roles limit the token. Empty: the token stands for itself."""
    adapters: list[str] = Field(default=[], max_length=100)
    """The only adapters that it reaches, as `namespace/name`. Empty: all of its namespaces."""
    aliases: list[str] = Field(default=[], max_length=ALIASES_LIMIT)
    """The only aliases that its scope `promote` moves and approves. Empty: all."""


class TokenView(Response):
    """A token without its secret."""

    id: str
    """Identifier, with a prefix that names the kind (`tok_`, `job_` …)."""
    name: str
    """What people call the token."""
    scopes: list[str]
    """What the token may do: `pull`, `push`, `promote`, `work`, `audit`, `metrics`, `admin`."""
    namespaces: list[str]
    """Namespaces that it reaches; `*` for all."""
    subject: str = ""
    """Person or program whose roles limit the token. Empty: the token stands for itself."""
    adapters: list[str] = []
    """The only adapters that it reaches, as `namespace/name`. Empty: all of its namespaces."""
    aliases: list[str] = []
    """The only aliases that its scope `promote` moves and approves. Empty: all."""
    created_at: datetime
    """When it was created."""
    expires_at: datetime | None = None
    """When it ends; null for never."""
    revoked_at: datetime | None = None
    """When it was revoked; null if it is valid."""
    last_used_at: datetime | None = None
    """When it was last used, to ten minutes; null if never."""


class TokenPage(ItemPage[TokenView]):
    """A page of the tokens that the caller may revoke, newest first."""

    items: list[TokenView]
    """Tokens that the caller may revoke, newest first."""


class TokenCreated(Response):
    """A token and its secret, which is shown once."""

    token: TokenView
    """The token without its secret."""
    secret: str = Field(repr=False)
    """Shown in this response only, and not stored. Keep it."""


class TokenRotate(Request):
    """Replace the secret of a token."""

    keep_seconds: int = Field(default=0, ge=0, le=86400)
    """How long the old secret stays valid."""


class RoleView(Response):
    """A role of a subject in a namespace."""

    role: str
    """`reader`, `pusher`, `promoter`, `owner` or `auditor`."""
    aliases: list[str] = []
    """The only aliases that the role moves and approves. Empty: what the role itself gives."""

    def __str__(self) -> str:
        return str(GrantedRole(Role(self.role), frozenset(self.aliases)))


class Whoami(Response):
    """The token of the request and its rights."""

    actor: str
    """Identity that the registry records for what this token does: its subject, `token:NAME` or `publisher:NAME`."""
    token_id: str
    """Identifier of the token."""
    scopes: list[str]
    """What the token may do: `pull`, `push`, `promote`, `work`, `audit`, `metrics`, `admin`."""
    namespaces: list[str]
    """Namespaces that it reaches; `*` for all."""
    expires_at: datetime | None = None
    """When it ends; null for never."""
    subject: str = ""
    """Person or program whose roles limit the token. Empty: the token stands for itself."""
    roles: dict[str, list[RoleView]] = {}
    """Namespace → roles of the token's subject, which add up."""
    adapters: list[str] = []
    """The only adapters that it reaches, as `namespace/name`. Empty: all of its namespaces."""
    aliases: list[str] = []
    """The only aliases that its scope `promote` moves and approves. Empty: all."""
    groups: list[str] = []
    """Subjects of the groups that came with a sign-in, such as `group:ml-platform`."""


QUOTA_LIMIT = 2**31 - 1
QUOTA_LIMIT_BYTES = 2**62
CLAIMS_LIMIT = 16
CLAIM_LIMIT = 512


class NamespaceCreate(Request):
    """A new namespace."""

    name: str
    """The new name: lower-case letters, digits, `.`, `_` and `-`, at most 64 characters."""
    owner: str = Field(default="", max_length=SUBJECT_LIMIT, pattern=SUBJECT)
    """Subject that becomes its owner. Empty: that of the token, if it has one."""
    rehearsal: bool = False
    """Whether names of deleted adapters are free at once. It stays so, and is never public."""


@dataclass(frozen=True, slots=True)
class NamespaceRule:
    """What a namespace does with some adapters: `on` or `off`, in the words of commands, pages and events.

    `field`: a boolean field of `NamespaceSet` and `NamespaceView`, and a column of the namespace.
    """

    field: str
    adapters: str
    on: str
    off: str

    def text(self, value: bool) -> str:
        """Say what it does, such as "adapters that do not fit their base are refused"."""
        return f"{self.adapters} are {self.on if value else self.off}"


NAMESPACE_RULES = (
    NamespaceRule("strict", "adapters that do not fit their base", "refused", "stored with a failing verdict"),
    NamespaceRule(
        "unregistered_bases", "adapters of bases that are not registered", "stored with an unknown verdict", "refused"
    ),
    NamespaceRule("main_skips_failing", "new versions that fail a check", "passed over by main", "followed by main"),
)


class NamespaceSet(Request):
    """Changes of a namespace. Fields that are absent do not change."""

    public: bool | None = None
    """Whether every token may pull from it, and everyone may read its web pages; null: unchanged."""
    quota_bytes: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT_BYTES)
    """Limit of stored bytes; 0 removes it, null: unchanged."""
    quota_versions: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT)
    """Limit of versions; 0 removes it, null: unchanged."""
    pushes_per_hour: int | None = Field(default=None, ge=0, le=QUOTA_LIMIT)
    """Limit of pushes in an hour; 0 removes it, null: unchanged."""
    strict: bool | None = None
    """Refuse adapters that are incompatible with their base, instead of storing a failed verdict; null: unchanged."""
    unregistered_bases: bool | None = None
    """Store adapters whose base is not registered, with `compat` unknown, instead of refusing them; null: unchanged."""
    main_skips_failing: bool | None = None
    """Let `main` stay where it is when a version fails a check at its push; null: unchanged."""


class NamespaceView(Response):
    """A namespace, its limits, and how much of them is used."""

    name: str
    """The part of an adapter's name before the slash."""
    public: bool = False
    """Whether every token may pull from it."""
    created_at: datetime
    """When it was created."""
    created_by: str = ""
    """Identity whose token created it."""
    quota_bytes: int | None = None
    """Limit of stored bytes; null for none."""
    quota_versions: int | None = None
    """Limit of versions; null for none."""
    pushes_per_hour: int | None = None
    """Limit of pushes in an hour; null for none."""
    strict: bool = False
    """Whether adapters that are incompatible with their base are refused."""
    unregistered_bases: bool = False
    """Whether adapters whose base is not registered are stored."""
    main_skips_failing: bool = True
    """Whether `main` stays where it is when a version fails a check at its push."""
    rehearsal: bool = False
    """Whether names of deleted adapters are free at once."""
    used_bytes: int = 0
    """Bytes of all versions, each in full even if others hold the same bytes."""
    used_versions: int = 0
    """Number of versions that count against the quota."""
    roles: dict[str, list[RoleView]] | None = None
    """Subject → roles; null if the caller is no owner."""


class NamespacePage(ItemPage[NamespaceView]):
    """A page of the namespaces that the caller may see, by name."""

    items: list[NamespaceView]
    """Namespaces that the caller may see, by name."""


class RoleGrant(Request):
    """A role that a subject gets beside those that it has."""

    role: str = Field(max_length=20)
    """`reader`, `pusher`, `promoter`, `owner` or `auditor`."""
    aliases: list[str] = Field(default=[], max_length=ALIASES_LIMIT)
    """Of a `pusher` or `promoter`: the only aliases that the role moves and approves. Empty: of a pusher none, of a
    promoter all."""


class SubjectRoles(Response):
    """The roles of a subject in a namespace, after a change."""

    namespace: str
    """Namespace; `*` stands for all."""
    subject: str
    """Person, program or group."""
    before: list[RoleView]
    """Roles before the change."""
    roles: list[RoleView]
    """Roles now."""


class RenameRequest(Request):
    """Rename an adapter."""

    to: str = Field(max_length=200)
    """The new name, as `namespace/name`."""
    reason: PrintableText = Field(default="", max_length=MESSAGE_LIMIT)
    """Why, for everyone who reads the history. Control characters are refused."""


class PublisherAdd(Request):
    """Identity tokens of `issuer` may push if all of `claims` match."""

    issuer: str = Field(min_length=1, max_length=500)
    """Issuer of identity tokens (OpenID Connect), as in their `iss`."""
    claims: dict[str, str] = Field(min_length=1, max_length=CLAIMS_LIMIT)
    """Claim → value that an identity token must have; `*` in a value matches any text."""
    aliases: list[str] = Field(default=[], max_length=ALIASES_LIMIT)
    """Aliases that such a job may move and approve, too."""


class PublisherView(Response):
    """A trusted publisher of an adapter."""

    id: str
    """Identifier, with a prefix that names the kind (`tok_`, `job_` …)."""
    adapter: str
    """Adapter, as `namespace/name`."""
    issuer: str
    """Issuer of identity tokens (OpenID Connect), as in their `iss`."""
    claims: dict[str, str]
    """Claim → value that an identity token must have; `*` in a value matches any text."""
    aliases: list[str] = []
    """Aliases that such a job may move and approve, too."""
    issuer_is_configured: bool
    """Whether `REGISTRY_ISSUERS` lists the issuer. If not, the server rejects its identity tokens."""
    created_at: datetime
    """When it was created."""
    created_by: str
    """Identity whose token created it."""


class PublisherList(ItemList[PublisherView]):
    """The trusted publishers of an adapter."""

    items: list[PublisherView]
    """Trusted publishers of the adapter, oldest first."""


class ExchangeRequest(Request):
    """An identity token, in exchange for a token of the registry."""

    assertion: str = Field(min_length=1, max_length=16_384, repr=False)
    """Identity token (JWT) of a CI job or person."""
    adapter: str = Field(default="", max_length=200)
    """Adapter that a CI job pushes, as `namespace/name`. Empty for a person."""
