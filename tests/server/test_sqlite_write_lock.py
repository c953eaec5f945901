"""The write lock of SQLite: threads take it one after the other, and it is released however a transaction ends."""

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

THREADS, WRITES = 8, 20


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(
        Settings(database_url=f"sqlite:///{tmp_path}/registry.db", data=str(tmp_path)).with_defaults()
    )
    with db.session(engine) as session:
        session.connection().execute(text("CREATE TABLE counter (n INTEGER)"))
        session.connection().execute(text("INSERT INTO counter VALUES (0)"))
    return engine


def count(engine: Engine) -> int:
    with db.session(engine, write=False) as session:
        return int(session.connection().execute(text("SELECT n FROM counter")).scalar_one())


def add(engine: Engine) -> None:
    with db.session(engine) as session:
        number = session.connection().execute(text("SELECT n FROM counter")).scalar_one()
        session.connection().execute(text("UPDATE counter SET n = :n"), {"n": number + 1})


def test_no_write_is_lost_and_no_thread_polls_sqlite(engine: Engine) -> None:
    def write(_: int) -> None:
        for _ in range(WRITES):
            add(engine)

    with ThreadPoolExecutor(THREADS) as pool:
        barrier = threading.Barrier(THREADS)

        def connect(_: int) -> None:
            with engine.connect() as connection:
                barrier.wait(60)
                connection.exec_driver_sql("PRAGMA busy_timeout=0")  # a thread that finds the database locked fails

        list(pool.map(connect, range(THREADS)))
        list(pool.map(write, range(THREADS)))
    assert count(engine) == THREADS * WRITES


def test_a_failed_transaction_releases_the_lock(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), db.session(engine) as session:
        session.connection().execute(text("UPDATE counter SET n = 7"))
        raise ZeroDivisionError
    with pytest.raises(OperationalError), engine.execution_options(sqlite_begin="IMMEDIATE").begin() as connection:
        connection.execute(text("UPDATE nothing SET n = 7"))
    connection = engine.execution_options(sqlite_begin="IMMEDIATE").connect()
    connection.execute(text("UPDATE counter SET n = 7"))
    connection.invalidate()
    connection.close()
    add(engine)
    assert count(engine) == 1


def test_sqlite_waits_for_the_lock_of_another_process(engine: Engine, tmp_path: Path) -> None:
    other = open_database(
        Settings(database_url=f"sqlite:///{tmp_path}/registry.db", data=str(tmp_path)).with_defaults()
    )
    with db.session(other) as session, ThreadPoolExecutor(1) as pool:
        session.connection().execute(text("UPDATE counter SET n = 5"))
        adding = pool.submit(add, engine)
        session.commit()
        adding.result(60)
    assert count(engine) == 6
