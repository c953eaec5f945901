"""Bodies of requests: nothing large is read or parsed before sign-in."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator

import pytest
from starlette.types import Message, Receive, Scope, Send

from registry.api.bases import IDENTITY_BODY_BYTES, IdentityRequest
from registry.api.serving import REASON_LIMIT, SLOTS_LIMIT, NodeReport, SlotReport, SlotState
from registry.bases.identity import MARKS_LIMIT, Identity, TensorMark
from registry.digest import Digest
from registry.server import app as server_app
from registry.server.http.request_body import LIST_VALUES_LIMIT, UNTRUSTED_BYTES, VALUES_LIMIT
from registry.server.http.routing import SingleThreadRoute
from tests.harness import Harness
from tests.raw_asgi import RawResponse, call

pytestmark = pytest.mark.security
CHUNK = b" " * 2**14
LARGE = [CHUNK] * 128


def post(
    harness: Harness, path: str, chunks: Iterable[bytes], *headers: tuple[str, str], secret: str = ""
) -> RawResponse:
    token = [("authorization", f"Bearer {secret}")] if secret else []
    return call(harness.app, "POST", f"/api/v1{path}", [("content-type", "application/json"), *token, *headers], chunks)


@pytest.fixture
def closed(harness: Harness) -> Harness:
    """An application without a trusted actor, as `adapter serve` has it."""
    harness.app.state.trusted = None
    return harness


@pytest.mark.parametrize("secret", ["", "lra_" + "0" * 38])
@pytest.mark.parametrize("path", ["/check", "/pushes/commit", "/bases", "/fleet/nodes/n/e"])
def test_without_a_valid_token_no_large_body_is_read(closed: Harness, path: str, secret: str) -> None:
    declared = post(closed, path, LARGE, ("content-length", str(len(LARGE) * len(CHUNK))), secret=secret)
    chunked = post(closed, path, LARGE, secret=secret)
    if path.startswith("/fleet"):
        declared = call(closed.app, "PUT", f"/api/v1{path}", [("content-length", "2097152")], LARGE)
        chunked = call(closed.app, "PUT", f"/api/v1{path}", (), LARGE)
    assert (declared.status, declared.bytes_read) == (401, 0)
    assert (chunked.status, chunked.headers["connection"]) == (401, "close")
    assert chunked.bytes_read <= UNTRUSTED_BYTES + len(CHUNK)


def test_every_route_without_a_token_takes_small_bodies_only() -> None:
    limits = {
        (method, path): getattr(route, "body_limit_bytes", None)
        for router in server_app.ROUTERS
        for route in router.routes
        for (method, path), scope in server_app.declared_scopes().items()
        if scope == "open" and method not in ("GET", "HEAD")
        if isinstance(route, SingleThreadRoute) and path == route.path and method in (route.methods or ())
    }
    assert limits.pop(("PUT", "/api/v1/links/{key:path}")) is None, "it is streamed, once its signature is checked"
    assert limits
    assert all(limit is not None and limit <= UNTRUSTED_BYTES for limit in limits.values()), limits


def test_an_invalid_secret_with_a_large_body_counts_as_a_failed_sign_in(closed: Harness) -> None:
    responses = [post(closed, "/check", LARGE, secret="lra_" + "0" * 38) for _ in range(12)]
    assert [response.status for response in responses] == [401] * 10 + [429] * 2


def test_many_unknown_fields_give_one_error_and_count_as_failed_sign_ins(closed: Harness) -> None:
    body = json.dumps({f"field{n}": 0 for n in range(4000)}).encode()
    responses = [post(closed, "/tokens/exchange", [body]) for _ in range(12)]
    assert [response.status for response in responses] == [400] * 10 + [429] * 2
    assert len(responses[0].json()["findings"]) == 1
    assert "has 4000 fields" in responses[0].json()["detail"]


def test_unreadable_requests_of_a_valid_token_are_no_failed_sign_ins(closed: Harness) -> None:
    secret = closed.issue("admin")[1]
    assert [post(closed, "/namespaces", [b"{"], secret=secret).status for _ in range(12)] == [400] * 12
    assert [post(closed, "/tokens/exchange", [b"{"]).status for _ in range(12)] == [400] * 10 + [429] * 2


def test_few_unknown_fields_are_named(harness: Harness) -> None:
    response = post(harness, "/namespaces", [b'{"name": "acme", "a": 1, "b": 2}'], secret=harness.issue("admin")[1])
    assert [finding["location"] for finding in response.json()["findings"]] == ["body.a", "body.b"]


def test_a_body_is_not_held_while_its_response_is_sent_and_work_follows(harness: Harness) -> None:
    sizes: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def observe(message: Message) -> None:
            sizes.append(len(scope["state"]["body"]))
            await send(message)

        await harness.app(scope, receive, observe)
        sizes.append(len(scope["state"]["body"]))

    headers = [("content-type", "application/json"), ("authorization", f"Bearer {harness.secret}")]
    for path, status in (("/api/v1/tokens", 201), ("/api/v1/bases", 400)):
        body = json.dumps({"name": "ci", "scopes": ["pull"], "namespaces": ["acme"]}).encode()
        assert call(app, "POST", path, headers, [body]).status == status
    assert sizes == [0] * 6


def test_without_the_scope_of_the_route_a_large_body_is_not_read(harness: Harness) -> None:
    response = post(harness, "/bases", LARGE, ("content-length", str(2**21)), secret=harness.issue("pull")[1])
    assert (response.status, response.json()["code"], response.bytes_read) == (403, "DENIED", 0)


def test_without_a_token_no_body_is_read_by_a_route_that_needs_one(closed: Harness) -> None:
    response = post(closed, "/check", [b"{}"])
    assert (response.status, response.bytes_read) == (401, 0)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(harness: Harness, encoding: str) -> None:
    body = ('{"a\u2200": [' + "{}," * (VALUES_LIMIT // 2) + "{}]}").encode(encoding)
    response = post(harness, "/check", [body], secret=harness.issue("pull")[1])
    assert (response.status, response.json()["code"]) == (413, "SIZE_INVALID")
    assert str(VALUES_LIMIT) in response.json()["detail"]


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/tokens", VALUES_LIMIT), ("/bases/tiny/similarity", LIST_VALUES_LIMIT), ("/moves", LIST_VALUES_LIMIT)],
)
def test_a_body_of_more_values_than_its_route_can_use_is_refused_before_it_is_parsed(
    harness: Harness, path: str, limit: int
) -> None:
    """Each unknown field is an error of half a kilobyte, which no one reads."""
    body = json.dumps({f"f{n}": 0 for n in range(limit + 1)}).encode()
    response = post(harness, path, [body], secret=harness.issue("admin")[1])
    assert (response.status, response.json()["code"]) == (413, "SIZE_INVALID")
    assert f"over {limit} values" in response.json()["detail"]


def test_the_marks_of_weights_have_a_limit_of_bytes_that_the_longest_ones_do_not_reach(harness: Harness) -> None:
    mark = TensorMark(
        dtype="float8_e4m3fn", shape=(2**20, 2**20, 2**10, 2**10), digest=Digest.of(b"x"), norm=123456789.12345678,
        sketch=base64.b64encode(b"\1" * 128).decode(),
    )  # fmt: skip
    marks = {f"{n:04}.{'language_model.model.layers.' * 4}weight": mark for n in range(MARKS_LIMIT)}
    identity = Identity(exact=Digest.of(b"y"), tensors=MARKS_LIMIT, marks=marks)
    body = IdentityRequest(identity=identity).model_dump_json().encode()
    secret = harness.issue("pull")[1]
    assert len(body) < IDENTITY_BODY_BYTES
    assert post(harness, "/bases/tiny/similarity", [body], secret=secret).status == 404
    over = ("content-length", str(IDENTITY_BODY_BYTES + 1))
    response = post(harness, "/bases/tiny/similarity", LARGE, over, secret=secret)
    assert (response.status, response.json()["code"], response.bytes_read) == (413, "SIZE_INVALID", 0)


def test_a_node_may_report_its_most_versions_each_with_a_long_reason(harness: Harness) -> None:
    """Texts are left out of the count, but no more of them than the route's limit of values."""
    slot = SlotReport(
        adapter="acme/support", digest=Digest.of(b"x"), served_name="s", state=SlotState.FAILED,
        reason="q, " * (REASON_LIMIT // 3),
    )  # fmt: skip
    body = NodeReport(base="absent", alias="prod", slots=[slot] * SLOTS_LIMIT).model_dump_json().encode()
    headers = [("content-type", "application/json"), *authorization(f"Bearer {harness.issue('pull')[1]}")]
    response = call(harness.app, "PUT", "/api/v1/fleet/nodes/n/vllm", headers, [body])
    assert (response.status, len(response.json()["unknown"])) == (200, SLOTS_LIMIT)


def test_commas_in_texts_are_not_values(harness: Harness) -> None:
    body = json.dumps({"base": "tiny", "header": "{,[" * VALUES_LIMIT, "size_bytes": 1}).encode()
    assert post(harness, "/check", [body], secret=harness.issue("pull")[1]).json()["code"] != "SIZE_INVALID"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/models/a/b/paths-info/x%2Fpushes%2Fy%2Fblobs%2Fz"),
        ("DELETE", "/api/v1/namespaces/n/roles/pushes/x/blobs/y"),
    ],
)
def test_a_path_that_looks_like_an_upload_has_its_body_read(harness: Harness, method: str, path: str) -> None:
    headers = [("authorization", f"Bearer {harness.issue('admin')[1]}"), ("idempotency-key", "k1")]
    assert call(harness.app, method, path, headers).status in (404, 422)


def authorization(*values: str) -> list[tuple[str, str]]:
    return [("authorization", value) for value in values]


def test_several_authorization_headers_are_rejected_everywhere(closed: Harness) -> None:
    closed.add_base()
    closed.push("acme/support")
    secret = closed.issue("pull", namespaces=["acme"])[1]
    path = "/api/v1/resolve/acme/support/main"
    assert call(closed.app, "GET", path, authorization(f"Bearer {secret}")).status == 200
    for values in ((f"Bearer {secret}", ""), ("", f"Bearer {secret}"), (f"Bearer {secret}", f"Bearer {secret}")):
        for url in (path, "/api/v1/whoami"):
            response = call(closed.app, "GET", url, authorization(*values))
            assert (response.status, response.json()["code"]) == (400, "REQUEST_INVALID"), (url, values)
    assert call(closed.app, "GET", path).status == 401
    assert call(closed.app, "GET", path, authorization("")).status == 401


def test_a_body_under_way_does_not_stop_responses_from_the_cache(harness: Harness) -> None:
    freshness, writes = harness.app.state.freshness, []

    def chunks() -> Iterator[bytes]:
        for _ in range(3):
            writes.append(freshness._writes)
            yield b" "

    headers = [("authorization", f"Bearer {harness.issue('admin')[1]}")]
    assert call(harness.app, "POST", "/api/v1/namespaces", headers, chunks()).status == 400
    assert writes == [0, 0, 0]


@pytest.mark.parametrize(("chunk_bytes", "is_refused"), [(2**14 - 1, True), (2**14, False)])
def test_a_body_has_a_deadline_that_grows_with_its_size_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, is_refused: bool
) -> None:
    """A burst at the beginning buys no time for the rest. A chunk takes a second here, except in the burst."""
    seconds = 0.0
    monkeypatch.setattr("registry.server.http.middleware.time.monotonic", lambda: seconds)

    def chunks() -> Iterator[bytes]:
        nonlocal seconds
        yield b"{" + b" " * 2**20
        for _ in range(harness.settings.stall_seconds):
            seconds += 1
            yield b" " * chunk_bytes
        yield b"}"

    response = post(harness, "/check", chunks(), secret=harness.issue("admin")[1])
    assert response.status == (408 if is_refused else 400)
    assert (response.json()["code"] == "BODY_STALLED") is is_refused
    assert (response.headers.get("connection") == "close") is is_refused
