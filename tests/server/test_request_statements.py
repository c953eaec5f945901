"""How many statements common requests take, and when a pooled connection of PostgreSQL is asked whether it works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, text

from registry.server.database import db, engine
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
    """Who asks; the key; name, version, alias, gates and verdicts; lock, move, history and event; the response."""
    harness.add_base()
    harness.push("acme/support")
    with harness.statements() as sent:
        harness.admin.promote("acme/support", "canary", "1", generation=0)
    assert len(sent) == 12


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


@pytest.mark.parametrize(("after_seconds", "count"), [(float("inf"), 0), (0.0, 1)])
def test_only_an_idle_connection_is_pinged(
    pinged: tuple[Engine, list[Any]], monkeypatch: pytest.MonkeyPatch, after_seconds: float, count: int
) -> None:
    monkeypatch.setattr(engine, "PING_AFTER_SECONDS", after_seconds)
    database, connections = pinged
    backend_of(database)
    assert len(connections) == count


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
