"""Tables of the Hub API: drafts, their files, and what Xet clients have sent."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class DraftRow(CreatedColumns, table=True):
    """The newest commit of one pusher on one branch, if it is no version. It ends with its push.

    `owner`: the subject of the pusher's token, or the token's id. `push_id`: the push that references the blobs.
    `parent`: the digest of the version that it began from; empty without one. `revision`: the commit id.
    """

    __tablename__ = "draft"
    __table_args__ = (UniqueConstraint("namespace", "name", "owner", "branch"),)
    id: str = Field(primary_key=True)
    namespace: str
    name: str
    owner: str
    branch: str
    push_id: str = Field(index=True, sa_column_args=(ForeignKey("push.id", ondelete="CASCADE"),))
    parent: str = ""
    revision: str
    message: str = Field(default="", sa_type=Text)
    updated_at: datetime = Field(sa_type=UtcTime)


class DraftFileRow(SQLModel, table=True):
    """A file of a draft. `git_sha1`: the id of its git blob if it is small, else empty."""

    __tablename__ = "draft_file"
    draft_id: str = Field(primary_key=True, sa_column_args=(ForeignKey("draft.id", ondelete="CASCADE"),))
    path: str = Field(primary_key=True)
    digest: str
    size_bytes: int = Field(sa_type=BigInteger)
    git_sha1: str = ""


class XorbRow(SQLModel, table=True):
    """A xorb that a Xet client has sent, stored unpacked under its SHA-256. It goes with its session.

    `chunk_ends`: where each chunk ends in the unpacked bytes, as little-endian u32.
    """

    __tablename__ = "xorb"
    push_id: str = Field(primary_key=True, sa_column_args=(ForeignKey("push.id", ondelete="CASCADE"),))
    hash: str = Field(primary_key=True)
    digest: str
    chunk_ends: bytes = Field(sa_type=LargeBinary)
