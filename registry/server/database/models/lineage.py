"""The rows of lineage beside the edges of versions: what versions were made from, and what was fused into bases.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- All of them follow from manifests, facts and the records of bases, and can be made again.

The migrations write these columns out by hand; a test compares the two.
"""

from __future__ import annotations

from sqlmodel import Field, SQLModel


class VersionInputRow(SQLModel, table=True):
    """A data set, run or commit that a version declares, or a data set that its README claims (`relation`)."""

    __tablename__ = "version_input"
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    place: int = Field(primary_key=True)
    relation: str
    node: str
    name: str
    uri: str = Field(index=True)
    digest: str | None = Field(default=None, index=True)


class BaseEdgeRow(SQLModel, table=True):
    """Base → version that was fused into it, by the version's digest: the base's `parents`, to be walked."""

    __tablename__ = "base_edge"
    base_id: int = Field(foreign_key="base.id", primary_key=True)
    parent_digest: str = Field(primary_key=True, index=True)
    relation: str = Field(primary_key=True)
