"""SQLite's writers: turns are taken one after the other and given back however a transaction ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from registry.server.database import db
from registry.server.database.engine import open_database
from registry.server.settings import Settings

THREADS, EACH = 8, 20


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    made = open_database(Settings(database_url=f"sqlite:///{tmp_path}/writers.db", data=str(tmp_path)).filled())
    with db.session(made) as session:
        session.connection().execute(text("CREATE TABLE counter (n INTEGER)"))
        session.connection().execute(text("INSERT INTO counter VALUES (0)"))
    return made


def count(engine: Engine) -> int:
    with db.session(engine, write=False) as session:
        return int(session.connection().execute(text("SELECT n FROM counter")).scalar_one())


def add(engine: Engine) -> None:
    with db.session(engine) as session:
        found = session.connection().execute(text("SELECT n FROM counter")).scalar_one()
        session.connection().execute(text("UPDATE counter SET n = :n"), {"n": found + 1})


def test_no_write_is_lost_and_sqlite_makes_nobody_wait(engine: Engine) -> None:
    def many(_: int) -> None:
        for _ in range(EACH):
            add(engine)

    with ThreadPoolExecutor(THREADS) as pool:
        barrier = threading.Barrier(THREADS)

        def open_one(_: int) -> None:
            with engine.connect() as connection:
                barrier.wait(60)
                connection.exec_driver_sql("PRAGMA busy_timeout=0")  # whoever finds the database taken fails at once

        list(pool.map(open_one, range(THREADS)))
        list(pool.map(many, range(THREADS)))
    assert count(engine) == THREADS * EACH


def test_a_transaction_that_fails_gives_its_turn_back(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), db.session(engine) as session:
        session.connection().execute(text("UPDATE counter SET n = 7"))
        raise ZeroDivisionError
    with pytest.raises(OperationalError), engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        connection.execute(text("UPDATE nothing SET n = 7"))
    opened = engine.execution_options(sqlite_begin="IMMEDIATE").connect()
    opened.execute(text("UPDATE counter SET n = 7"))
    opened.invalidate()
    opened.close()
    add(engine)
    assert count(engine) == 1


def test_another_process_with_the_lock_is_waited_for_by_sqlite(engine: Engine, tmp_path: Path) -> None:
    other = open_database(Settings(database_url=f"sqlite:///{tmp_path}/writers.db", data=str(tmp_path)).filled())
    with db.session(other) as session, ThreadPoolExecutor(1) as pool:
        session.connection().execute(text("UPDATE counter SET n = 5"))
        adding = pool.submit(add, engine)
        session.commit()
        adding.result(60)
    assert count(engine) == 6
