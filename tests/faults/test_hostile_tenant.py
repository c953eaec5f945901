"""What a signed-in tenant that does its worst costs another one: seconds, and at most a process that starts again.

The process has a memory limit, as in deploy/: whatever is beyond it is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd
from registry.api.maintenance import FsckRequest
from registry.api.operations.operation import MANY_VALUES_LIMIT
from registry.client.registry import Registry
from registry.client.transfer.pull import pull
from registry.client.transfer.push import push_folder
from registry.names import AdapterName
from tests import samples
from tests.base_specs import spec_of
from tests.faults.servers import Server

CONNECTIONS = 24
READ_LIMIT_SECONDS = 5.0
"""How long a read of another tenant may take, beyond the start of a killed process."""
BASE = samples.llama(hidden=256, layers=2)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def memory_limit(server: Server, limit_bytes: int) -> Iterator[None]:
    """Kill the server's first process once it has more memory than this, as the kernel does for a cgroup."""
    pid, end = server.pid, threading.Event()

    def watch() -> None:
        with contextlib.suppress(OSError):
            while not end.wait(0.002):
                if resident_bytes(pid) > limit_bytes:
                    os.kill(pid, 9)
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        end.set()
        watcher.join()


@contextlib.contextmanager
def hostile_requests(url: str, secret: str) -> Iterator[list[int]]:
    """Send large bodies, and ask for long lists, over many connections until the end of the block."""
    end, statuses = threading.Event(), list[int]()
    modules: dict[str, dict[str, str]] = {f"m{n}": {} for n in range(MANY_VALUES_LIMIT // 8)}
    body = json.dumps({"spec": {"name": "evil/base", "modules": modules}}).encode()[: 2**23 - 1]

    def send(number: int) -> None:
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=60) as client:
            while not end.is_set():
                with contextlib.suppress(httpx.HTTPError):
                    if number % 2:
                        response = client.get("/api/v1/adapters", params={"limit": 1000})
                    else:
                        response = client.post("/api/v1/bases", content=body)
                    statuses.append(response.status_code)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        end.set()
        for thread in threads:
            thread.join()


@pytest.mark.security
@pytest.mark.parametrize("more_bytes", [2**30, 40 * 2**20], ids=["within the limit", "beyond the limit"])
def test_another_tenant_waits_for_seconds_and_loses_nothing(tmp_path: Path, more_bytes: int) -> None:
    folder = samples.write(samples.lora(BASE), tmp_path / "out")
    acknowledged: list[int] = []
    slowest = 0.0
    with Server({"REGISTRY_DATA": str(tmp_path / "data")}).running() as server, server.reviving():
        with Registry(server.url, server.token) as admin:
            admin.add_base(BaseAdd(spec=spec_of(BASE)))
            push_folder(admin, folder, AdapterName.parse("acme/first"), base=BASE.name)
            hostile = admin.create_token(TokenCreate(name="evil", scopes=["push"], namespaces=["evil"])).secret
            tenant = admin.create_token(TokenCreate(name="acme", scopes=["push"], namespaces=["acme"])).secret
        with (
            Registry(server.url, tenant) as registry, memory_limit(server, resident_bytes(server.pid) + more_bytes),
            hostile_requests(server.url, hostile) as statuses,
        ):  # fmt: skip
            until = time.monotonic() + 8
            while time.monotonic() < until or not (server.deaths or more_bytes > 2**28):
                started_at = time.monotonic()
                assert registry.version("acme/first@1").number == 1
                slowest = max(slowest, time.monotonic() - started_at)
                name = AdapterName.parse(f"acme/a{len(acknowledged)}")
                with contextlib.suppress(OSError):
                    acknowledged.append(push_folder(registry, folder, name, base=BASE.name).version.number)
        print(f"slowest read {slowest:.2f} s, {server.deaths} deaths, restart {server.restart_seconds:.2f} s, "
              f"{len(acknowledged)} pushes, hostile {({s: statuses.count(s) for s in set(statuses)})}")  # fmt: skip
        with Registry(server.url, server.token) as admin:
            for number in range(len(acknowledged)):
                pull(admin, f"acme/a{number}@1", tmp_path / f"pulled{number}", cache=None)
                for path in folder.iterdir():
                    assert (tmp_path / f"pulled{number}" / path.name).read_bytes() == path.read_bytes()
            assert admin.fsck(FsckRequest(deep=True)).findings == []
    assert server.deaths == (more_bytes < 2**28)
    assert slowest < READ_LIMIT_SECONDS + server.restart_seconds
