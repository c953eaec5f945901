"""Tables of serving: nodes, their slots, and the blobs that those need."""

from datetime import datetime

from sqlalchemy import JSON, Text, UniqueConstraint
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import UtcTime


class FleetNodeRow(SQLModel, table=True):
    """An engine on a node. `reach`: the namespaces that its token pulls from, None for all.

    `report_digest`: the SHA-256 of the last report, empty if the report has to be read again.
    """

    __tablename__ = "fleet_node"
    __table_args__ = (UniqueConstraint("reporter", "node", "engine"),)
    id: int | None = Field(default=None, primary_key=True)
    reporter: str
    reporter_name: str
    node: str
    engine: str
    base: str
    alias: str
    profile: str
    on_demand: bool
    reach: list[str] | None = Field(default=None, sa_type=JSON)
    report_digest: str
    reported_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime = Field(sa_type=UtcTime, index=True)


class FleetSlotRow(SQLModel, table=True):
    """A version that a node serves or loads. No foreign key: a node goes on serving what was deleted here."""

    __tablename__ = "fleet_slot"
    node_id: int = Field(foreign_key="fleet_node.id", primary_key=True)
    served_name: str = Field(primary_key=True)
    namespace: str = Field(index=True)
    name: str
    number: int | None = None
    digest: str = Field(index=True)
    state: str
    reason: str = Field(default="", sa_type=Text)
    verified: bool
    since: datetime = Field(sa_type=UtcTime)


class FleetBlobRow(SQLModel, table=True):
    """A blob of a version that some node has reported. It stays when the version itself is deleted."""

    __tablename__ = "fleet_blob"
    version: str = Field(primary_key=True)
    digest: str = Field(primary_key=True, index=True)
