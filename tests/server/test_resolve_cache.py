"""The layer in front of the hot look-up: it says what the application would say, asks for less, outlives outages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
import pytest

from registry import names
from registry.names import AdapterName
from registry.server import app
from registry.server.access.tokens import revoke
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.promotion import deletion, withdraw
from tests.faults.servers import Server
from tests.harness import URL, Harness
from tests.httpx_transports import HttpxInProcess

NAME = "acme/support"
PATH = f"/api/v1/resolve/{NAME}"


def client(harness: Harness, secret: str = "", transport: httpx.BaseTransport | None = None) -> httpx.Client:
    authorization = {"Authorization": f"Bearer {secret or harness.secret}"}
    return httpx.Client(transport=transport or harness.transport, base_url=URL, headers=authorization)


@contextmanager
def replica(harness: Harness) -> Iterator[HttpxInProcess]:
    """Another server on the same data, which has served nothing yet."""
    other = HttpxInProcess(app.create_app(harness.settings, engine=harness.engine, blobs=harness.blobs))
    try:
        yield other
    finally:
        other.close()


def comparable(http: httpx.Client, selector: str) -> tuple[int, bytes, dict[str, str]]:
    """A response, without what is different each time."""
    response = http.get(f"{PATH}/{selector}")
    own = {"x-request-id", "audit-checkpoint"}
    body = b"" if response.status_code >= 400 else response.content
    return response.status_code, body, {k: v for k, v in sorted(response.headers.items()) if k not in own}


def test_after_every_change_a_cached_response_equals_an_uncached_one(harness: Harness) -> None:
    harness.add_base()
    reader_id, reader = harness.issue("pull", namespaces=["acme"])
    _, outsider = harness.issue("pull", namespaces=["other"])
    first = harness.push(NAME).version

    def withdraw() -> None:
        with harness.session(write=True) as session:
            revoke(session, TRUSTED, reader_id)

    changes: list[Callable[[], object]] = [
        lambda: harness.admin.promote(NAME, "canary", "1", generation=0),
        lambda: harness.validate(f"{NAME}@1"),
        lambda: harness.push(NAME),
        lambda: harness.admin.promote(NAME, "canary", "2", generation=1),
        lambda: harness.admin.rollback(NAME, "canary"),
        lambda: harness.admin.quarantine(f"{NAME}@1", "reported"),
        lambda: harness.admin.unquarantine(f"{NAME}@1", "looked at"),
        lambda: harness.admin.quarantine(f"{NAME}@1", "reported again"),
        lambda: harness.admin.yank(f"{NAME}@2", "bad data"),
        withdraw,
    ]
    for number, change in enumerate(changes):
        change()
        with replica(harness) as fresh:
            for secret in (harness.secret, reader, outsider):
                for selector in ("canary", "main", "1", "v2", first.digest, first.digest[:15], "nowhere"):
                    expected = comparable(client(harness, secret, fresh), selector)
                    for _ in range(2):
                        assert comparable(client(harness, secret), selector) == expected, (number, selector)


def test_an_unchanged_response_needs_no_statement(harness: Harness, database_kind: str) -> None:
    harness.add_base()
    harness.push(NAME)
    http = client(harness)
    first = http.get(f"{PATH}/main")
    with harness.statements() as sent:
        again = http.get(f"{PATH}/main", headers={"If-None-Match": first.headers["etag"]})
        whole = http.get(f"{PATH}/main")
    assert (again.status_code, again.content, whole.content) == (304, b"", first.content)
    # SQLite itself tells whether anything was committed; on PostgreSQL the pointer is asked for, by one statement.
    selects = [statement for statement in sent if "adapter.namespace" in statement]  # the rest is work after the push
    assert len(selects) == (0 if database_kind == "sqlite" else 2), sent


@pytest.mark.security
def test_a_secret_without_its_scheme_is_refused_by_the_cache_as_by_the_application(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    secret = harness.issue("pull")[1]
    assert client(harness, secret).get(f"{PATH}/main").status_code == 200
    for header in (secret, f"Basic {secret}", f"Token {secret}"):
        assert client(harness).get(f"{PATH}/main", headers={"Authorization": header}).status_code == 401, header


def test_a_cached_response_ends_with_its_token_to_the_second(harness: Harness) -> None:
    harness.add_base()
    harness.push(NAME)
    status = 0
    for seconds in (2, 10, 40):  # on a busy machine a token may end before its first use
        _, secret = harness.issue("pull", namespaces=["acme"], seconds=seconds)
        http = client(harness, secret)
        status = http.get(f"{PATH}/main").status_code
        if status == 200:
            break
    assert status == 200
    ask_until(lambda: http.get(f"{PATH}/main").status_code == 401)


def test_an_unreachable_database_gives_the_last_response_marked_as_stale(
    harness: Harness, database_kind: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_kind == "sqlite":
        pytest.skip("a SQLite file is never away")
    harness.add_base()
    harness.push(NAME)
    _, other = harness.issue("pull", namespaces=["acme"])
    _, short = harness.issue("pull", namespaces=["acme"], seconds=60)
    http = client(harness)
    before = http.get(f"{PATH}/main")
    assert client(harness, short).get(f"{PATH}/main").content == before.content
    with database_unavailable(database_url):
        stale = http.get(f"{PATH}/main")
        assert (stale.status_code, stale.content) == (200, before.content)
        assert stale.headers["warning"].startswith("110")
        assert int(stale.headers["x-registry-stale"]) >= 0
        assert http.get(f"{PATH}/main", headers={"If-None-Match": before.headers["etag"]}).status_code == 304
        # Nothing is told to whom it was not told before, and nothing that was not asked before.
        assert client(harness, other).get(f"{PATH}/main").status_code == 503
        assert http.get(f"{PATH}/1").status_code == 503
        harness.app.state.freshness._poll()  # as the server's follower does, which has found out then
        refused = client(harness, other).get(f"{PATH}/main")
        assert (refused.status_code, refused.json()["code"]) == (503, "DATABASE_UNAVAILABLE")
        assert (http.get(f"{PATH}/1").status_code, http.get(f"{PATH}/main").status_code) == (503, 200)
        later = datetime.now(UTC) + timedelta(seconds=120)
        monkeypatch.setattr(db, "_read_clock", lambda: later)
        assert client(harness, short).get(f"{PATH}/main").status_code == 503, (
            "an expired token is told nothing any more"
        )
        assert http.get(f"{PATH}/main").status_code == 200
    harness.app.state.freshness._poll()
    fresh = http.get(f"{PATH}/main")
    assert (fresh.status_code, "x-registry-stale" in fresh.headers) == (200, False)


@pytest.mark.parametrize("withheld", ["token", "quarantine", "deletion"])
def test_what_is_withheld_before_an_outage_stays_so_during_it(
    harness: Harness, database_kind: str, database_url: str, withheld: str
) -> None:
    """Another server changed it, and this one was not asked since."""
    if database_kind == "sqlite":
        pytest.skip("a SQLite file is never away")
    harness.add_base()
    harness.push(NAME)
    harness.push(NAME)  # the last version of an adapter is not deleted
    token, secret = harness.issue("pull", namespaces=["acme"])
    assert client(harness, secret).get(f"{PATH}/1").status_code == 200
    name, selector = AdapterName.parse(NAME), names.selector("1")
    with harness.session(write=True) as session:
        if withheld == "token":
            revoke(session, TRUSTED, token)
        elif withheld == "quarantine":
            withdraw.change_state(session, TRUSTED, name, selector, "quarantine", "leaked")
        else:
            deletion.delete_version(session, TRUSTED, name, selector, reason="leaked", force=True)
    harness.app.state.freshness._poll()  # as the server's follower does, ten times a second
    with database_unavailable(database_url):
        assert client(harness, secret).get(f"{PATH}/1").status_code == 503


@contextmanager
def database_unavailable(url: str) -> Iterator[None]:
    """PostgreSQL takes no connection to this database, and ends those that are."""
    server, _, name = url.replace("postgresql+psycopg://", "postgresql://", 1).rpartition("/")
    with psycopg.connect(f"{server}/postgres", autocommit=True) as other:
        other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            yield
        finally:
            other.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')


def test_a_promotion_is_seen_by_another_server_process(harness: Harness, database_url: str) -> None:
    harness.add_base()
    harness.push(NAME)
    harness.push(NAME)
    harness.admin.promote(NAME, "canary", "1", generation=0)
    server = Server({"REGISTRY_DATA": str(harness.settings.data), "REGISTRY_DATABASE_URL": database_url})
    with server.running():
        http = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {harness.secret}"})
        ask_until(lambda: http.get(f"{PATH}/canary").json()["number"] == 1)
        harness.admin.promote(NAME, "canary", "2", generation=1)
        ask_until(lambda: http.get(f"{PATH}/canary").json()["number"] == 2)


def ask_until(condition: Callable[[], bool]) -> None:
    """Ask as serving systems do, until it is so; a machine under load may be slow."""
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_hanging_database_counts_as_unreachable(
    harness: Harness, database_kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database_kind == "sqlite":
        pytest.skip("a SQLite file is never away")
    harness.add_base()
    harness.push(NAME)
    http, freshness = client(harness), harness.app.state.freshness
    http.get(f"{PATH}/main")
    requested, released = threading.Event(), threading.Event()

    def snapshot() -> tuple[None, int]:
        requested.set()
        released.wait(60)
        return None, 0

    monkeypatch.setattr(freshness, "_read_snapshot", snapshot)
    monkeypatch.setattr("registry.server.http.changes.freshness.SILENT_SECONDS", 0.0)
    follower = threading.Thread(target=freshness._poll)
    follower.start()
    requested.wait(60)
    stale = http.get(f"{PATH}/main")
    released.set()
    follower.join(60)
    assert (stale.status_code, "x-registry-stale" in stale.headers) == (200, True)
    assert "x-registry-stale" not in http.get(f"{PATH}/main").headers
