"""Commits that are refused for their paths, their lines, their texts and their size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.hub.operations import BODY_LIMIT_BYTES
from registry.server.http.admission import Space
from tests import raw_asgi
from tests.harness import Harness
from tests.hub.commits import CARD, Pusher, add, header, staged


@pytest.mark.parametrize(("size_bytes", "status"), [(BODY_LIMIT_BYTES + 1, 413), (2**20, 503)])
def test_a_commit_that_declares_too_many_bytes_is_not_read(harness: Harness, size_bytes: int, status: int) -> None:
    harness.push("acme/support")
    space = harness.app.state.admission.disk = Space(2**20 - 1, 2**30)
    headers = [("Authorization", f"Bearer {harness.secret}"), ("Content-Length", str(size_bytes))]
    response = raw_asgi.call(
        harness.app, "POST", "/api/models/acme/support/commit/main", headers, [bytes(2**10)] * 2**10
    )
    assert (response.status, response.bytes_read, "x-error-message" in response.headers) == (status, 0, True)
    assert space.used_bytes == 0


BAD_PATHS = {
    "../README.md": "'..' part", "a/../README.md": "'..' part", "/README.md": "is absolute", "a\\README.md": "holds",
    "README.md\0": "holds", ".gitattributes": "begins with a dot", "CON/README.md": "device name",
    "readme.md": "equals", "README.md/LICENSE": "needs a folder", "x.bin": "pickle", "x.py": "code",
    "model.safetensors": "a whole model", "pytorch_model-00001-of-00002.bin": "a whole model",
    "nested/adapter_config.json": "push that folder", "a" * 600: "over",
}  # fmt: skip


@pytest.mark.security
@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_bad_path_is_refused_and_nothing_is_kept(harness: Harness, pusher: Pusher, path: str) -> None:
    pusher.create()
    before = pusher.info().json()["sha"]
    response = pusher.commit(add(CARD, b"# Card\n"), add(path))
    assert response.status_code in (400, 415, 422), response.text
    assert BAD_PATHS[path] in response.headers["x-error-message"]
    assert (pusher.info().json()["sha"], pusher.files(), staged(harness)) == (before, [], [])


def lines(*operations: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in (header(), *operations))


BAD_BODIES: dict[str, tuple[Any, int, str]] = {
    "empty": (b"", 400, "is empty"),
    "not JSON": (b"{", 400, "line 1"),
    "no header": (json.dumps(add(CARD)).encode(), 400, "begins with its header"),
    "two headers": (b'{"key": "header", "value": {}}\n' * 2, 400, "'header' is not an operation"),
    "unknown": (b'{"key": "header", "value": {}}\n{"key": "symlink", "value": {"path": "x"}}', 400, "'symlink'"),
    "not base64": (b'{"key": "header", "value": {}}\n' + json.dumps(add(CARD)).replace("eA==", "e!==").encode(), 400,
                   "not base64"),
    "content after the value": (lines(add(CARD) | {"content": "eQ=="}), 400, "in its `value`"),
    "content before the value": (lines({"content": "eQ==", **add(CARD)}), 400, "in its `value`"),
    "content deeper": (lines({"key": "file", "value": {"b": {"content": "eQ=="}, "path": "a", "content": "eA=="}}), 400,
                       "in its `value`"),
    "cut off": (b'{"key": "header", "value": {}}\n{"key": "file", "value": {"content": "eA', 400, "has no end"),
    "many": (b'{"key": "header", "value": {}}\n' + b'{"key":"deletedFile","value":{"path":"a"}}\n' * 100_000, 413,
             "over the limit of 1000 operations"),
    "blank": (b'{"key": "header", "value": {}}\n' + b"\n" * 100_000, 413, "over the limit of 1000"),
    "long": (b'{"key": "header", "value": {"summary": "%s"}}' % (b"x" * 70_000), 413, "over the limit of 65536 bytes"),
    "deep": (b'{"key": "header", "value": ' + b"[" * 100 + b"]" * 100 + b"}", 400, "deeper"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_malformed_commit_says_where_it_is_wrong(pusher: Pusher, case: str) -> None:
    pusher.create()
    body, status, message = BAD_BODIES[case]
    response = pusher.post(body)
    assert (response.status_code, message in response.headers["x-error-message"]) == (status, True), response.text
    assert pusher.files() == []


@pytest.mark.security
@pytest.mark.parametrize(
    ("message", "problem"), [("\x1b[31m", "U+001B"), ("\u202e", "U+202E"), ("\0", "U+0000"), ("x" * 2001, "2000")]
)
def test_the_message_of_a_commit_has_the_rules_of_a_push(
    harness: Harness, pusher: Pusher, message: str, problem: str
) -> None:
    pusher.create()
    response = pusher.push(harness.files(), summary=message)
    assert (response.status_code, problem in response.headers["x-error-message"]) == (400, True)
    assert pusher.files() == []


@pytest.mark.parametrize("text", [r"\ud800", r"\u0000"])
def test_a_text_that_cannot_be_stored_is_refused(pusher: Pusher, text: str) -> None:
    pusher.create()
    model = "/api/models/acme/support"
    bodies = {
        f"{model}/preupload/main": '{"files": [{"path": "%s", "size": 1}]}',
        f"{model}/branch/x": '{"startingPoint": "%s"}',
        f"{model}/tag/main": '{"tag": "%s"}',
        "/api/repos/create": '{"organization": "acme", "name": "%s"}',
    }
    responses = [pusher.send("POST", path, content=body % text) for path, body in bodies.items()]
    assert {response.status_code for response in responses} <= {400, 415, 422}


@pytest.mark.parametrize(
    ("method", "path", "body", "problem"),
    [
        ("POST", "/api/repos/create", {"name": "acme/new", "private": "yes"}, "body.private: must be true or false"),
        ("PUT", "/api/models/acme/support/settings", {"private": 1}, "body.private: must be true or false"),
        ("POST", "/api/models/acme/support/branch/x", {"startingPoint": 7}, "body.startingPoint: must be text"),
        ("POST", "/api/models/acme/support/preupload/main", {"files": [{"path": "a", "size": "1"}]}, "whole number"),
        ("POST", "/api/models/acme/support/paths-info/main", {"paths": ["a"], "expand": "yes"}, "true or false"),
    ],
)
def test_nothing_in_a_body_is_taken_for_another_kind(
    pusher: Pusher, method: str, path: str, body: dict[str, Any], problem: str
) -> None:
    pusher.create()
    response = pusher.send(method, path, json=body | {"unknownToUs": True})
    assert (response.status_code, problem in response.headers["x-error-message"]) == (400, True), response.text


@pytest.mark.parametrize("public", [{"private": False}, {"visibility": "public"}])
def test_a_repository_that_cannot_be_public_says_so(pusher: Pusher, public: dict[str, Any]) -> None:
    """Older clients ask for it by `private`, newer ones by `visibility`."""
    response = pusher.send("POST", "/api/repos/create", json={"name": "acme/shown"} | public)
    assert (response.status_code, "acme/shown is private" in response.headers["x-hf-warning"]) == (200, True)
