"""The rows of the fleet: which box has reported which versions on which engine, and which blobs those need.

Invariants
- As in tables.py: rows validate nothing and never leave the server.
- A slot names an adapter and a digest and points at no row: a box goes on serving what was deleted here.

The migrations write these columns out by hand; a test compares the two.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.server.database.columns import UtcTime


class FleetBoxRow(SQLModel, table=True):
    """An engine on a box. `reach`: the namespaces that its token pulls from, none for all. `said`: its last word."""

    __tablename__ = "fleet_box"
    __table_args__ = (UniqueConstraint("reporter", "box", "engine"),)
    id: int | None = Field(default=None, primary_key=True)
    reporter: str
    reporter_name: str
    box: str
    engine: str
    base: str
    alias: str
    profile: str
    on_demand: bool
    reach: list[str] | None = Field(default=None, sa_type=JSON)
    said: str
    heard_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class FleetSlotRow(SQLModel, table=True):
    __tablename__ = "fleet_slot"
    box_id: int = Field(foreign_key="fleet_box.id", primary_key=True)
    served_name: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    number: int | None = None
    digest: str = Field(index=True)
    state: str
    reason: str = Field(default="", sa_type=Text)
    proved: bool
    since: datetime = Field(sa_type=UtcTime)


class FleetBlobRow(SQLModel, table=True):
    """A blob that a version needs which some box has reported; kept when the version's own rows have gone."""

    __tablename__ = "fleet_blob"
    version: str = Field(primary_key=True)
    digest: str = Field(primary_key=True, index=True)
