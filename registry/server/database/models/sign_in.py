"""Tables of identities from elsewhere: trusted publishers, used identity tokens, sessions of browsers."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class PublisherRow(CreatedColumns, table=True):
    """A trusted publisher: the issuer and claims of identity tokens that may be exchanged for a push token.

    The token moves `aliases`, too.
    """

    __tablename__ = "publisher"
    id: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    issuer: str = Field(index=True)
    claims: dict[str, Any] = Field(sa_type=JSON)
    aliases: list[str] = Field(default_factory=list, sa_type=JSON)


class UsedAssertionRow(SQLModel, table=True):
    """An identity token that was exchanged, and cannot be a second time."""

    __tablename__ = "used_assertion"
    issuer: str = Field(primary_key=True)
    jti: str = Field(primary_key=True)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class PageSessionRow(SQLModel, table=True):
    """A browser that has signed in to the pages, by the SHA-256 of its random id.

    It has the rights of the token with `secret_sha256`, for as long as that secret is valid. `provider`: the identity
    provider by which the person signed in; empty for a pasted token. `owns_token`: the token was made for this session
    and ends with it. `confirmed_at`: when the provider has asked the person again who they are.
    """

    __tablename__ = "page_session"
    id_sha256: str = Field(primary_key=True)
    secret_sha256: str
    provider: str = ""
    owns_token: bool = False
    confirmed_at: datetime | None = Field(default=None, sa_type=UtcTime)
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)
