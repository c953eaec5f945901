"""A server behind nginx with the configuration of docs/deploy.md: pushes, pulls and events pass through.

Skipped where there is no nginx (Debian: nginx-light).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

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
from tests.import_table import ROOT
from tests.processes import free_port

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")
CONFIGURATION = """
daemon off;
user root;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""
NAME = AdapterName.parse("acme/support")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server({"REGISTRY_DATA": str(tmp_path / "data")}).running() as running:
        yield running


@pytest.fixture
def proxy(server: Server, tmp_path: Path) -> Iterator[str]:
    """The URL of nginx with the blocks `location` of the page: one at the root, one below a path."""
    blocks = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/deploy.md").read_text(), re.DOTALL)
    locations = "\n".join(blocks).replace("http://127.0.0.1:8080", server.url)
    port = free_port()
    folder = tmp_path / "nginx"
    folder.mkdir()
    (folder / "nginx.conf").write_text(CONFIGURATION.format(port=port, locations=locations))
    command = [str(NGINX), "-p", str(folder), "-e", str(folder / "error.log"), "-c", "nginx.conf"]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        httpx.Client(transport=httpx.HTTPTransport(retries=20)).get(f"{url}/livez").raise_for_status()
        yield url
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("path", ["", "/registry"])
def test_pushes_pulls_and_events_pass_through_the_proxy_of_the_page(
    path: str, proxy: str, server: Server, tmp_path: Path
) -> None:
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
