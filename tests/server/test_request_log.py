"""One log line for each request: who, what, how long, how many bytes, and nothing that is secret."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlmodel import Session

from cli.console import logs
from registry.errors import Invalid, Unavailable
from tests.access.tenants import send
from tests.harness import URL, Harness

REQUESTS = "registry.server.requests"


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def clean_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("registry")
    before = root.handlers[:], root.level, ours.level
    flags = {name: getattr(logging, name) for name in ("logThreads", "logProcesses", "logMultiprocessing", "_srcfile")}
    yield
    for name, value in flags.items():
        setattr(logging, name, value)
    root.handlers[:], root.level = before[0], before[1]
    ours.setLevel(before[2])


def counted(harness: Harness) -> str:
    """The metrics of requests."""
    text: bytes = harness.app.state.requests.meter.text()
    return text.decode()


def fields_of(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [record.fields for record in caplog.records if record.name == REQUESTS]  # type: ignore[attr-defined]


def test_each_request_has_one_line_with_its_route_and_actor(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    harness.add_base()
    harness.push("acme/support")
    harness.transport.settle()
    caplog.set_level(logging.INFO, REQUESTS)
    caplog.clear()
    for _ in range(2):  # the second response may come from the cache
        harness.admin.resolve("acme/support")
    send(harness, "GET", "/api/v1/adapters/acme/none", harness.secret)
    send(harness, "POST", "/api/v1/pulls", harness.secret, json={"refs": ["acme/support"]})
    send(harness, "GET", "/nothing/of/this", harness.secret)
    harness.transport.settle()
    lines = fields_of(caplog)
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("GET", "/api/v1/resolve/{namespace}/{name}/{selector}", 200),
        ("GET", "/api/v1/resolve/{namespace}/{name}/{selector}", 200),
        ("GET", "/api/v1/adapters/{namespace}/{name}", 404),
        ("POST", "/api/v1/pulls", 200),
        ("GET", "none", 404),
    ]
    assert {line["actor"] for line in lines[2:4]} == {"token:admin"}
    assert lines[2]["problem"] == "ADAPTER_UNKNOWN"
    assert lines[3]["in"] == len(b'{"refs":["acme/support"]}')
    assert all(line["out"] > 0 and line["ms"] >= 0 and line["id"] for line in lines)


def test_a_bug_of_the_server_is_counted_and_has_a_warning(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_session: Session) -> None:
        raise RuntimeError("the disk is full")

    event.listen(Session, "before_commit", broken)
    try:
        body = {"name": "x", "scopes": ["pull"]}
        response = send(harness, "POST", "/api/v1/tokens", harness.secret, json=body)
    finally:
        event.remove(Session, "before_commit", broken)
    assert response.status_code == 500
    harness.transport.settle()  # the line follows the response
    (line,) = fields_of(caplog)
    assert (line["status"], line["problem"], line["id"]) == (500, "INTERNAL", response.headers["x-request-id"])
    assert line["route"] == "/api/v1/tokens"
    assert 'registry_requests_total{method="POST",status="500"} 1.0' in counted(harness)


def test_a_fault_of_the_store_has_one_line_that_says_what_failed(
    harness: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise Unavailable("STORE_UNAVAILABLE", "the bucket does not respond")

    harness.add_base()
    harness.push("acme/support")
    harness.transport.settle()
    monkeypatch.setattr(harness.blobs, "stat", away)
    caplog.clear()
    response = send(
        harness, "GET", "/api/v1/adapters/acme/support/versions/1/files/adapter_config.json", harness.secret
    )
    assert response.status_code == 503
    harness.transport.settle()  # the line follows the response
    lines = [record for record in caplog.records if record.name == REQUESTS]  # background threads read the store, too
    [record] = [record for record in lines if record.levelno >= logging.WARNING]
    fields = record.fields  # type: ignore[attr-defined]
    assert (record.levelname, fields["problem"]) == ("ERROR", "STORE_UNAVAILABLE")
    assert (fields["detail"], fields["id"]) == ("the bucket does not respond", response.headers["x-request-id"])
    assert "registry_store_errors_total 1.0" in counted(harness)


def test_what_is_meant_to_be_refused_is_no_fault(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "registry")
    body = {"name": "support", "organization": "acme", "type": "dataset"}
    assert send(harness, "POST", "/api/repos/create", harness.secret, json=body).status_code == 501
    harness.transport.settle()  # the line follows the response
    [record] = [record for record in caplog.records if record.name == REQUESTS]
    assert (record.levelname, record.fields["problem"]) == ("INFO", "HUB_UNSUPPORTED")  # type: ignore[attr-defined]


@pytest.mark.security
@pytest.mark.usefixtures("clean_logging")
def test_no_line_holds_a_secret_a_name_or_a_control_character(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registry")
    forged = "x\r\n2026-01-01T00:00:00Z INFO request status=200 \x1b[2J‮"
    client = httpx.Client(transport=harness.transport, base_url=URL)
    for path in (f"/api/v1/adapters/acme/{'%0d%0a'}evil%1b", "/api/v1/whoami?token=hidden"):
        client.get(path, headers={"Authorization": "Bearer " + harness.secret, "X-Request-Id": "a b"})
    client.get("/api/v1/whoami", headers={"Authorization": "Bearer reg_guessed"})
    harness.transport.settle()  # a line follows its response
    logging.getLogger("registry.server").error("failed: %s", forged)
    for as_json in (False, True):
        lines = [logs.LineFormatter(as_json=as_json).format(record) for record in caplog.records]
        assert len(lines) >= 4
        for text in lines:
            assert text.isprintable(), text
            assert not any(word in text for word in (harness.secret, "hidden", "reg_guessed", "evil"))


@pytest.mark.usefixtures("clean_logging")
def test_lines_are_text_or_json_at_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logs.configure("json", "info", variables=("REGISTRY_LOG", "REGISTRY_LOG_LEVEL"))
    log = logging.getLogger("registry.server")
    log.info("started", extra={"fields": {"version": "1", "folder": 'a "b"'}})
    log.debug("left out")
    record = log.makeRecord("registry.server", logging.INFO, "", 0, "", (), None)
    assert (record.thread, record.process) == (None, None), "no line shows them"
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    started, failed = map(json.loads, stream.getvalue().splitlines())
    assert (started["level"], started["message"], started["folder"]) == ("INFO", "started", 'a "b"')
    assert "ValueError: first\nsecond" in failed["error"]
    logs.configure("text", "warning", variables=("REGISTRY_LOG", "REGISTRY_LOG_LEVEL"))
    log.info("left out")
    log.warning("late", extra={"fields": {"who": "a b", "n": 3}})
    assert stream.getvalue().splitlines()[-1].endswith('Z WARNING late who="a b" n=3')
    for how in (("yaml", "info"), ("text", "loud")):
        with pytest.raises(Invalid, match="is not one of"):
            logs.configure(*how, variables=("REGISTRY_LOG", "REGISTRY_LOG_LEVEL"))


@pytest.mark.usefixtures("clean_logging")
def test_a_worker_and_an_agent_log_as_lines_unless_they_run_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.reporters("agent", once=True)[0]("ready")
    assert capsys.readouterr().out == "ready\n"
    say, warn = logs.reporters("agent", once=False)
    say("loaded acme/support@3")
    assert re.fullmatch(r"\S+Z INFO loaded acme/support@3\n", capsys.readouterr().err)
    warn("the registry is away")
    assert re.fullmatch(r"\S+Z WARNING the registry is away\n", capsys.readouterr().err)
    monkeypatch.setenv(logs.FORMAT_VARIABLE, "json")
    logs.reporters("worker", once=True)[0]("1 job done")
    assert json.loads(capsys.readouterr().err)["message"] == "1 job done"
