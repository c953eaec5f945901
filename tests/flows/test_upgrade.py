"""An upgrade: a registry that a server of schema 0014 filled is migrated, and everything in it still works.

tests/fixtures/schema_0014.tar.xz has its rows, its blobs and the key of its log, written by that server through its own
command: two versions of acme/support (tested, approved, promoted twice, rolled back), acme/old with a yanked and a
quarantined version, a gate, roles, tokens, a renamed and deleted adapter. Rows are loaded into either database.
"""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    LargeBinary,
    MetaData,
    Table,
    func,
    insert,
    select,
)

from registry.client.transfer.pull import pull
from registry.errors import RegistryError
from registry.names import Ref
from registry.server.database import schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from registry.server.storage.local import LocalBlobs
from tests import samples, services
from tests.audit import logs
from tests.base_specs import spec_of
from tests.harness import Harness
from tests.import_table import ROOT
from tests.maintenance import collect, findings

ARCHIVE = ROOT / "tests/fixtures/schema_0014.tar.xz"


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url_of_0014(database_kind: str, quick_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A database of schema 0014 with the rows; `quick_path` has the blobs and the key of the log."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(quick_path, filter="data")
    rows = json.loads((quick_path / "rows.json").read_text())
    if database_kind == "sqlite":
        url = f"sqlite:///{quick_path}/registry.db"
        _fill(url, rows)
        yield url
        return
    with services.fresh_database(request.getfixturevalue("postgres_server")) as url:
        _fill(url, rows)
        yield url


def _fill(url: str, rows: dict[str, list[dict[str, Any]]]) -> None:
    engine = open_database(Settings(database_url=url))
    schema.migrate(engine, "0014")
    tables = MetaData()
    tables.reflect(engine, only=lambda name, _: name != "alembic_version")
    with engine.begin() as connection:
        for table in tables.sorted_tables:
            connection.execute(table.delete())  # what the migrations insert
            for row in rows.get(table.name, []):
                connection.execute(insert(table).values(_typed(table, row)))
        if engine.dialect.name == "postgresql":
            for table in tables.sorted_tables:
                _set_sequence(connection, table)
    engine.dispose()


def _typed(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    return {name: _value(table.columns[name], value) for name, value in row.items()}


def _value(column: Column[Any], value: Any) -> Any:
    """A value of SQLite as this column takes it."""
    kind = column.type
    if value is None:
        return None
    if isinstance(kind, DateTime):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    if isinstance(kind, LargeBinary):
        return base64.b64decode(value["base64"])
    if isinstance(kind, JSON):
        return json.loads(value)
    return bool(value) if isinstance(kind, Boolean) else value


def _set_sequence(connection: Connection, table: Table) -> None:
    """The next number is after those of the rows, as it was on the server."""
    for column in table.primary_key.columns:
        name = connection.execute(func.pg_get_serial_sequence(table.name, column.name).select()).scalar()
        newest = connection.execute(select(func.max(column))).scalar() if name else None
        if newest:
            connection.execute(func.setval(name, newest).select())


def test_a_registry_of_an_older_schema_works_after_a_migration(
    url_of_0014: str, quick_path: Path, tmp_path: Path
) -> None:
    engine = open_database(Settings(database_url=url_of_0014))
    assert schema.migrate(engine) == schema.newest_revision()
    engine.dispose()
    key = {"data": str(quick_path), "audit_key": quick_path / "audit.key"}
    with Harness(url_of_0014, blobs=LocalBlobs(quick_path / "blobs"), **key) as harness:
        harness.admin = harness.actor("admin", "pull", "push", "promote")
        assert findings(harness) == []
        assert [item.name for item in harness.admin.adapters().items] == ["acme/old", "acme/support"]
        served = harness.admin.version("acme/support:prod")
        assert (served.number, served.message, served.annotations) == (1, "one", {"team": "nlp"})
        assert {v.check: v.outcome for v in served.verdicts} == {"compat": "pass", "weights": "pass", "smoke": "pass"}
        moves = harness.admin.history("acme/support", alias="prod").moves
        assert [(move.generation, move.number, move.reason) for move in moves] == [
            (3, 1, "worse"), (2, 2, "second"), (1, 1, "first"),
        ]  # fmt: skip
        resolved = pull(harness.admin, Ref.parse("acme/support:prod"), tmp_path / "pulled", cache=None)
        assert resolved.digest == served.digest
        with pytest.raises(RegistryError) as refused:
            harness.admin.resolve("acme/old@1")
        assert refused.value.code == "QUARANTINED"
        assert logs.replayed(harness).problems == []
        approvals = harness.admin.approvals("acme/support@2").items
        assert [(approval.identity, approval.counts) for approval in approvals] == [("bob@example.org", True)]
        pusher = harness.actor("promote", "pull", name="admin")
        assert not pusher.approve("acme/support@2", "prod").counts, "the token of this name has pushed it"

        harness.admin.promote("acme/support", "prod", "2", generation=3, reason="again")
        harness.bases["tiny-llama"] = spec_of(samples.llama())
        harness.push("acme/support")
        harness.push("acme/new")
        harness.validate("acme/new@1")
        harness.admin.unquarantine("acme/old@1", "looked at")
        assert harness.admin.resolve("acme/old").number == 1
        collect(harness)
        assert findings(harness) == []
        assert logs.replayed(harness).problems == []
