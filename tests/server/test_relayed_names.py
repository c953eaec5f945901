"""The relay serves only namespaces that this registry never had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tests.harness import Harness
from tests.raw_asgi import RawResponse, call

pytestmark = pytest.mark.security


class AnyRepository(BaseHTTPRequestHandler):
    """A Hub that has every repository."""

    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        body = b'{"id": "upstream"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    hub = ThreadingHTTPServer(("127.0.0.1", 0), AnyRepository)
    AnyRepository.paths.clear()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        with Harness(database_url, hub_upstream=f"http://127.0.0.1:{hub.server_address[1]}") as harness:
            yield harness
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def get(harness: Harness, path: str) -> RawResponse:
    return call(harness.app, "GET", path, [("authorization", f"Bearer {harness.secret}")])


def ask(harness: Harness, name: str) -> RawResponse:
    return get(harness, f"/api/models/{name}")


def test_a_namespace_that_was_ours_is_never_relayed_even_if_it_only_looks_like_it(harness: Harness) -> None:
    harness.add_base()
    harness.push("gone/support")
    harness.push("renamed/support")
    assert ask(harness, "other/support").json() == {"id": "upstream"}
    harness.admin.delete_adapter("gone/support")
    harness.admin.create_namespace("elsewhere")
    harness.admin.rename("renamed/support", "elsewhere/support")
    for namespace in ("gone", "renamed"):
        assert ask(harness, f"{namespace}/support").status == 404
        harness.admin.delete_namespace(namespace)
    for name in ("gone/support", "Gone/other", "g0ne/support", "go_ne/x", "renamed/support", "elsewhere/absent"):
        response = ask(harness, name)
        assert (response.status, response.headers["x-error-code"]) == (404, "RepoNotFound"), name
    assert ask(harness, "other/support").status == 200


NAMES = [
    *(
        "gone%2Fsupport",
        "gone%2fx",
        "acme%2Fsupport",
        "acme%2Fsupport/x",
        "other/a%2Fb",
        "acme",
        "Acme",
        "gone",
        "g0ne",
    ),
    *("..", "%2e%2e", "%2E.", ".", "other/..", "%2e%2e/other", "other/%2e%2e", "a..b", "other/a..b", "other/.a"),
    *("other/a%0Ab", "a%01", "other%20/a", "other/a%3Fb", "other/a%23b", "other/a%5Cb", "other/%252e%252e", "other/a%"),
    *("other/%D0%B0", "%EF%BD%81cme/support", "other/" + "a" * 97, "datasets", "api/models"),
]
REVISIONS_AND_PATHS = ["..", "%2e%2e", "..%2F..", "main/../x", "main/%2e%2e/x", "main/a%2F..%2Fx", "main/a%5C..%5Cx"]


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    harness.push("acme/support")
    harness.push("gone/support")
    harness.admin.delete_adapter("gone/support")
    harness.admin.delete_namespace("gone")
    return harness


def test_a_name_that_is_none_of_the_hub_or_is_ours_is_never_relayed(filled_harness: Harness) -> None:
    for name in NAMES:
        for path in (f"/api/models/{name}", f"/api/models/{name}/revision/main", f"/{name}/resolve/main/config.json"):
            assert get(filled_harness, path).status == 404, path
    assert AnyRepository.paths == []


def test_a_path_with_dots_is_never_relayed(filled_harness: Harness) -> None:
    for rest in REVISIONS_AND_PATHS:
        for path in (f"/gpt2/resolve/{rest}/f", f"/other/a/resolve/{rest}/f", f"/api/models/other/a/tree/{rest}/f"):
            assert get(filled_harness, path).status == 404, path
    assert AnyRepository.paths == []


def test_names_of_the_hub_are_relayed(filled_harness: Harness) -> None:
    paths = [
        *("/api/models/gpt2", "/gpt2/resolve/main/config.json", "/api/models/Org_1/Model-3.5_b"),
        *("/api/models/other/a/tree/refs%2Fpr%2F1/folder", "/other/a/resolve/main/part%2Fone/..a..b"),
    ]
    for path in paths:
        assert get(filled_harness, path).status == 200, path
    assert AnyRepository.paths == paths
