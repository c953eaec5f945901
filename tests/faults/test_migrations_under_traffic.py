"""Migrations while servers work, and two at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from registry.errors import Unavailable
from registry.server.database import dialects, schema
from registry.server.database.engine import open_database
from registry.server.settings import Settings
from tests import services
from tests.later_steps import later_steps

ADD_TO_JOB = "ALTER TABLE job ADD COLUMN later INTEGER"
ADD_TO_VERSION = "ALTER TABLE version ADD COLUMN later INTEGER"


@pytest.fixture
def engine(postgres_server: str) -> Iterator[Engine]:
    with services.fresh_database(postgres_server) as url:
        opened = open_database(Settings(database_url=url))
        schema.migrate(opened)
        yield opened
        opened.dispose()


def test_a_migration_gives_way_to_a_server_that_holds_a_table(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_MS", 200)
    with later_steps(tmp_path, ADD_TO_VERSION) as (before, after):
        with engine.begin() as busy:
            busy.execute(text("LOCK TABLE version IN SHARE MODE"))
            with pytest.raises(Unavailable):
                schema.migrate(engine)
            assert schema.revision_of(engine) == before
        assert schema.migrate(engine) == after


def test_no_table_stays_locked_while_a_later_revision_waits(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LOCK_MS", 200)
    with later_steps(tmp_path, ADD_TO_JOB, ADD_TO_VERSION) as (_, second, third):
        with engine.begin() as busy:
            busy.execute(text("LOCK TABLE version IN SHARE MODE"))
            with pytest.raises(Unavailable):
                schema.migrate(engine)
            assert schema.revision_of(engine) == second, "the step before it is done"
            with engine.begin() as other:
                other.execute(text("LOCK TABLE job IN ACCESS EXCLUSIVE MODE NOWAIT"))
        assert schema.migrate(engine) == third


def test_a_migration_waits_for_another_one(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "_ALEMBIC", contextlib.nullcontext())  # two processes have no lock in common
    with later_steps(tmp_path, ADD_TO_VERSION) as (_, after), ThreadPoolExecutor(1) as pool:
        with engine.begin() as first:
            dialects.POSTGRESQL.lock_names(first, ["migrations"])
            second = pool.submit(schema.migrate, engine)
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(120) == after
