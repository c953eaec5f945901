"""The relay, with a second real server of ours as the upstream Hub; and upstreams that are away, slow, or mean harm."""

from __future__ import annotations

import itertools
import json
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from registry.errors import Invalid, Unavailable
from registry.server.http.routing import RELAY_THREADS
from registry.server.hub import upstream as relays
from tests import samples
from tests.access.tenants import send
from tests.faults.servers import Server
from tests.harness import Harness
from tests.hub import clients, venvs
from tests.hub.live import CARD, NAME, NESTED, LiveServer
from tests.hub.upstreams import Response, Upstream

THREADS = 60
"""More than requests have, besides those that wait for a store or for the upstream."""
WAIT_SECONDS = 60
RUST = "unknown/None; hf-hub/0.4.3; rust/unknown"


@dataclass
class RelayingServer:
    """A server that holds nothing, and relays what it does not hold."""

    server: Server
    upstream: Upstream
    live: LiveServer

    def http(self, agent: str = "unknown; hf_hub/2.4.0") -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.server.token}", "User-Agent": agent}
        return httpx.Client(base_url=self.server.url, headers=headers)

    def python(self, python: Path | str, script: str, folder: Path) -> dict[str, object]:
        ours = {"HF_ENDPOINT": self.server.url, "HF_TOKEN": self.server.token}
        done = self.live.run([python, "-c", script], folder, **ours)
        assert done.returncode == 0, done.stderr[-3000:]
        results: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return results


@pytest.fixture(scope="module")
def relaying(live: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RelayingServer]:
    with Upstream(live.server) as upstream:
        environment = {"REGISTRY_DATA": str(tmp_path_factory.mktemp("relay")), "REGISTRY_HUB_UPSTREAM": upstream.url}
        with Server(environment).running() as server:
            yield RelayingServer(server, upstream, live)
            sent = [
                request
                for request in upstream.requests
                if "Authorization" in request.headers or "Cookie" in request.headers
            ]
            assert sent == []
            assert server.token not in str(upstream.requests)
            live.no_token_left_home()
            assert server.token not in str(live.proxy.heads)


SCRIPT = f"""
import hashlib, json, pathlib
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
def bytes_of(folder):
    root = pathlib.Path(folder)
    files = [path for path in root.rglob("*") if path.is_file()]
    return {{str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}}
def said(call):
    try:
        return str(call())
    except Exception as e:
        return type(e).__name__
api = HfApi()
at = snapshot_download({NAME!r}, revision="canary")
print(json.dumps({{
    "snapshot": bytes_of(at), "commit": pathlib.Path(at).name,
    "tag": pathlib.Path(hf_hub_download({NAME!r}, {samples.WEIGHTS!r}, revision="v2")).parent.name,
    "paths": [p.path for p in api.get_paths_info({NAME!r}, ["README.md"], revision="v1")],
    "file": said(lambda: hf_hub_download({NAME!r}, "nothing.json")),
    "repository": said(lambda: hf_hub_download("acme/nothing", "x.json")),
    "revision": said(lambda: hf_hub_download({NAME!r}, "x.json", revision="nowhere")),
}}))
"""
PYTHONS = [pytest.param("", id="newest"), *[
    pytest.param(version, marks=pytest.mark.skipif(not venvs.are_wanted(), reason="older clients: make test-hub"))
    for version in venvs.HUBS
]]  # fmt: skip


@pytest.mark.parametrize("version", PYTHONS)
def test_a_client_gets_repositories_of_the_upstream(relaying: RelayingServer, tmp_path: Path, version: str) -> None:
    python = venvs.hub_python(version) if version else Path(sys.executable)
    assert python is not None, "make test-hub brings it"
    results, live = relaying.python(python, SCRIPT, tmp_path), relaying.live
    assert results["snapshot"] == clients.checksums(live.files[0])
    assert (results["commit"], results["tag"], results["paths"]) == (*live.commits, ["README.md"])
    assert (results["repository"], results["revision"]) == ("RepositoryNotFoundError", "RevisionNotFoundError")
    assert results["file"] in ("EntryNotFoundError", "RemoteEntryNotFoundError")


def test_relayed_bytes_have_ranges_and_are_not_executed_by_a_browser(relaying: RelayingServer) -> None:
    with relaying.http() as client:
        part = client.get(f"/{NAME}/resolve/canary/part%2Fone/README.md", headers={"Range": "bytes=2-5"})
        assert (part.status_code, part.content) == (206, (CARD * 2)[2:6])
        assert client.get(f"/{NAME}/resolve/refs%2Fheads%2Fcanary/{NESTED}").content == CARD * 2
        assert "sandbox" in part.headers["content-security-policy"]
        assert (part.headers["x-content-type-options"], part.headers["cache-control"]) == ("nosniff", "no-store")
        head = client.head(f"/{NAME}/resolve/canary/{samples.WEIGHTS}")
        assert (head.status_code, head.headers["x-repo-commit"]) == (200, relaying.live.commits[0])
        response = client.get(f"/{NAME}/resolve/canary/{samples.WEIGHTS}")
    assert response.status_code == 302
    assert httpx.get(response.headers["location"]).content == relaying.live.files[0][samples.WEIGHTS]


def test_a_client_that_keeps_its_token_is_not_redirected_to_the_upstreams_store(relaying: RelayingServer) -> None:
    with relaying.http(RUST) as client:
        refused = client.get(f"/{NAME}/resolve/canary/{samples.WEIGHTS}")
        assert (refused.status_code, "location" in refused.headers) == (501, False)
        assert "token" in refused.headers["x-error-message"]
        assert client.get(f"/{NAME}/resolve/canary/README.md").content == CARD


def test_only_reads_of_unknown_repositories_by_signed_in_actors_are_relayed(relaying: RelayingServer) -> None:
    before = len(relaying.upstream.requests)
    registry = httpx.Client(base_url=relaying.server.url, headers={"Authorization": f"Bearer {relaying.server.token}"})
    nobody = httpx.get(f"{relaying.server.url}/api/models/{NAME}")
    assert (nobody.status_code, nobody.headers["x-error-code"]) == (401, "RepoNotFound")
    wrong = httpx.get(f"{relaying.server.url}/api/models/{NAME}", headers={"Authorization": "Bearer lra_wrong"})
    assert wrong.status_code == 401
    with registry:
        assert registry.post(f"/api/models/{NAME}/commit/main").status_code == 404
        assert registry.get(f"/api/models/{NAME}/auth-check/write").status_code == 404
        assert registry.get(f"/{NAME}/commit/main").status_code == 404
        assert registry.get("/api/models", params={"search": "support"}).json() == []
        assert registry.get("/api/whoami-v2").status_code == 200
        assert registry.get("/api/v1/adapters/acme/support").status_code == 404
        own = registry.post("/api/v1/namespaces", json={"name": "own"})
        assert own.is_success, own.text
        assert registry.get("/api/models/own/nothing").status_code == 404
        further = registry.get(f"/api/models/{NAME}", headers={"Via": f"1.1 proxy, {relays.VIA}"})
        assert (further.status_code, further.headers["x-error-code"]) == (404, "RepoNotFound")
    assert len(relaying.upstream.requests) == before


def test_no_path_and_no_redirect_sends_the_server_anywhere_else(relaying: RelayingServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside, relaying.http() as client:
        address = f"127.0.0.1:{inside.getsockname()[1]}"
        away = f"http://{address}/latest/meta-data"
        relaying.upstream.responses |= {
            "/org/file/resolve/main/x.json": Response(302, b"", {"Location": away, "Set-Cookie": "a=b; Path=/"}),
            "/api/models/org/model": Response(302, b"{}", {"Location": away}),
            "/org/near/resolve/main/x.json": Response(307, b"", {"Location": f"//{address}/x"}),
            "/org/auth/resolve/main/x.json": Response(302, b"", {"Location": f"http://{address}@{address}/x"}),
        }
        for repository in ("file", "near", "auth"):
            led = client.get(f"/org/{repository}/resolve/main/x.json")
            assert led.status_code == 302  # the client's own business: it is handed on, not followed
        client.get("/api/models/org/model")
        for path in (f"//{address}/x", f"/@{address}/resolve/main/x", f"/http:%2F%2F{address}/a/resolve/main/x"):
            client.get(relaying.server.url + path)
        inside.settimeout(0.2)
        with pytest.raises(TimeoutError):
            inside.accept()
    ours = relaying.upstream.url.removeprefix("http://")
    assert {request.headers["Host"] for request in relaying.upstream.requests} == {ours}
    assert not any("Cookie" in request.headers for request in relaying.upstream.requests)


def test_relays_and_redirects_that_loop_end(relaying: RelayingServer, tmp_path: Path) -> None:
    path = "/org/circle/resolve/main/x"
    relaying.upstream.responses[path] = Response(302, b"", {"Location": path})
    before = len(relaying.upstream.requests)
    with relaying.http() as client:
        circle = client.get(path)
    assert (circle.status_code, "circle" in circle.json()["detail"]) == (503, True)
    assert len(relaying.upstream.requests) == before + relays.HOPS_LIMIT + 1

    itself = Server({"REGISTRY_DATA": str(tmp_path)})
    itself.environment["REGISTRY_HUB_UPSTREAM"] = itself.url
    with itself.running():
        response = httpx.get(f"{itself.url}/api/models/org/model", headers={"Authorization": f"Bearer {itself.token}"})
    assert (response.status_code, response.headers["x-error-code"]) == (404, "RepoNotFound")


def test_a_too_large_or_invalid_response_of_the_upstream_gives_503(relaying: RelayingServer) -> None:
    big = itertools.repeat(b" " * 2**20, relays.RESPONSE_LIMIT_BYTES // 2**20 + 4)
    relaying.upstream.responses |= {
        "/api/models/org/big": Response(200, big),
        "/api/models/org/page": Response(502, b"<html>", {"Content-Type": "text/html"}),
        "/api/models/org/deep": Response(200, b"[" * 200_000),
        "/org/odd/resolve/main/x": Response(200, b"{}", {"Content-Length": "2, 2", "X-Linked-Size": "-1"}),
        "/api/models/org/short": Response(200, b'{"id": "o', length=500),
        "/api/models/org/gated": Response(401, b'{"error": "ask"}', {"X-Error-Code": "GatedRepo"}),
        "/api/models/org/xet": Response(200, b'{"xetEnabled": true, "siblings": [{"rfilename": "a", "xetHash": "b"}]}'),
    }
    with relaying.http() as client:
        for name in ("big", "page", "deep", "short"):
            response = client.get(f"/api/models/org/{name}")
            assert response.status_code == 503, name
            assert "upstream Hub" in response.headers["x-error-message"]
        assert client.head("/org/odd/resolve/main/x").status_code == 200
        gated = client.get("/api/models/org/gated")
        assert (gated.status_code, gated.headers["x-error-code"]) == (403, "GatedRepo")
        xet = client.get("/api/models/org/xet").json()
        assert xet == {"xetEnabled": False, "siblings": [{"rfilename": "a"}]}


@pytest.mark.security
def test_an_upstream_that_stops_in_the_middle_of_bodies_delays_no_other_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "SECONDS", 2 * WAIT_SECONDS)
    monkeypatch.setattr(relays, "AT_ONCE", THREADS)
    path, begun, goes_on = "/slow/model/resolve/main/config.json", threading.Semaphore(0), threading.Event()
    late: list[str] = []

    def body() -> Iterator[bytes]:
        yield b"{"
        begun.release()
        if not goes_on.wait(WAIT_SECONDS):
            late.append(path)
        yield b"}"

    class Bodies:
        def __iter__(self) -> Iterator[bytes]:
            return body()

    with Upstream() as upstream, Harness(f"sqlite:///{tmp_path}/r.db", hub_upstream=upstream.url) as harness:
        upstream.responses[path] = Response(200, Bodies())
        with ThreadPoolExecutor(THREADS) as pool:
            responses = [pool.submit(send, harness, "GET", path, harness.secret) for _ in range(THREADS)]
            try:
                for _ in range(RELAY_THREADS):
                    assert begun.acquire(timeout=WAIT_SECONDS)
                    assert harness.admin.whoami()
            finally:
                goes_on.set()
            assert [response.result().content for response in responses] == [b"{}"] * THREADS
            assert late == [], "a request waited for the upstream"


@pytest.mark.security
def test_a_body_counts_as_memory_while_the_upstream_is_asked(tmp_path: Path) -> None:
    used: list[int] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            used.append(sum(budget.used_bytes for budget in budgets))
            yield b"[]"

    path, body = "/api/models/org/model/paths-info/main", "paths=README.md"
    with Upstream() as upstream, Harness(f"sqlite:///{tmp_path}/r.db", hub_upstream=upstream.url) as harness:
        upstream.responses[path] = Response(200, Body())
        budgets = (harness.app.state.body_budget, harness.app.state.unchecked_budget)
        assert send(harness, "POST", path, harness.secret, content=body).json() == []
        assert (used, [budget.used_bytes for budget in budgets]) == ([len(body)], [0, 0])


@pytest.mark.usefixtures("live")
def test_an_unreachable_upstream_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {"REGISTRY_DATA": str(tmp_path), "REGISTRY_HUB_UPSTREAM": f"http://127.0.0.1:{port}"}
    with Server(environment).running() as server:
        signed_in = {"Authorization": f"Bearer {server.token}"}
        away = httpx.get(f"{server.url}/api/models/org/model", headers=signed_in)
        assert (away.status_code, "does not respond" in away.headers["x-error-message"]) == (503, True)
        assert httpx.get(f"{server.url}/api/v1/whoami", headers=signed_in).status_code == 200


def test_the_number_of_requests_that_wait_for_the_upstream_is_bounded() -> None:
    upstream = relays.Upstream("http://127.0.0.1:9")

    turns = [upstream.turn() for _ in range(relays.AT_ONCE)]
    for turn in turns:
        turn.__enter__()
    with pytest.raises(Unavailable, match="8 requests wait"), upstream.turn():
        pass
    turns[0].__exit__(None, None, None)
    with upstream.turn():
        pass


@pytest.mark.parametrize(
    "url", ["ftp://hub.example", "hub.example", "https://u:p@hub.example", "https://hub.example/hf"]
)
def test_an_upstream_must_be_the_root_of_a_host(url: str) -> None:
    with pytest.raises(Invalid, match="REGISTRY_HUB_UPSTREAM"):
        relays.Upstream(url)
