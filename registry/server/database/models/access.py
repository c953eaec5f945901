"""The rows of access: tokens, namespaces, who has which role where, names that are taken, trusted publishers.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- `access_state` has one row at most. Its generation grows with every change that takes a right away or gives one, in
  the transaction of that change: who remembers an actor asks for it and knows whether the memory still holds.

The migrations write these columns out by hand; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Text
from sqlmodel import Field, SQLModel

from registry.server.database.columns import UtcTime


class TokenRow(SQLModel, table=True):
    """A token at rest: the SHA-256 of its secret, never the secret.

    With a `subject`, the subject's roles bound what its scopes give. `adapters` (empty: all) bound it further.
    `previous_sha256` is the secret before the last rotation, which still counts until `previous_until`.
    """

    __tablename__ = "token"
    id: str = Field(primary_key=True)
    name: str
    secret_sha256: str = Field(unique=True)
    scopes: list[str] = Field(sa_type=JSON)
    namespaces: list[str] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    subject: str = ""
    adapters: list[str] = Field(default_factory=list, sa_type=JSON)
    previous_sha256: str | None = Field(default=None, index=True)
    previous_until: datetime | None = Field(default=None, sa_type=UtcTime)


class NamespaceRow(SQLModel, table=True):
    """A namespace and its limits; None is no limit. One without a row has none, and is private."""

    __tablename__ = "namespace"
    name: str = Field(primary_key=True)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str
    quota_bytes: int | None = Field(default=None, sa_type=BigInteger)
    quota_versions: int | None = None
    pushes_per_hour: int | None = None


class RoleRow(SQLModel, table=True):
    """What a subject may do in a namespace. The subject `*` is everybody with a token, the namespace `*` is all."""

    __tablename__ = "namespace_role"
    namespace: str = Field(primary_key=True)
    subject: str = Field(primary_key=True, index=True)
    role: str
    granted_at: datetime = Field(sa_type=UtcTime)
    granted_by: str


class TakenNameRow(SQLModel, table=True):
    """A name that nobody else may have, by its skeleton; `ended_at` marks one that nobody may ever have again.

    `owner` is the namespace of an adapter's name, and empty for the name of a namespace. `recorded_at` is empty until
    the tombstone is recorded beside the blobs.
    """

    __tablename__ = "taken_name"
    owner: str = Field(primary_key=True)
    skeleton: str = Field(primary_key=True)
    name: str
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)
    recorded_at: datetime | None = Field(default=None, sa_type=UtcTime)


class PublisherRow(SQLModel, table=True):
    """Whose identity tokens may be exchanged for one that pushes this adapter: an issuer, and patterns of claims."""

    __tablename__ = "publisher"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    issuer: str = Field(index=True)
    claims: dict[str, Any] = Field(sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str


class UsedAssertionRow(SQLModel, table=True):
    """An identity token that was exchanged: it is not taken a second time."""

    __tablename__ = "used_assertion"
    issuer: str = Field(primary_key=True)
    jti: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class AccessStateRow(SQLModel, table=True):
    __tablename__ = "access_state"
    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    generation: int


class IdempotencyRow(SQLModel, table=True):
    """The answer to a mutation, kept under the caller's key, so that twice means once."""

    __tablename__ = "idempotency"
    token_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_sha256: str
    status: int
    answer: str = Field(sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime, index=True)
