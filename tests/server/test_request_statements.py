"""How many statements common requests take, and when a pooled connection of PostgreSQL is asked whether it works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from registry.server.database import db, engine
from registry.server.database.models.namespaces import NamespaceRow
from registry.server.settings import Settings
from tests.harness import Harness


def test_showing_a_version_takes_four_statements(harness: Harness) -> None:
    """Who asks, the version, its verdicts, and everything else about it."""
    base = harness.add_base()
    harness.push("acme/support")
    with harness.statements() as sent:
        view = harness.admin.version("acme/support@1")
    assert (view.base, view.aliases, len(sent)) == (base.name, ["main"], 4)


def test_a_promotion_takes_twelve_statements(harness: Harness) -> None:
    """Who asks; the key; name, version, alias, gates and verdicts; lock, move, history and event; the response.

    A new alias takes three more: whether it existed before, and which aliases and gates have a name that it may be a
    misspelling of. On PostgreSQL another one locks the count of aliases.
    """
    harness.add_base()
    harness.push("acme/support")
    harness.push("acme/support")
    counts = []
    for generation in range(2):
        with harness.statements() as sent:
            harness.admin.promote("acme/support", "canary", str(generation + 1), generation=generation)
        counts.append(len(sent))
    assert counts == [15 if harness.engine.dialect.name == "sqlite" else 16, 12]


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_a_read_begins_no_transaction_on_postgresql(database_url: str, tmp_path: Path) -> None:
    """BEGIN and COMMIT are round trips of their own, which the driver's log of messages shows."""
    with Harness(database_url) as harness, (tmp_path / "messages").open("w+b") as messages:
        harness.add_base()
        harness.push("acme/support")
        harness.transport.settle()
        event.listen(harness.engine, "connect", lambda connection, _: connection.pgconn.trace(messages.fileno()))
        harness.engine.dispose()
        harness.admin.version("acme/support@1")
        read = (tmp_path / "messages").read_text()
        harness.admin.promote("acme/support", "canary", "1", generation=0)
        written = (tmp_path / "messages").read_text()[len(read) :]
    assert "FROM token" in read
    assert ("BEGIN" in read, "COMMIT" in read) == (False, False)
    assert ("BEGIN" in written, "COMMIT" in written) == (True, True)


LOCKING = [
    "SELECT 1 FROM adapter FOR UPDATE",
    "SELECT 1 FROM adapter FOR NO KEY UPDATE",
    "SELECT pg_advisory_xact_lock(1)",
]


@pytest.mark.parametrize("statement", ["UPDATE process_lock SET holder = ''", " DELETE FROM process_lock", *LOCKING])
def test_a_read_session_refuses_statements_that_need_a_transaction(migrated_postgres: str, statement: str) -> None:
    database = engine.open_database(Settings(database_url=migrated_postgres))
    with db.session(database, write=False) as session:
        with pytest.raises(RuntimeError, match="call begin_writing first"):
            session.connection().execute(text(statement))
        db.begin_writing(session)
        session.connection().execute(text(statement))
    database.dispose()


def test_a_row_cannot_be_added_in_a_read_session(migrated_postgres: str) -> None:
    database = engine.open_database(Settings(database_url=migrated_postgres))
    with pytest.raises(RuntimeError, match="call begin_writing first"), db.session(database, write=False) as session:
        session.add(NamespaceRow(name="acme", created_at=db.now(), created_by=""))
    database.dispose()


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_an_error_undoes_what_a_session_wrote_that_began_by_reading(database_url: str) -> None:
    database = engine.open_database(Settings(database_url=database_url))
    count = text("SELECT count(*) FROM namespace")
    with pytest.raises(ZeroDivisionError), db.session(database, write=False) as session:
        assert session.connection().execute(count).scalar_one() == 0
        db.begin_writing(session)
        row = NamespaceRow(name="acme", created_at=db.now(), created_by="")
        session.add(row)
        session.flush()
        db.begin_writing(session)  # has begun already, and commits nothing
        raise ZeroDivisionError
    with db.session(database, write=False) as session:
        assert session.connection().execute(count).scalar_one() == 0
    database.dispose()


def test_a_snapshot_is_a_transaction_that_sees_one_moment(migrated_postgres: str) -> None:
    database = engine.open_database(Settings(database_url=migrated_postgres))
    with db.snapshot(database) as session:
        isolation = session.connection().execute(text("SHOW transaction_isolation")).scalar_one()
        first, second = (session.connection().execute(text("SELECT now()")).scalar_one() for _ in range(2))
    database.dispose()
    assert (isolation, first) == ("repeatable read", second)


@pytest.fixture
def pinged(migrated_postgres: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, list[Any]]]:
    """A database engine with one connection that was used just now, and the connections that are pinged."""
    database = engine.open_database(Settings(database_url=migrated_postgres))
    connections: list[Any] = []
    ping = database.dialect.do_ping

    def recording(connection: Any) -> bool:
        connections.append(connection)
        return ping(connection)

    monkeypatch.setattr(database.dialect, "do_ping", recording)
    backend_of(database)
    yield database, connections
    database.dispose()


def backend_of(database: Engine) -> int:
    with db.session(database, write=False) as session:
        backend: int = session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
        return backend


def test_a_connection_that_the_database_closed_is_replaced(
    pinged: tuple[Engine, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PING_AFTER_SECONDS", float("inf"))
    database, connections = pinged
    backend = backend_of(database)
    outside = engine.open_database(Settings(database_url=database.url.render_as_string(hide_password=False)))
    with outside.connect() as connection:  # which waits until it has ended
        ended = connection.execute(text("SELECT pg_terminate_backend(:pid, 10000)"), {"pid": backend})
        assert ended.scalar_one()
    outside.dispose()
    assert backend_of(database) != backend
    assert len(connections) == 1
