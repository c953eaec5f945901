"""The client tells errors apart, repeats only what may be repeated, and keeps the token at home."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from registry.api.access import TokenCreate
from registry.api.catalog import FileLink
from registry.api.transfer import Upload
from registry.client.registry import Registry
from registry.client.transport.connection import Connection
from registry.client.transport.retries import ATTEMPTS_LIMIT
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, RegistryError, Unauthenticated, Unavailable
from tests.bulk import commit_push
from tests.harness import send_blob
from tests.httpx_transports import MockTransport

URL = "https://registry.test"
TOKEN = "lra_secret"
WHO = {"actor": "ci", "token_id": "t1", "scopes": ["push"], "namespaces": ["acme"]}
Responder = Callable[[httpx.Request], httpx.Response]


class ScriptedServer:
    """A registry and a store made of one function; keeps every request that reached it."""

    def __init__(self, respond: Responder) -> None:
        self.requests: list[httpx.Request] = []
        self._respond = respond

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        return self._respond(request)

    def registry(self) -> Registry:
        transport = MockTransport(self)
        connection = Connection(URL, TOKEN, transport=transport, other_transport=transport, wait=lambda _: None)
        return Registry(URL, connection=connection)


def problem(status: int, code: str, **more: object) -> httpx.Response:
    body = {"code": code, "detail": "because", "title": "t", "findings": [], **more}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"})


def link_to(url: str, size_bytes: int) -> FileLink:
    return FileLink(path="x", media_type="text/plain", digest=Digest.of(b""), size_bytes=size_bytes, url=url)


def script(*responses: httpx.Response | Exception) -> Responder:
    remaining: Iterator[httpx.Response | Exception] = iter(responses)

    def respond(_request: httpx.Request) -> httpx.Response:
        item = next(remaining)
        if isinstance(item, Exception):
            raise item
        return item

    return respond


def test_an_error_response_raises_the_class_that_the_server_raised() -> None:
    findings = [{"code": "gate.smoke_absent", "location": "smoke", "message": "no verdict yet"}]
    wire = ScriptedServer(script(problem(404, "VERSION_UNKNOWN", next_step="look at adapter show", findings=findings)))
    with pytest.raises(NotFound) as caught:
        wire.registry().resolve("acme/support:prod")
    assert caught.value.code == "VERSION_UNKNOWN"
    assert caught.value.next_step == "look at adapter show"
    assert [reason.code for reason in caught.value.findings] == ["gate.smoke_absent"]


def test_a_code_of_a_newer_server_is_still_an_error_with_its_sentence_and_request() -> None:
    wire = ScriptedServer(script(problem(418, "TEAPOT", request_id="r-77")))
    with pytest.raises(RegistryError, match=r"TEAPOT.*because.*r-77"):
        wire.registry().whoami()


def test_a_404_that_is_not_ours_says_that_this_may_be_no_registry() -> None:
    with pytest.raises(NotFound, match="is it an adapter registry"):
        ScriptedServer(script(httpx.Response(404, text="<html>"))).registry().whoami()


def test_a_401_without_a_reason_asks_to_sign_in() -> None:
    with pytest.raises(Unauthenticated):
        ScriptedServer(script(httpx.Response(401))).registry().whoami()


def test_a_response_that_does_not_parse_names_the_field() -> None:
    with pytest.raises(RegistryError, match="actor"):
        ScriptedServer(script(httpx.Response(200, json={"token_id": "t"}))).registry().whoami()


def test_a_response_may_have_fields_that_this_client_does_not_know() -> None:
    assert ScriptedServer(script(httpx.Response(200, json=WHO | {"new": 1}))).registry().whoami().actor == "ci"


def test_a_read_is_sent_again_after_a_broken_connection_and_a_busy_server() -> None:
    wire = ScriptedServer(
        script(
            httpx.ReadError("reset"), problem(503, "TRY_LATER", retry_after_seconds=1), httpx.Response(200, json=WHO)
        )
    )
    assert wire.registry().whoami().actor == "ci"
    assert len(wire.requests) == 3


def test_a_write_whose_response_was_lost_is_sent_again_under_the_same_key() -> None:
    created: dict[str, Any] = {"token": {"id": "t", "name": "ci", "created_at": "2026-01-01T00:00:00Z"}, "secret": "s"}
    created["token"] |= {"scopes": ["push"], "namespaces": ["*"], "created_by": "admin"}
    wire = ScriptedServer(
        script(httpx.ReadError("reset"), problem(503, "TRY_LATER"), httpx.Response(201, json=created))
    )
    registry = wire.registry()
    assert registry.create_token(TokenCreate(name="ci", scopes=["push"])).secret == "s"
    keys = [request.headers["idempotency-key"] for request in wire.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_each_write_has_a_key_of_its_own_and_a_read_has_none() -> None:
    wire = ScriptedServer(lambda _: problem(404, "JOB_UNKNOWN"))
    for ask in (Registry.cancel, Registry.cancel, Registry.job):
        with pytest.raises(NotFound):
            ask(wire.registry(), "job_1")
    keys = [request.headers.get("idempotency-key") for request in wire.requests]
    assert keys[2] is None
    assert len({*keys}) == 3


def test_a_registry_that_stays_away_is_given_up_after_a_few_attempts() -> None:
    wire = ScriptedServer(script(*[httpx.ConnectError("refused")] * ATTEMPTS_LIMIT))
    with pytest.raises(Unavailable, match=r"registry\.test is unreachable: refused"):
        wire.registry().create_token(TokenCreate(name="ci", scopes=["push"]))
    assert len(wire.requests) == ATTEMPTS_LIMIT


def test_a_request_that_waits_for_a_change_may_be_silent_as_long_as_it_waits() -> None:
    """Beyond ADAPTER_TIMEOUT, which may be shorter: an agent would take a quiet registry for one that is away."""
    wire = ScriptedServer(script(problem(404, "BASE_UNKNOWN"), problem(404, "BASE_UNKNOWN")))
    registry = wire.registry()
    registry.connection.timeout_seconds = 10
    with pytest.raises(NotFound):
        registry.desired_state("tiny-llama", "prod")
    with pytest.raises(NotFound):
        registry.next_desired_state("tiny-llama", "prod", since="0", wait=20)
    assert [request.extensions["timeout"]["read"] for request in wire.requests] == [10, 30]


def test_an_unknown_certificate_authority_is_refused_with_the_setting() -> None:
    reason = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate"
    wire = ScriptedServer(script(*[httpx.ConnectError(reason)] * ATTEMPTS_LIMIT))
    with pytest.raises(Unavailable, match=r"registry\.test is unreachable") as caught:
        wire.registry().whoami()
    assert "SSL_CERT_FILE" in caught.value.next_step


def test_a_push_waits_for_a_registry_that_is_starting_again_and_for_no_other() -> None:
    """How long one takes to start is more than a few attempts; one that has never responded may not be one."""
    away = [httpx.ConnectError("refused")] * 7
    wire = ScriptedServer(
        script(httpx.Response(200, json=WHO), httpx.ReadError("reset"), *away[1:], problem(404, "PUSH_UNKNOWN"))
    )
    registry = wire.registry()
    registry.whoami()
    with pytest.raises(NotFound):
        commit_push(registry, "psh_one")
    fresh = ScriptedServer(script(*away))
    with pytest.raises(Unavailable):
        commit_push(fresh.registry(), "psh_one")
    assert (len(wire.requests), len(fresh.requests)) == (len(away) + 2, ATTEMPTS_LIMIT)


def test_a_conflict_is_never_repeated() -> None:
    wire = ScriptedServer(script(problem(412, "ALIAS_MOVED")))
    with pytest.raises(Conflict):
        wire.registry().promote("acme/support", "prod", "3", generation=4)
    assert wire.requests[0].headers["if-match"] == '"4"'
    sent = {"version": "3", "reason": "", "break_glass": False, "create_alias": False}
    assert json.loads(wire.requests[0].content) == sent


def test_the_token_goes_to_the_registry_and_not_to_a_store_that_it_redirects_to() -> None:
    def respond(request: httpx.Request) -> httpx.Response:
        if request.url.host == "registry.test":
            return httpx.Response(307, headers={"location": "https://store.test/blob?signature=s"})
        return httpx.Response(200, content=b"weights")

    wire = ScriptedServer(respond)
    with wire.registry().read(link_to("/api/v1/adapters/a/b/versions/1/files/x", 7)) as chunks:
        assert b"".join(chunks) == b"weights"
    assert [(r.url.host, r.headers.get("authorization")) for r in wire.requests] == [
        ("registry.test", f"Bearer {TOKEN}"),
        ("store.test", None),
    ]


@pytest.mark.parametrize("url", ["https://registry.test:444/x", "https://registry.test.evil/x"])
def test_the_token_goes_to_no_other_origin_that_resembles_ours(url: str) -> None:
    wire = ScriptedServer(lambda _: httpx.Response(200, content=b""))
    with wire.registry().read(link_to(url, 0)) as chunks:
        assert b"".join(chunks) == b""
    assert "authorization" not in wire.requests[0].headers


def test_an_upload_goes_where_its_plan_says_and_can_be_sent_again() -> None:
    wire = ScriptedServer(script(httpx.Response(503), httpx.Response(204)))
    upload = Upload(digest=Digest.of(b"abc"), size_bytes=3, url="https://store.test/staging/x", headers={"x-sum": "s"})
    send_blob(wire.registry(), upload, b"abc")
    assert [r.content for r in wire.requests] == [b"abc", b"abc"]
    assert {r.headers["x-sum"] for r in wire.requests} == {"s"}
    assert {r.headers["content-length"] for r in wire.requests} == {"3"}
    assert not any("authorization" in r.headers for r in wire.requests)


def test_a_range_is_requested_by_its_first_and_last_byte() -> None:
    wire = ScriptedServer(lambda _: httpx.Response(206, content=b"cd"))
    with wire.registry().read(link_to("/x", 10), start=2, length=2) as chunks:
        assert b"".join(chunks) == b"cd"
    assert wire.requests[0].headers["range"] == "bytes=2-3"


@pytest.mark.parametrize("name", ["Acme/support", "acme", "acme/../x", "acme/su pport", "api/x"])
def test_what_is_not_a_name_is_refused_without_a_request(name: str) -> None:
    wire = ScriptedServer(script())
    with pytest.raises(Invalid) as caught:
        wire.registry().adapter(name)
    assert caught.value.code == "NAME_INVALID"
    assert wire.requests == []


@pytest.mark.parametrize(
    "url", ["registry.test", "ftp://registry.test", "https://user:password@registry.test", "http://", "http://a:99999"]
)
def test_what_is_not_the_url_of_a_registry_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="registry URL"):
        Registry(url)


def test_every_method_of_the_client_has_its_route_below_the_prefix() -> None:
    wire = ScriptedServer(lambda _: httpx.Response(200, json={"items": [], "moves": [], "name": "acme/support"}))
    registry = wire.registry()
    registry.adapters(namespace="acme", limit=3)
    registry.history("acme/support", alias="prod")
    registry.jobs(state="queued")
    assert [str(r.url)[len(URL) :] for r in wire.requests] == [
        "/api/v1/adapters?namespace=acme&limit=3",
        "/api/v1/adapters/acme/support/history?alias=prod",
        "/api/v1/jobs?state=queued",
    ]
