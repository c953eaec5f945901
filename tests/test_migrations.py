"""Migrations: from empty to the tables and back, one head, and no server on a schema that is not its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, inspect, text

from registry.errors import Conflict, Invalid, Unavailable
from registry.server.database import db, models, schema, tables
from registry.server.database import engine as engines
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from tests import services
from tests.later_steps import later_steps

EXPRESSION_INDEXES = {"ix_adapter_text_words", "ix_adapter_path"}
ROOT = Path(__file__).resolve().parent.parent
VERSIONS = sorted((ROOT / "migrations/versions").glob("*.py"))
START = """
import sys
from registry.server.database import db, schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
print(schema.prepare(open_database(Settings(database_url=sys.argv[1]))))
"""


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "sqlite":
        engine = open_database(Settings(database_url=f"sqlite:///{tmp_path}/empty.db"))
        yield engine
        engine.dispose()
        return
    with services.fresh_database(request.getfixturevalue("postgres_server")) as url:
        engine = open_database(Settings(database_url=url))
        yield engine
        engine.dispose()


def differences(engine: Engine) -> list[object]:
    with engine.connect() as connection:
        options = {"compare_type": True, "include_object": is_described}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata))


def is_described(_object: object, name: str | None, *_: object) -> bool:
    """Whether models describe it: not indexes of expressions, nor the text index, for which FTS5 has its own tables."""
    return name not in EXPRESSION_INDEXES and not (name or "").startswith(models.TEXT_INDEX)


def test_the_migrations_create_the_tables_of_the_models(empty: Engine) -> None:
    assert schema.migrate(empty) == schema.newest_revision()
    assert differences(empty) == []
    text_index = {index["name"] for index in inspect(empty).get_indexes("adapter_text")} | set(
        inspect(empty).get_table_names()
    )
    assert text_index & {"ix_adapter_text_words", models.TEXT_INDEX}


def test_a_downgrade_leaves_nothing_and_an_upgrade_works_again(empty: Engine) -> None:
    schema.migrate(empty)
    schema.migrate(empty, "base")
    assert set(inspect(empty).get_table_names()) <= {"alembic_version"}
    assert schema.migrate(empty) == schema.newest_revision()
    assert differences(empty) == []


def test_a_statement_of_a_migration_may_take_longer_than_one_of_a_request(
    empty: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty.dialect.name == "sqlite":
        pytest.skip("SQLite statements have no limits")

    def build_large_index(config: Config, _revision: str) -> None:
        config.attributes["connection"].execute(text("SELECT pg_sleep(0.5)"))

    monkeypatch.setattr(engines, "HANG_SECONDS", 0.2)
    monkeypatch.setattr(command, "upgrade", build_large_index)
    assert schema.migrate(empty) == ""
    with pytest.raises(Unavailable), db.session(empty) as session:
        session.connection().execute(text("SELECT pg_sleep(0.5)"))


def test_two_servers_that_start_at_once_initialize_one_schema(empty: Engine) -> None:
    url = empty.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", START, url]
    servers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [server.communicate(timeout=120)[0].strip() for server in servers]
    assert printed == [schema.newest_revision()] * 2
    assert differences(empty) == []


def test_a_server_that_starts_during_the_initialization_serves_the_same_schema(empty: Engine) -> None:
    """Whatever it asked first: the other one is done before it asks the rest."""
    schema.revision_of(empty)
    other = open_database(Settings(database_url=empty.url.render_as_string(hide_password=False)))
    begun: list[str] = []

    @event.listens_for(empty, "after_cursor_execute")
    def _(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if "alembic_version" not in statement and "pg_class" not in statement and "sqlite_master" not in statement:
            return
        if not begun:
            begun.append(statement)
            schema.migrate(other)

    assert schema.prepare(empty) == schema.newest_revision()
    assert begun
    assert differences(empty) == []
    other.dispose()


def test_an_old_or_newer_schema_is_rejected_and_unchanged(empty: Engine, tmp_path: Path) -> None:
    old = schema.prepare(empty)
    with later_steps(tmp_path, "ALTER TABLE job ADD COLUMN later INTEGER") as (_, new):
        with pytest.raises(Conflict) as rejected:
            schema.prepare(empty)
        assert (rejected.value.code, rejected.value.next_step) == ("SCHEMA_OLD", "run `adapter migrate`")
        assert schema.revision_of(empty) == old
        assert schema.migrate(empty) == schema.prepare(empty) == new
    with pytest.raises(Conflict) as rejected:
        schema.prepare(empty)
    assert (rejected.value.code, rejected.value.next_step[:21]) == ("SCHEMA_OLD", "use the newer program")
    with pytest.raises(Conflict, match=new):
        schema.migrate(empty)
    assert schema.revision_of(empty) == new


def test_a_database_of_another_program_is_rejected(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE somebody_elses (id INTEGER)"))
    with pytest.raises(Conflict):
        schema.prepare(empty)
    assert inspect(empty).get_table_names() == ["somebody_elses"]


def test_a_database_that_stores_no_utf8_is_rejected_with_its_encoding(postgres_server: str) -> None:
    with services.fresh_database(postgres_server, options="ENCODING 'SQL_ASCII'") as url:
        engine = open_database(Settings(database_url=url))
        with pytest.raises(Invalid) as rejected:
            schema.prepare(engine)
        engine.dispose()
    assert str(rejected.value) == "REGISTRY_DATABASE_URL: the encoding of the database is SQL_ASCII, not UTF8"
    assert "ENCODING 'UTF8'" in rejected.value.next_step


def test_a_migration_imports_nothing_of_ours() -> None:
    for path in VERSIONS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in ("__future__", "alembic", "sqlalchemy", "typing"), path
            elif isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= {"sqlalchemy"}, path
