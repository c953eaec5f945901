"""The rows of what is known of a version beyond its header: the norms of its modules, and its tags.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- Both follow from the version's bytes (its weights, its manifest's annotations) and can be made again.
"""

from __future__ import annotations

from sqlalchemy import Index, Text
from sqlmodel import Field, SQLModel


class VersionValuesRow(SQLModel, table=True):
    """`norms`: JSON, module → |A|, |B|, |scale · BA| and the root mean square of its elements."""

    __tablename__ = "version_values"
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    norms: str = Field(sa_type=Text)


FACT = "fact:"
"""Keys of tags that are facts of the version's content begin so; `fact:target:q_proj`, `fact:scheme:peft`."""


class VersionTagRow(SQLModel, table=True):
    """One annotation of a version's manifest that can be searched for, or one of its facts (`FACT`)."""

    __tablename__ = "version_tag"
    __table_args__ = (Index("ix_version_tag_key_value", "key", "value", "version_id"),)
    version_id: int = Field(foreign_key="version.id", primary_key=True)
    key: str = Field(primary_key=True)
    value: str
