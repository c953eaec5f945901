"""Tables of namespaces: limits, reserved names, usage."""

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey
from sqlmodel import Field, SQLModel

from registry.server.database.models.columns import CreatedColumns, UtcTime


class NamespaceRow(CreatedColumns, table=True):
    """A namespace and its limits; None means no limit. A namespace without a row is private and has no limits.

    `strict`: pushes whose check `compat` fails are refused. `unregistered_bases`: pushes whose base is not registered
    are stored. `main_skips_failing`: `main` does not follow versions that fail a check when they are pushed.
    `rehearsal`, fixed when it is made: names of deleted adapters are free at once.
    """

    __tablename__ = "namespace"
    name: str = Field(primary_key=True)
    quota_bytes: int | None = Field(default=None, sa_type=BigInteger)
    quota_versions: int | None = None
    pushes_per_hour: int | None = None
    strict: bool = False
    unregistered_bases: bool = False
    main_skips_failing: bool = True
    rehearsal: bool = False


class TakenNameRow(SQLModel, table=True):
    """A reserved name, by its skeleton. With `ended_at` it is a tombstone: the name is never available again.

    `owner` is the namespace of an adapter's name; empty for the name of a namespace; `@ORG` for a name `ORG/NAME` that
    a base had.
    """

    __tablename__ = "taken_name"
    owner: str = Field(primary_key=True)
    skeleton: str = Field(primary_key=True)
    name: str
    ended_at: datetime | None = Field(default=None, sa_type=UtcTime)


class NamespaceUsageRow(SQLModel, table=True):
    """What the adapters of a namespace hold: versions whose files are there, and their bytes.

    Triggers write these rows, whatever writes versions. There are none of zeros. `shard`: the
    adapters' id modulo 8, so that few pushes wait for the same row.
    """

    __tablename__ = "namespace_usage"
    namespace: str = Field(primary_key=True)
    shard: int = Field(primary_key=True)
    size_bytes: int = Field(sa_type=BigInteger)
    versions: int


class BaseUsageRow(SQLModel, table=True):
    """How many adapters of a namespace have a version on a base that is not deleted. Triggers write these, too."""

    __tablename__ = "base_usage"
    base_id: int = Field(primary_key=True, sa_column_args=(ForeignKey("base.id", ondelete="CASCADE"),))
    namespace: str = Field(primary_key=True)
    shard: int = Field(primary_key=True)
    adapters: int
