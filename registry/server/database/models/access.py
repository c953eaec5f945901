"""Tables of access: tokens, roles, the access epoch, idempotency keys."""

from datetime import datetime

from sqlalchemy import JSON, Text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class TokenRow(CreatedColumns, table=True):
    """A token, with the SHA-256 of its secret and never the secret.

    The roles of `subject` (if set) and of `groups` limit its scopes; so do `adapters` and `aliases` (empty: all).
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
    aliases: list[str] = Field(default_factory=list, sa_type=JSON)
    groups: list[str] = Field(default_factory=list, sa_type=JSON)
    previous_sha256: str | None = Field(default=None, index=True)
    previous_until: datetime | None = Field(default=None, sa_type=UtcTime)


class RoleRow(SQLModel, table=True):
    """A role of a subject in a namespace. Subject `*`: everyone with a token; namespace `*`: all of them.

    `aliases`: the only ones that the role moves; empty for those that the role itself gives.
    """

    __tablename__ = "namespace_role"
    namespace: str = Field(primary_key=True)
    subject: str = Field(primary_key=True, index=True)
    role: str = Field(primary_key=True)
    aliases: list[str] = Field(default_factory=list, sa_type=JSON)
    granted_at: datetime = Field(sa_type=UtcTime)
    granted_by: str


class AccessStateRow(SQLModel, table=True):
    """The access epoch, in one row: every transaction that grants or revokes a right increments `generation`.

    A cache of actors compares it to learn whether it is still valid.
    """

    __tablename__ = "access_state"
    id: int = Field(primary_key=True, sa_column_kwargs={"autoincrement": False})
    generation: int


class IdempotencyRow(SQLModel, table=True):
    """The response to a mutation under the caller's idempotency key, for a retry."""

    __tablename__ = "idempotency"
    token_id: str = Field(primary_key=True)
    key: str = Field(primary_key=True)
    request_sha256: str
    status: int
    response: str = Field(sa_type=Text)
    created_at: datetime = Field(sa_type=UtcTime, index=True)
