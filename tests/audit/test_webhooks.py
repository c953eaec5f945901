"""Webhooks: which events are sent, signatures, retries, and addresses that must not be called."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from registry.api.aliases import WithdrawRequest
from registry.api.audit.webhooks import WebhookCreate
from registry.client.audit import Audit
from registry.errors import Denied, Invalid, NotFound
from registry.events import EventType
from registry.server import audit
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.database.locks import ProcessLock
from registry.server.database.models.owner_rules import DeliveryRow, WebhookRow
from registry.server.webhooks import dispatch, target
from tests.harness import Harness, rows

LOOPBACK = "127.0.0.1/32"


class Receiver:
    """A server on loopback that records requests and gives a fixed response."""

    def __init__(self) -> None:
        self.received: list[tuple[str, dict[str, str], bytes]] = []
        self._arrived = threading.Condition()
        self.response = 200
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                with outer._arrived:
                    outer.received.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                    outer._arrived.notify_all()
                self.send_response(outer.response)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/in?token=hidden"

    def wait_for(self, count: int) -> None:
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.received) >= count, timeout=60), len(self.received)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, webhook_private=LOOPBACK) as harness:
        harness.add_base()
        yield harness


def step(harness: Harness) -> int:
    harness.app.state.audit_log.step()
    return dispatch.send_due(harness.engine, harness.settings, lambda: harness.app.state.audit_log.keys)


def end_pauses(harness: Harness) -> None:
    """Make all deliveries due."""
    with harness.session(write=True) as session:
        for row in rows(session, DeliveryRow):
            row.next_at = db.now() - timedelta(seconds=1)
            session.add(row)


def test_events_are_sent_signed_and_once(harness: Harness, receiver: Receiver) -> None:
    harness.admin.create_namespace("acme")
    created = Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, namespace="acme"))
    harness.push("acme/support")
    harness.push("globex/support")
    harness.admin.yank("acme/support@1", WithdrawRequest(reason="wrong data").reason)
    assert step(harness) == 3
    assert step(harness) == 0
    events = [json.loads(body) for _, _, body in receiver.received]
    types = {(event["type"], event["data"]["object"]) for event in events}
    assert types == {
        ("version.push", "acme/support@1"), ("alias.move", "acme/support:main"), ("version.yank", "acme/support@1"),
    }  # fmt: skip
    secret = base64.b64decode(created.secret.removeprefix("whsec_"))
    for path, headers, body in receiver.received:
        assert path == "/in?token=hidden"
        message = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(secret, message, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
    ids = {headers["webhook-id"] for _, headers, _ in receiver.received}
    assert len(ids) == 3
    states = {
        (item.state, item.attempt, item.status) for item in Audit(harness.admin).deliveries(created.webhook.id).items
    }
    assert states == {("delivered", 1, 200)}


def test_a_failed_delivery_is_retried_then_dead_and_can_be_retried_on_request(
    harness: Harness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "RETRY_SECONDS", (3600,) * len(dispatch.RETRY_SECONDS))
    created = Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, actions=["version.push"]))
    harness.push("acme/support")
    receiver.response = 500
    for _ in range(len(dispatch.RETRY_SECONDS) + 1):
        assert step(harness) == 1
        assert step(harness) == 0, "not before its pause is over"
        end_pauses(harness)
    dead = Audit(harness.admin).deliveries(created.webhook.id, state="dead").items
    assert [(item.attempt, item.status, item.error) for item in dead] == [(8, 500, "it responded with 500")]
    assert len({headers["webhook-id"] for _, headers, _ in receiver.received}) == 1
    assert step(harness) == 0
    receiver.response = 204
    Audit(harness.admin).retry_delivery(created.webhook.id, dead[0].id)
    assert step(harness) == 1
    assert [item.state for item in Audit(harness.admin).deliveries(created.webhook.id).items] == ["delivered"]


def test_a_redirect_is_not_followed_and_a_dead_receiver_is_a_failure(harness: Harness, receiver: Receiver) -> None:
    created = Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, actions=["version.push"]))
    receiver.response, receiver.headers = 307, {"Location": receiver.url.replace("/in", "/elsewhere")}
    harness.push("acme/support")
    step(harness)
    assert len(receiver.received) == 1
    assert "redirects" in Audit(harness.admin).deliveries(created.webhook.id).items[0].error
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        gone = Audit(harness.admin).create_webhook(
            WebhookCreate(url=f"http://127.0.0.1:{unused.getsockname()[1]}/secret-path", actions=["version.push"])
        )
        harness.push("acme/support")
        step(harness)
        error = Audit(harness.admin).deliveries(gone.webhook.id).items[0].error
    assert "ConnectionRefused" in error
    assert "secret-path" not in error


def test_an_event_becomes_one_delivery_despite_interruptions(harness: Harness, receiver: Receiver) -> None:
    Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, actions=["version.push"]))
    for _ in range(3):
        harness.push("acme/support")
    harness.app.state.audit_log.step()
    with harness.session() as session:
        hook = rows(session, WebhookRow)[0]
    dispatch._enqueue_deliveries(harness.engine, hook.id, ProcessLock())
    with harness.session(write=True) as session:
        row = session.get_one(WebhookRow, hook.id)
        row.after = hook.after
        session.add(row)
    dispatch._enqueue_deliveries(harness.engine, hook.id, ProcessLock())
    assert step(harness) == 3
    assert len(receiver.received) == 3


def test_a_webhook_is_visible_only_to_administrators_of_its_namespace(harness: Harness, receiver: Receiver) -> None:
    harness.push("acme/support")
    harness.push("globex/support")
    acme = Audit(harness.actor("admin", namespaces=["acme"], name="acme-admin"))
    globex = Audit(harness.actor("admin", namespaces=["globex"], name="globex-admin"))
    created = acme.create_webhook(WebhookCreate(url=receiver.url, namespace="acme"))
    assert [item.id for item in acme.webhooks().items] == [created.webhook.id]
    assert globex.webhooks().items == []
    for ask in (globex.delete_webhook, globex.deliveries, lambda hook: globex.retry_delivery(hook, 1)):
        with pytest.raises(NotFound) as caught:
            ask(created.webhook.id)
        assert caught.value.code == "WEBHOOK_UNKNOWN"
    for namespace in ("*", "globex"):
        with pytest.raises((Denied, NotFound)):
            acme.create_webhook(WebhookCreate(url=receiver.url, namespace=namespace))
    acme.delete_webhook(created.webhook.id)
    harness.push("acme/support")
    assert step(harness) == 0
    assert acme.webhooks().items == []


def test_a_secret_is_not_stored_and_events_do_not_show_the_path(harness: Harness, receiver: Receiver) -> None:
    created = Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url))
    with harness.session() as session:
        assert created.secret not in str([row.model_dump() for row in rows(session, WebhookRow)])
    events = [event for event in Audit(harness.admin).events() if event.action == "webhook.create"]
    assert events[0].detail["to"] == receiver.url.partition("/in")[0]


def no_such_host(*_: object, **__: object) -> object:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/", "https://localhost/", "https://[::1]/", "https://0.0.0.0/", "https://2130706433/",
        "https://0x7f000001/", "https://0177.0.0.1/", "https://127.1/", "https://10.1.2.3/", "https://192.168.0.1/",
        "https://172.16.0.1/", "https://169.254.169.254/latest/meta-data/", "https://[fe80::1]/", "https://[fd00::1]/",
        "https://[::ffff:127.0.0.1]/", "https://[::ffff:169.254.169.254]/", "https://[2002:7f00:1::]/", "https://[fec0::1]/",
        "https://[64:ff9b::7f00:1]/", "https://100.64.0.1/", "https://192.0.0.192/", "https://192.88.99.1/",
        "https://224.0.0.1/", "https://255.255.255.255/",
        "http://93.184.216.34/", "ftp://93.184.216.34/", "file:///etc/passwd", "gopher://93.184.216.34/", "https://",
        "https://user@93.184.216.34/", "https://user:word@93.184.216.34/", "https://93.184.216.34\\@127.0.0.1/",
        "https://93.184.216.34:99999/", "https://exa mple/", "https://no-such-host.invalid/", "//93.184.216.34/", "x",
    ],
)  # fmt: skip
def test_a_private_address_is_refused_in_every_notation(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "no-such-host" in url:
        monkeypatch.setattr(socket, "getaddrinfo", no_such_host)
    for check in (target.resolve_target, target.check_url):
        if "no-such-host" in url and check is target.check_url:  # only DNS knows
            continue
        with pytest.raises(Invalid) as caught:
            check(url, "")
        assert caught.value.code == "URL_REFUSED"
        assert caught.value.findings[0].code == "url.refused"


def test_a_delivery_connects_to_the_address_that_was_checked() -> None:
    resolved = target.resolve_target("https://93.184.216.34:8443/in?x=1", "")
    assert (resolved.address, resolved.port, resolved.path, resolved.scheme) == (
        "93.184.216.34",
        8443,
        "/in?x=1",
        "https",
    )
    assert target.resolve_target("https://[2606:2800:220:1::1]/", "").host == "2606:2800:220:1::1"
    assert target.resolve_target("http://127.0.0.1/", LOOPBACK).path == "/"


def test_a_host_with_one_private_address_is_refused_and_dns_rebinding_has_no_effect(
    harness: Harness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lookup_of(*addresses: str) -> object:
        return lambda _host, port, **_how: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

    with monkeypatch.context() as patch:
        patch.setattr("socket.getaddrinfo", lookup_of("93.184.216.34", "10.0.0.1"))
        with pytest.raises(Invalid):
            target.resolve_target("https://two.example/", "")
    created = Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, actions=["version.push"]))
    harness.push("acme/support")
    harness.app.state.audit_log.step()
    with monkeypatch.context() as patch:
        patch.setattr("socket.getaddrinfo", lookup_of("169.254.169.254"))
        assert dispatch.send_due(harness.engine, harness.settings, lambda: harness.app.state.audit_log.keys) == 1
    assert receiver.received == []
    assert "169.254.169.254" in Audit(harness.admin).deliveries(created.webhook.id).items[0].error


@pytest.mark.parametrize(
    "url",
    [
        "https://169.254.169.254/",
        "https://167772161/",
        "https://[::1]/",
        "ftp://x/",
        "https://example.org:0/",
        f"https://{'a' * 64}.example.org/",
        "https://xn--/",
        "https://a..example.org/",
        "https://a.example.org./",
        "https://a.example.org:/",
        "https://a.example.org/in#part",
        "https://a.example.org/in#",
    ],
)
def test_the_api_refuses_such_a_url_with_422(harness: Harness, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Audit(harness.admin).create_webhook(WebhookCreate(url=url))
    assert caught.value.code == "URL_REFUSED"
    assert Audit(harness.admin).webhooks().items == []


def test_a_webhook_names_events_and_a_namespace_that_exist(harness: Harness) -> None:
    for wrong, error in (({"actions": ["alias.moved"]}, Invalid), ({"namespace": "ghost"}, NotFound)):
        with pytest.raises(error, match=r"the nearest is 'alias\.move'|no namespace 'ghost'"):
            Audit(harness.admin).create_webhook(WebhookCreate.model_validate({"url": "https://example.org/", **wrong}))
    assert Audit(harness.admin).webhooks().items == []


@pytest.mark.security
def test_no_request_waits_for_a_name_server(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    hosts: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *host, **_: hosts.append(host))
    Audit(harness.admin).create_webhook(WebhookCreate(url="https://hooks.example.org/in"))
    assert hosts == []


@pytest.mark.security
def test_a_refused_address_names_the_setting_that_allows_it() -> None:
    with pytest.raises(Invalid, match=r"url: 127\.0\.0\.1 is not a public address") as refused:
        target.check_url("http://127.0.0.1:9/", "")
    assert "REGISTRY_WEBHOOK_PRIVATE" in refused.value.next_step


@pytest.mark.security
@pytest.mark.parametrize("port", [22, 25, 80, 6379, 65535])
def test_a_public_host_is_called_on_https_ports_only(port: int) -> None:
    for check in (target.check_url, target.resolve_target):
        with pytest.raises(Invalid, match=f"port {port} of a public host"):
            check(f"https://93.184.216.34:{port}/", "")
    with pytest.raises(Invalid, match="port 22"):
        target.check_url("https://hooks.example.org:22/", "")
    target.check_url("https://hooks.example.org:8443/", "")


class SilentReceiver:
    """A server that accepts requests and responds to none until it is released."""

    def __init__(self) -> None:
        self.connections = 0
        self.released = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.connections += 1
                outer.released.wait(60)

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.security
@pytest.mark.parametrize("silent_hooks", [1, 12])
def test_a_webhook_does_not_wait_for_others_that_never_respond(
    harness: Harness, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, silent_hooks: int
) -> None:
    monkeypatch.setattr(dispatch, "RESPONSE_SECONDS", 60.0)
    silent, events = SilentReceiver(), 40
    try:
        ids = [
            Audit(harness.admin).create_webhook(WebhookCreate(url=silent.url, actions=["alias.move"])).webhook.id
            for _ in range(silent_hooks)
        ]
        Audit(harness.admin).create_webhook(WebhookCreate(url=receiver.url, actions=["alias.move"]))
        with harness.session(write=True) as session:
            for _ in range(events):
                audit.append(session, TRUSTED, EventType.ALIAS_MOVE, "acme/support:prod")
        harness.app.state.audit_log.step()
        for webhook_id in ids:
            dispatch._enqueue_deliveries(harness.engine, webhook_id, ProcessLock())
        with harness.session(write=True) as session:  # each has failed before
            for row in rows(session, DeliveryRow):
                row.attempt = 1
                session.add(row)
        sender = threading.Thread(target=step, args=(harness,))
        sender.start()
        receiver.wait_for(events)
        assert silent.connections <= min(silent_hooks * dispatch.PER_WEBHOOK, dispatch.FAILING_PARALLEL)
    finally:
        silent.close()
    sender.join(60)
    assert not sender.is_alive()
    assert len(receiver.received) == events


@pytest.mark.security
def test_a_silent_name_server_holds_no_sender_and_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    released, begun = threading.Event(), threading.Semaphore(0)

    def hang(*_arguments: object, **_: object) -> list[object]:
        begun.release()
        assert released.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 443))]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(target, "LOOKUP_SECONDS", 0.01)
    monkeypatch.setattr(target, "_lookups", threading.BoundedSemaphore(2))
    for _ in range(2):
        with pytest.raises(Invalid, match="do not respond within"):
            target.resolve_target("https://silent.example/", "")
    with pytest.raises(Invalid, match="is not looked up"):
        target.resolve_target("https://silent.example/", "")
    assert all(begun.acquire(timeout=60) for _ in range(2))
    assert not begun.acquire(blocking=False)
    released.set()
    monkeypatch.setattr(target, "LOOKUP_SECONDS", 60)
    for thread in threading.enumerate():
        if thread.name == "lookup":
            thread.join(60)
    assert target.resolve_target("https://silent.example/", "").address == "93.184.216.34"


@pytest.mark.security
@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("line", [b"\0\x1b[2J no status\r\n\r\n", b"HTTP/9\0.9 200 OK\r\n\r\n"])
def test_what_a_receiver_returns_ends_as_an_escaped_error_of_its_delivery(harness: Harness, line: bytes) -> None:
    """Otherwise a database that stores no U+0000 would refuse the attempt, and all webhooks would stop."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def respond() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(line)

        thread = threading.Thread(target=respond, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/in"
        harness.admin.create_namespace("acme")
        Audit(harness.admin).create_webhook(WebhookCreate(url=url, namespace="acme", actions=[EventType.VERSION_PUSH]))
        harness.push("acme/support")
        assert step(harness) == 1
        thread.join(60)
    with harness.session() as session:
        [row] = rows(session, DeliveryRow)
    assert (row.attempt, row.status) == (1, None)
    assert "\\x00" in row.error
    assert row.error.isprintable()
