"""Bodies of requests: nothing large is read or parsed before sign-in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import pytest

from registry.api.operations.operation import LIST_VALUES_LIMIT, VALUES_LIMIT
from registry.server import app as server_app
from registry.server.http.admission import STRANGER_BYTES
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
    assert chunked.bytes_read == 0


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
    assert limits.pop(("POST", "/api/validate-yaml")), "with a token; without one tests/hub/test_commits.py"
    assert limits
    assert all(limit is not None and limit <= STRANGER_BYTES for limit in limits.values()), limits


def test_an_invalid_secret_with_a_large_body_counts_as_a_failed_sign_in(closed: Harness) -> None:
    responses = [post(closed, "/check", LARGE, secret="lra_" + "0" * 38) for _ in range(12)]
    assert [response.status for response in responses] == [401] * 10 + [429] * 2


def test_many_unknown_fields_give_one_error_and_count_as_failed_sign_ins(closed: Harness) -> None:
    body = json.dumps({f"field{n}": 0 for n in range(1000)}).encode()
    responses = [post(closed, "/tokens/exchange", [body]) for _ in range(12)]
    assert [response.status for response in responses] == [400] * 10 + [429] * 2
    assert len(responses[0].json()["findings"]) == 1
    assert "has 1000 fields" in responses[0].json()["detail"]


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
