"""What tables share: the names of constraints, the type of times, and repeated columns.

The naming convention is set before the first table is defined, so that tables and migrations agree on the names.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, TypeDecorator
from sqlalchemy.engine import Dialect
from sqlmodel import Field, SQLModel

SQLModel.metadata.naming_convention = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
SQLModel.model_config["defer_build"] = True  # rows validate nothing, and validators take a tenth of the import


class UtcTime(TypeDecorator[datetime]):
    """An aware UTC time. A naive time raises `ValueError`; SQLite stores no zone, so it is added again on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """Convert a time on its way into the database."""
        if value is not None and value.tzinfo is None:
            raise ValueError("cannot store a naive time; use db.now()")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: Any, _dialect: Dialect) -> datetime | None:
        """Convert a time on its way out."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class CreatedColumns(SQLModel):
    """Who created a row, and when."""

    created_at: datetime = Field(sa_type=UtcTime)
    created_by: str


class SetColumns(SQLModel):
    """Who set a value last, and when."""

    set_at: datetime = Field(sa_type=UtcTime)
    set_by: str
