"""The envelope of every response: problems, request ids, limits, statuses; and success only once stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from fastapi.dependencies.models import Dependant
from sqlalchemy import create_engine, event
from sqlmodel import Session

from registry import __version__
from registry.errors import CLASSES, Corrupt, Invalid, RegistryError, Unavailable
from registry.server import app
from registry.server.actors import TRUSTED
from registry.server.database import db, schema
from registry.server.database.engine import open_database
from registry.server.database.models import TokenRow
from registry.server.http import problems
from registry.server.http.request_body import BODY_LIMIT_BYTES
from registry.server.http.resolve_cache.middleware import STALE_LIMIT_SECONDS
from registry.server.settings import Settings
from tests.harness import URL, Harness, rows
from tests.raw_asgi import call


@pytest.fixture
def http(harness: Harness) -> httpx.Client:
    return httpx.Client(
        transport=harness.transport, base_url=f"{URL}/api/v1", headers={"Authorization": f"Bearer {harness.secret}"}
    )


def test_every_class_of_errors_has_a_status() -> None:
    assert set(problems.STATUS_OF_CLASS) == {*CLASSES, RegistryError}
    codes = {code for cls in CLASSES for code in cls.CODES}
    assert set(problems.STATUS_OF_CODE) <= codes


def test_a_problem_has_all_its_parts_and_the_responses_request_id(http: httpx.Client) -> None:
    response = http.get("/adapters/acme/nothing")
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (404, 404, "ADAPTER_UNKNOWN")
    assert {"type", "title", "status", "code", "detail", "findings", "request_id"} <= problem.keys()
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_request_id_is_kept_when_it_is_well_formed(http: httpx.Client) -> None:
    assert http.get("/health", headers={"X-Amzn-Trace-Id": "trace-1234.ab"}).headers["x-request-id"] == "trace-1234.ab"
    assert http.get("/health", headers={"X-Request-Id": "trace-1234.ab"}).headers["x-request-id"] == "trace-1234.ab"
    for odd in ("short", "x" * 65, "with space 123", 'quote"12345'):
        assert http.get("/health", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd


def test_unknown_routes_and_methods_are_problems(http: httpx.Client) -> None:
    assert (http.get("/nothing").status_code, http.get("/nothing").json()["code"]) == (404, "ROUTE_UNKNOWN")
    assert (http.delete("/whoami").status_code, http.delete("/whoami").json()["code"]) == (405, "ROUTE_UNKNOWN")
    assert http.delete("/whoami").headers["allow"] == "GET"
    assert http.get(httpx.URL(URL + "/redoc")).status_code == 404


@pytest.mark.parametrize(
    ("body", "location"),
    [
        (b"{", "body"),
        (b"", "body"),
        (b"[1]", "body"),
        (b'"text"', "body"),
        (b'{"name": 1, "scopes": ["pull"]}', "body.name"),
        (b'{"name": "x", "scopes": "pull"}', "body.scopes"),
        (b'{"name": "x", "scopes": ["pull"], "more": 1}', "body.more"),
        (b'{"name": "x", "scopes": ["pull"], "expires_in_seconds": 1e400}', "body.expires_in_seconds"),
        (b'{"name": "\\ud800", "scopes": ["pull"]}', "body.name"),
        (b"\xff\xfe{}", "body"),
        (b"[" * 10_000, "body"),
    ],
)
def test_an_unreadable_body_gives_400_with_its_location(http: httpx.Client, body: bytes, location: str) -> None:
    response = http.post("/tokens", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    problem = response.json()
    assert problem["code"] == "REQUEST_INVALID"
    assert not problem["findings"] or problem["findings"][0]["location"].startswith(location)


@pytest.mark.parametrize("text", ["a\x00b", "\x00"])
def test_a_nul_in_a_text_is_never_a_server_error(http: httpx.Client, text: str) -> None:
    response = http.post("/tokens", json={"name": text, "scopes": ["pull"]})
    assert (response.status_code, response.json()["code"]) == (400, "REQUEST_INVALID")


@pytest.mark.parametrize(
    "path",
    [
        "/adapters/acme/a%00b",
        "/adapters?text=%00",
        "/bases/%00",
        "/jobs/%00",
        "/jobs?ref=a/b%00",
        "/resolve/acme/support/%00",
        "/resolve/acme/support/sha256:abc",
        "/resolve/acme/support/v3",
        "/resolve/..%2f..%2fetc/passwd/main",
        "/adapters/%2e%2e/x",
        "/adapters/Acme/x",
        "/adapters?cursor=%27",
        "/adapters?limit=1e9",
        "/adapters/acme/x/history?at=yesterday",
        "/jobs?cursor=" + "x" * 201,
        "/events?after=-1",
        "/events?after=99999999999999999999",
    ],
)
def test_odd_paths_and_queries_are_rejected_with_a_reason(http: httpx.Client, path: str) -> None:
    response = http.get(path)
    assert response.status_code in (400, 404, 422), (response.status_code, response.text)
    assert response.json()["detail"]


def test_a_body_over_its_limit_is_refused_before_it_is_read(http: httpx.Client) -> None:
    sent: list[int] = []

    def endless() -> Any:
        for i in range(1000):
            sent.append(i)
            yield b" " * 65536

    response = http.post("/tokens", content=endless())
    assert (response.status_code, response.json()["code"]) == (413, "SIZE_INVALID")
    assert str(BODY_LIMIT_BYTES) in response.json()["detail"]
    assert len(sent) < 1000
    declared = http.post("/tokens", content=b" " * (BODY_LIMIT_BYTES + 1))
    assert declared.status_code == 413


def dependencies_of(dependant: Dependant) -> list[Any]:
    return [inner.call for inner in dependant.dependencies] + [
        call for inner in dependant.dependencies for call in dependencies_of(inner)
    ]


def test_a_commit_that_fails_is_never_reported_as_success(harness: Harness, http: httpx.Client) -> None:
    def broken(_session: Session) -> None:
        raise RuntimeError("the disk is full")

    event.listen(Session, "before_commit", broken)
    try:
        response = http.post("/tokens", json={"name": "x", "scopes": ["pull"]})
    finally:
        event.remove(Session, "before_commit", broken)
    assert (response.status_code, response.json()["code"]) == (500, "INTERNAL")
    assert "disk" not in response.text
    assert response.headers["x-request-id"] == response.json()["request_id"]
    with harness.session() as session:
        assert [row.name for row in rows(session, TokenRow)] == ["admin"]


def test_an_unreachable_database_gives_503_with_retry_after(harness: Harness, http: httpx.Client) -> None:
    http.get("/whoami")
    gone = open_database(Settings(database_url="postgresql://nobody@127.0.0.1:1/nothing"))
    harness.app.state.engine = gone
    try:
        response = http.get("/adapters")
        health = http.get("/health")
    finally:
        harness.app.state.engine = harness.engine
    assert (response.status_code, response.json()["code"]) == (503, "DATABASE_UNAVAILABLE")
    assert int(response.headers["retry-after"]) >= 1
    assert (health.status_code, health.json()["status"]) == (503, "unavailable")
    assert "database" in health.json()["reason"]


def test_a_full_disk_and_an_unreachable_database_give_different_errors() -> None:
    with create_engine("sqlite://").connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 2")
        connection.exec_driver_sql("CREATE TABLE t (v)")
        with pytest.raises(Unavailable, match="no space left on its disk"), db.translate_errors():
            connection.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")


def test_a_damaged_database_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"not a database" * 1000)
    damaged = open_database(Settings(database_url=f"sqlite:///{tmp_path}/registry.db"))
    with pytest.raises(Corrupt, match="the database is damaged: file is not a database"):
        schema.revision_of(damaged)


@pytest.mark.parametrize("database_kind", ["postgres"])
def test_a_read_only_database_is_reported_and_its_connections_are_dropped(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = harness.engine.url.set(drivername="postgresql")

    def only_reads(value: str) -> None:
        options = "-c default_transaction_read_only=off"
        with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True, options=options) as connection:
            connection.execute(f'ALTER DATABASE "{url.database}" SET default_transaction_read_only = {value}')

    only_reads("on")
    harness.engine.dispose()  # as a failover ends connections
    with monkeypatch.context() as patch, pytest.raises(Unavailable, match="the database is read-only"):
        patch.setattr(harness.admin.connection, "repeats", False)  # it would ask for a minute
        harness.add_base()
    only_reads("off")
    harness.add_base()  # though the connections that were kept still only read


def test_an_invalid_second_copy_stops_the_start(harness: Harness) -> None:
    with pytest.raises(Invalid, match="REGISTRY_SECOND_COPY: 'gs://copy' is neither"):
        app.create_app(Settings(second_copy="gs://copy"), engine=harness.engine, blobs=harness.blobs)


def test_health_queries_the_store_on_request(
    harness: Harness, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_key: str) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "bucket 'adapters' cannot serve head_object now: NoSuchBucket")

    monkeypatch.setattr(harness.blobs, "stat", away)
    monkeypatch.setattr(harness.admin.connection, "repeats", False)  # it would ask for a minute
    assert http.get("/health").status_code == 200
    response = http.get("/health", params={"store": "true"})
    assert (response.status_code, response.json()["status"]) == (503, "unavailable")
    harness.transport.settle()
    assert "registry_store_errors_total 1.0" in harness.app.state.requests.meter.text().decode()
    with pytest.raises(Unavailable, match="503: bucket 'adapters' cannot serve"):
        harness.admin.health(store=True)


def test_a_store_without_the_newest_version_is_reported(
    harness: Harness, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the bytes was removed, or the settings name another bucket."""
    harness.add_base()
    harness.push("acme/support")
    assert harness.admin.health(store=True).status == "ok"
    monkeypatch.setattr(harness.blobs, "stat", lambda _key: None)
    response = http.get("/health", params={"store": "true"})
    assert response.status_code == 503
    assert "the store lacks sha256:" in response.json()["reason"]


def test_health_describes_the_server_to_tokens_only(harness: Harness) -> None:
    health = harness.admin.health()
    assert (health.status, health.blobs, health.version) == ("ok", "memory", __version__)
    assert health.database == harness.engine.dialect.name
    assert health.schema_revision == schema.newest_revision()
    with httpx.Client(transport=harness.transport, base_url=URL) as outsider:
        shown = outsider.get("/api/v1/health").json()
        assert {name: value for name, value in shown.items() if value} == {"status": "ok"}
        assert outsider.get("/api/v1/health?store=true").status_code == 401
        wrong = outsider.get("/api/v1/health", headers={"Authorization": "Bearer lra_wrong"})
        assert wrong.status_code == 401


def test_a_server_stays_ready_while_it_can_respond_from_memory(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(path: str) -> tuple[int, str]:
        response = call(harness.app, "GET", path)
        return response.status, response.body.decode().strip()

    def away() -> None:
        raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached")

    assert (probe("/livez"), probe("/readyz")) == ((200, "ok"), (200, "ok"))
    monkeypatch.setattr(harness.app.state.freshness, "stamp", away)
    assert (probe("/livez"), probe("/readyz")) == ((200, "ok"), (200, "stale"))
    harness.app.state.database_reached_at -= STALE_LIMIT_SECONDS
    assert probe("/readyz") == (503, "the database cannot be reached")
    monkeypatch.undo()
    assert probe("/readyz") == (200, "ok")
    harness.app.state.audit_log.closing.set()
    assert (probe("/livez"), probe("/readyz")) == ((200, "ok"), (503, "stopping"))


def test_without_a_trusted_actor_every_request_needs_a_token(harness: Harness) -> None:
    assert httpx.Client(transport=harness.transport, base_url=URL).get("/api/v1/whoami").status_code == 401
    harness.app.state.trusted = TRUSTED
    assert httpx.Client(transport=harness.transport, base_url=URL).get("/api/v1/whoami").json()["actor"] == "owner"
    wrong = httpx.Client(transport=harness.transport, base_url=URL).get(
        "/api/v1/whoami", headers={"Authorization": "Bearer lra_wrong"}
    )
    assert wrong.status_code == 401, "a wrong token is not excused by trust"
