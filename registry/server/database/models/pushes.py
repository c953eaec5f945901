"""Tables of pushes, and of the norms of the weights that they bring."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, Text, text
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime

_IS_OPEN = text("state = 'open'")


class PushRow(CreatedColumns, table=True):
    """A push. While it is open, it references every blob of its manifest; GC ends it after `expires_at`.

    Ended, it has no manifest any more. `refusal`: the problem body of a push whose files were refused.
    """

    __tablename__ = "push"
    __table_args__ = (Index("ix_push_open", "namespace", sqlite_where=_IS_OPEN),)
    id: str = Field(primary_key=True)
    namespace: str
    name: str
    manifest: str = Field(sa_type=Text)
    manifest_digest: str = Field(index=True)
    message: str = Field(default="", sa_type=Text)
    state: str = "open"
    token_id: str = ""
    expires_at: datetime = Field(sa_type=UtcTime, index=True)
    refusal: str | None = Field(default=None, sa_type=Text)


class PushBlobRow(SQLModel, table=True):
    """A blob of a push. `is_requested`: the push has to send its bytes, as no version that the caller may read has it.

    `is_stored`: this push has sent the bytes, and this server has verified that they are under their final key.
    """

    __tablename__ = "push_blob"
    push_id: str = Field(primary_key=True, sa_column_args=(ForeignKey("push.id", ondelete="CASCADE"),))
    digest: str = Field(primary_key=True, index=True)
    size_bytes: int = Field(sa_type=BigInteger)
    is_requested: bool = False
    is_stored: bool = False

    @property
    def is_taken_over(self) -> bool:
        """Whether the push only refers to bytes that a version has: only who may read them may use them."""
        return not (self.is_requested or self.is_stored)

    @property
    def is_awaited(self) -> bool:
        """Whether the bytes have not arrived yet, as far as the database knows."""
        return self.is_requested and not self.is_stored


class VersionNormsRow(SQLModel, table=True):
    """`norms`: JSON, module → |A|, |B|, |scale · BA| and the root mean square of its elements."""

    __tablename__ = "version_norms"
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    norms: str = Field(sa_type=Text)
