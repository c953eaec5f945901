"""Each revision of the schema, up and down, while clients of the first schema read; and concurrent migrations."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from sqlalchemy import Engine, text

from registry.errors import Unavailable
from registry.server.database import db, schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from tests.harness import Harness

READS = [
    "SELECT namespace, name, newest_number FROM adapter ORDER BY namespace, name",
    "SELECT v.number, v.digest, f.path, f.digest FROM version v JOIN version_file f ON f.version_id = v.id",
    "SELECT a.alias, a.generation, v.number FROM alias a JOIN version v ON v.id = a.version_id",
    "SELECT outcome, findings FROM verdict",
]
"""Queries of the first release. Every later schema must handle them."""


@pytest.fixture(params=["sqlite", "postgres"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    opened = open_database(Settings(database_url=database_url))
    yield opened
    schema.migrate(opened)
    opened.dispose()


def downgrade(engine: Engine, revision: str) -> None:
    with engine.execution_options(**{db.BEGIN: "IMMEDIATE"}).begin() as connection:
        command.downgrade(schema.alembic_config(connection), revision)


class Reader(threading.Thread):
    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self._stop_now = threading.Event()
        self.responses: list[set[str]] = [set() for _ in READS]
        self.failed: list[Exception] = []
        self.rounds = 0

    def run(self) -> None:
        while not self._stop_now.is_set():
            for location, statement in enumerate(READS):
                try:
                    with self._engine.connect() as connection:
                        if connection.dialect.name == "postgresql":  # a reader waits for one step, not for all
                            connection.execute(text("SET lock_timeout = '60s'"))
                        self.responses[location].add(str(sorted(map(str, connection.execute(text(statement)).all()))))
                except Exception as e:
                    self.failed.append(e)
            self.rounds += 1

    def stop(self) -> None:
        self._stop_now.set()
        self.join()


def test_each_revision_is_applied_and_reverted_while_clients_read(database_url: str, engine: Engine) -> None:
    with Harness(database_url) as harness:
        harness.add_base()
        for name in ("acme/one", "acme/two"):
            harness.push(name)
            harness.push(name)
    steps = schema.revisions()
    reader = Reader(engine)
    reader.start()
    try:
        for before, after in reversed(list(itertools.pairwise(steps))):
            downgrade(engine, before)
            schema.migrate(engine, after)
            downgrade(engine, before)
        for after in steps[1:]:
            schema.migrate(engine, after)
        rounds = reader.rounds
        while reader.rounds < rounds + 2 and reader.is_alive():  # it read after the last step, too
            time.sleep(0.005)
    finally:
        reader.stop()
    assert reader.failed == []
    assert [len(responses) for responses in reader.responses] == [1] * len(READS)
    assert schema.revision_of(engine) == steps[-1]


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_a_migration_gives_way_to_a_server_that_holds_a_table(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "LOCK_MS", 200)
    downgrade(engine, schema.revisions()[0])
    with engine.begin() as busy:
        busy.execute(text("LOCK TABLE version IN SHARE MODE"))
        with pytest.raises(Unavailable):
            schema.migrate(engine)
        assert schema.revision_of(engine) == schema.revisions()[0]
    assert schema.migrate(engine) == schema.revisions()[-1]


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_no_table_stays_locked_while_a_later_revision_waits(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "LOCK_MS", 200)
    downgrade(engine, "0009")
    with engine.begin() as busy:
        busy.execute(text("LOCK TABLE taken_name IN SHARE MODE"))  # what step 0013 changes
        with pytest.raises(Unavailable):
            schema.migrate(engine)
        assert schema.revision_of(engine) == "0012", "the steps before it are done, and hold no lock"
    assert schema.migrate(engine) == schema.revisions()[-1]


@pytest.mark.security
@pytest.mark.parametrize("database_kind", ["postgres"])
def test_no_step_waits_for_readers_while_writers_wait_for_it(engine: Engine) -> None:
    """A worker's result reads verdicts and then writes one: a step that had kept writers out and then waited for
    readers was waited for itself, and the database ended one of the two."""
    downgrade(engine, "0038")
    with engine.begin() as reader:
        verdicts = reader.execute(text("SELECT count(*) FROM verdict")).scalar()
        assert schema.migrate(engine, "0039") == "0039", "it does not wait for the reader"
        reader.execute(text("UPDATE verdict SET summary = summary"))
        assert reader.execute(text("SELECT count(*) FROM verdict")).scalar() == verdicts
    assert schema.migrate(engine) == schema.revisions()[-1]


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_a_migration_waits_for_another_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_ALEMBIC", contextlib.nullcontext())  # two processes have no lock in common
    downgrade(engine, schema.revisions()[0])
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as first:
            first.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": schema.MIGRATION_LOCK})
            second = pool.submit(schema.migrate, engine)
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(120) == schema.revisions()[-1]
