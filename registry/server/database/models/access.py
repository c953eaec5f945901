"""Tables of access: tokens, namespaces, roles, reserved names, trusted publishers, idempotency keys."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Text, false
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class TokenRow(CreatedColumns, table=True):
    """A token, with the SHA-256 of its secret and never the secret.

    The roles of `subject` (if set) and of `groups` limit its scopes; so do `adapters` (empty: all).
    `previous_sha256` is the secret before the last rotation, valid until `previous_until`.
    """

    __tablename__ = "token"
    id: str = Field(primary_key=True)
    name: str
    secret_sha256: str = Field(unique=True)
    scopes: list[str] = Field(sa_type=JSON)
    namespaces: list[str] = Field(sa_type=JSON)
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    subject: str = ""
    adapters: list[str] = Field(default_factory=list, sa_type=JSON)
    groups: list[str] = Field(default_factory=list, sa_type=JSON, sa_column_kwargs={"server_default": "[]"})
    previous_sha256: str | None = Field(default=None, index=True)
    previous_until: datetime | None = Field(default=None, sa_type=UtcTime)


class NamespaceRow(CreatedColumns, table=True):
    """A namespace and its limits; None means no limit. A namespace without a row is private and has no limits.

    `strict`: pushes whose check `compat` fails are refused. `unregistered_bases`: pushes whose base is not registered
    are stored.
    """

    __tablename__ = "namespace"
    name: str = Field(primary_key=True)
    quota_bytes: int | None = Field(default=None, sa_type=BigInteger)
    quota_versions: int | None = None
    pushes_per_hour: int | None = None
    strict: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    unregistered_bases: bool = Field(default=False, sa_column_kwargs={"server_default": false()})


class RoleRow(SQLModel, table=True):
    """The role of a subject in a namespace. Subject `*`: everyone with a token; namespace `*`: all of them."""

    __tablename__ = "namespace_role"
    namespace: str = Field(primary_key=True)
    subject: str = Field(primary_key=True, index=True)
    role: str
    granted_at: datetime = Field(sa_type=UtcTime)
    granted_by: str


class TakenNameRow(SQLModel, table=True):
    """A reserved name, by its skeleton. With `ended_at` it is a tombstone: the name is never available again.

    `owner` is the namespace of an adapter's name; empty for the name of a namespace; `@ORG` for a name `ORG/NAME` that
    a base had. `recorded_at`: when the tombstone's backup was written.
    """

    __tablename__ = "taken_name"
    owner: str = Field(primary_key=True)
    skeleton: str = Field(primary_key=True)
    name: str
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime)


class PublisherRow(CreatedColumns, table=True):
    """A trusted publisher: the issuer and claims of identity tokens that may be exchanged for a push token."""

    __tablename__ = "publisher"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    issuer: str = Field(index=True)
    claims: dict[str, Any] = Field(sa_type=JSON)


class UsedAssertionRow(SQLModel, table=True):
    """An identity token that was exchanged, and cannot be a second time."""

    __tablename__ = "used_assertion"
    issuer: str = Field(primary_key=True)
    jti: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class AccessStateRow(SQLModel, table=True):
    """The access epoch, in one row: every transaction that grants or revokes a right increments `generation`.

    A cache of actors compares it to learn whether it is still valid.
    """

    __tablename__ = "access_state"
    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    generation: int


class PageSessionRow(SQLModel, table=True):
    """A browser that has signed in to the pages, by the SHA-256 of its random id.

    It has the rights of the token with `secret_sha256`, for as long as that secret is valid. `provider`: the identity
    provider by which the person signed in; empty for a pasted token. `owns_token`: the token was made for this session
    and ends with it. `confirmed_at`: when the provider has asked the person again who they are.
    """

    __tablename__ = "page_session"
    id_sha256: str = Field(primary_key=True)
    secret_sha256: str
    provider: str = Field(default="", sa_column_kwargs={"server_default": ""})
    owns_token: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    confirmed_at: datetime | None = Field(default=None, sa_type=UtcTime)
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class IdempotencyRow(SQLModel, table=True):
    """The response to a mutation under the caller's idempotency key, for a retry."""

    __tablename__ = "idempotency"
    token_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_sha256: str
    status: int
    # The column keeps its first name: servers of the step before read it while they are replaced.
    response: str = Field(sa_column=Column("answer", Text, key="response", nullable=False))
    created_at: datetime = Field(sa_type=UtcTime, index=True)
