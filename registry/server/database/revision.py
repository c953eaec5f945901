"""The schema's revision without Alembic, whose import would be a tenth of what an embedded command takes."""

from pathlib import Path

from sqlalchemy import Engine, inspect, text

from registry.server.database import db


def migrations_folder() -> Path:
    """The migrations of the installed package, or those of the checkout."""
    server = Path(__file__).parent.parent
    return next(f for f in (server / "migrations", server.parent.parent / "migrations") if (f / "env.py").is_file())


def is_newest(engine: Engine) -> bool:
    """Whether the database has the schema that this code needs, which the name of the last migration begins with."""
    newest = max(path.name for path in (migrations_folder() / "versions").glob("[0-9]*.py")).partition("_")[0]
    with db.translate_errors(), engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return False
        return connection.scalars(text("SELECT version_num FROM alembic_version")).all() == [newest]
