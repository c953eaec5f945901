"""The relay answers only for namespaces that this registry never had."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.raw_asgi import RawAnswer, call
from tests.world import World

pytestmark = pytest.mark.security


class AnyRepository(BaseHTTPRequestHandler):
    """A Hub that has every repository."""

    def do_GET(self) -> None:
        body = b'{"id": "upstream"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    hub = ThreadingHTTPServer(("127.0.0.1", 0), AnyRepository)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        with World(database_url, hub_upstream=f"http://127.0.0.1:{hub.server_address[1]}") as world:
            yield world
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def ask(world: World, name: str) -> RawAnswer:
    return call(world.app, "GET", f"/api/models/{name}", [("authorization", f"Bearer {world.secret}")])


def test_a_namespace_that_was_ours_is_never_relayed_even_if_it_only_looks_like_it(world: World) -> None:
    world.add_base()
    world.push("gone/support")
    world.push("renamed/support")
    assert ask(world, "other/support").json() == {"id": "upstream"}
    world.admin.delete_adapter("gone/support")
    world.admin.rename("renamed/support", "elsewhere/support")
    for namespace in ("gone", "renamed"):
        assert ask(world, f"{namespace}/support").status == 404
        world.admin.delete_namespace(namespace)
    for name in ("gone/support", "Gone/other", "g0ne/support", "go_ne/x", "renamed/support", "elsewhere/absent"):
        answer = ask(world, name)
        assert (answer.status, answer.headers["x-error-code"]) == (404, "RepoNotFound"), name
    assert ask(world, "other/support").status == 200
