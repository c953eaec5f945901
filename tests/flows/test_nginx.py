"""A server behind nginx with `deploy/nginx.conf` and the rules of docs/deploy.md and docs/hub.md, over TLS.

Skipped where there is no nginx (Debian: nginx-light).
"""

from __future__ import annotations

import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from registry.api.bases import BaseAdd
from registry.client.registry import Registry
from registry.client.transfer.pull import pull
from registry.client.transfer.push import push_folder
from registry.names import AdapterName
from tests import samples
from tests.base_specs import spec_of
from tests.faults.servers import Server
from tests.flows import proxies
from tests.flows.proxies import issue_certificates
from tests.hub import live
from tests.import_table import ROOT

pytestmark = pytest.mark.skipif(proxies.NGINX is None, reason="needs nginx")
NAME = AdapterName.parse("acme/support")
HEAD_SECONDS = 3
COMMIT = "3" * 40
BASE_FILE = b'{"model_type": "qwen3"}'


class Hub(BaseHTTPRequestHandler):
    """Stands for the Hub: one file of one base model, behind a redirect such as the Hub's."""

    protocol_version = "HTTP/1.1"
    heads: ClassVar[list[str]] = []
    """Of the requests that arrived."""

    def do_GET(self) -> None:
        self.heads.append(f"{self.command} {self.path}\n{self.headers}")
        redirected = self.path.startswith("/Qwen/")
        self.send_response(307 if redirected else 200)
        if redirected:
            self.send_header("Location", f"https://huggingface.co/api/resolve-cache/models/Qwen/q/{COMMIT}/config.json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Xet-Hash", "0" * 64)
        self.send_header("ETag", '"base"')
        self.send_header("Content-Length", "0" if redirected else str(len(BASE_FILE)))
        self.end_headers()
        if self.command == "GET" and not redirected:
            self.wfile.write(BASE_FILE)

    do_HEAD = do_GET

    def log_message(self, *_words: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return issue_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    environment = {"REGISTRY_DATA": str(tmp_path / "data"), "REGISTRY_TRUSTED_PROXIES": "127.0.0.1"}
    with Server(environment).running() as running:
        yield running


@pytest.fixture
def hub(certificates: Path) -> Iterator[str]:
    """The address of the server that stands for the Hub."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates / "site.pem", certificates / "site.key")
    Hub.heads.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as stub:
        stub.socket = context.wrap_socket(stub.socket, server_side=True)
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{stub.server_port}"
        stub.shutdown()


@pytest.fixture
def proxy(
    server: Server, hub: str, certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The URL of nginx with the site, and the blocks `location` of the pages in it."""
    blocks = [block for page in ("deploy", "hub") for block in nginx_blocks(page)]
    changes = {
        "client_header_timeout 20s": f"client_header_timeout {HEAD_SECONDS}s",
        "\tlocation / {": "\n".join([*blocks, "\tlocation / {"]),
    }
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with proxies.nginx(tmp_path / "nginx", server.url, certificates, changes, hub) as url:
        yield url


def nginx_blocks(page: str) -> list[str]:
    blocks = re.findall(r"```nginx\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    assert blocks, f"docs/{page}.md shows no rule of nginx"
    return blocks


@pytest.mark.parametrize("path", ["", "/registry"])
def test_pushes_pulls_and_events_pass_through_the_proxy(path: str, proxy: str, server: Server, tmp_path: Path) -> None:
    base = samples.llama("smollm2", hidden=512)
    files = samples.lora(base, rank=64)
    folder = samples.write(files, tmp_path / "out")
    assert sum(len(data) for data in files.values()) > 2**20, "nginx forwards 1 MiB by default"
    with Registry(proxy + path, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
        pushed = push_folder(registry, folder, NAME, base="smollm2")
        pulled = pull(registry, "acme/support:main", tmp_path / "served")
    assert pulled.digest == pushed.version.digest
    assert {name: (tmp_path / "served" / name).read_bytes() for name in files} == files
    headers = {"Authorization": f"Bearer {server.token}"}
    with httpx.stream("GET", f"{proxy}{path}/api/v1/events/stream", headers=headers) as stream:
        assert next(line for line in stream.iter_lines() if line.startswith("data:"))


HUB_CLIENT = """
import json, pathlib, sys
from huggingface_hub import HfApi, hf_hub_download
api, out = HfApi(), pathlib.Path(sys.argv[1])
api.create_repo("acme/support", private=True)
commit = api.upload_folder(repo_id="acme/support", folder_path=out)
read = {path.name: pathlib.Path(hf_hub_download("acme/support", path.name)).read_bytes() == path.read_bytes()
        for path in out.iterdir()}
base = pathlib.Path(hf_hub_download("Qwen/q", "config.json")).read_text()
print(json.dumps({"url": str(commit.commit_url), "read": read, "base": base}))
"""


@pytest.mark.parametrize("without_xet", ["", "1"])
def test_a_client_of_the_hub_pushes_through_the_proxy_and_reads_base_models_of_the_hub(
    without_xet: str, proxy: str, server: Server, tmp_path: Path
) -> None:
    base = samples.llama("smollm2", hidden=512)
    with Registry(proxy, server.token) as registry:
        registry.add_base(BaseAdd(spec=spec_of(base)))
    folder = samples.write(samples.lora(base, rank=64), tmp_path / "out")
    environment = {"HF_ENDPOINT": proxy, "HF_TOKEN": server.token, "HF_HUB_DISABLE_XET": without_xet}
    done = live.run_client([sys.executable, "-c", HUB_CLIENT, folder], tmp_path, **environment)
    result = live.last_line(done)
    assert set(result["read"].values()) == {True}
    assert result["base"] == BASE_FILE.decode()
    assert result["url"].startswith(f"{proxy}/acme/support/")
    assert any(head.startswith("GET /api/resolve-cache/") for head in Hub.heads)
    assert not [head for head in Hub.heads if re.search(rf"(?i)^(authorization|cookie):|{server.token}", head, re.M)]
    assert httpx.post(f"{proxy}/api/models/Qwen/q/commit/main", json={}).status_code == 403


def test_a_head_that_is_too_large_or_too_slow_does_not_reach_the_server(proxy: str) -> None:
    large = httpx.get(f"{proxy}/livez", headers={"X-Large": "x" * 9000})
    assert (large.status_code, "nginx" in large.text) == (400, True)
    context, port = ssl.create_default_context(), int(proxy.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as slow,
    ):
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: registry\r\nX-Slow: ")
        assert slow.recv(1) == b"", "the connection is still open"
