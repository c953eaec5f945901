"""The database crashes or hangs, the disk is full, a sender stalls."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from sqlalchemy import text

from registry.api.transfer import PushRequest
from registry.client.local.folder import read_folder
from registry.client.transfer import push
from registry.errors import Unavailable
from registry.names import AdapterName
from registry.server.database import db
from registry.server.database.engine import open_database
from registry.versions.manifest import BaseRef
from tests.bulk import plan_push
from tests.faults.deployment import BASE, QUIET, Deployment
from tests.faults.environments import Environments

DeploymentOn = Callable[[str, str], Deployment]
MIB = 2**20


# ------------------------------------------------------------------ the database crashes
def crash_postgres(url: str) -> None:
    """Kill a backend: PostgreSQL then ends all connections and recovers."""
    address = url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(address) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="an external database cannot be killed")
@pytest.mark.parametrize(
    "point", ["push.plan.after_rows@1", "push.hashed@1", "push.before_commit@1", "alias.swapped@2"]
)
def test_a_push_survives_a_crash_of_the_database(deployment_on: DeploymentOn, tmp_path: Path, point: str) -> None:
    deployment = deployment_on("postgres", "local")
    seed = len(deployment.acknowledged)
    name, _, turn = point.partition("@")
    go_on = tmp_path / "go"
    folder = deployment.adapter(f"acme/d{seed}", seed)
    with (
        deployment.server.running(failpoints=f"{name}=wait:{go_on}@{turn}"),
        deployment.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        pushed = pool.submit(push_and_promote, deployment, folder, f"acme/d{seed}")
        wait_for(go_on.with_name("go.reached"))
        crash_postgres(deployment.environment["REGISTRY_DATABASE_URL"])
        go_on.touch()
        pushed.result(180)
        assert deployment.violations(client) == []


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="an external database cannot be killed")
def test_a_silent_database_times_out(deployment_on: DeploymentOn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.server.database.engine.HANG_SECONDS", 0.5)
    engine = open_database(deployment_on("postgres", "local").settings)
    backend = 0
    try:
        with pytest.raises(Unavailable), db.session(engine) as session:
            backend = session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one()
            os.kill(backend, signal.SIGSTOP)
            session.connection().execute(text("SELECT 1"))
        with db.session(engine) as session:
            assert session.connection().execute(text("SELECT pg_backend_pid()")).scalar_one() != backend
    finally:
        os.kill(backend, signal.SIGCONT)
        engine.dispose()


def push_and_promote(deployment: Deployment, folder: Path, name: str) -> None:
    with deployment.client() as client:
        client.promote(name, "canary", deployment.push(client, folder, name), generation=0)


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.01)


# ------------------------------------------------------------------ the disk is full
class Disk:
    """Simulates a full disk: limits the size of the server's files by a soft limit, which can be lifted."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]

    def full_beyond(self, size_bytes: int) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size_bytes, self._hard))

    def free(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))


@pytest.fixture
def deployment(environments: Environments, tmp_path: Path) -> Deployment:
    return Deployment(environments.environment("sqlite", "local"), tmp_path)


def test_a_push_fails_while_the_disk_is_full_for_blobs_and_succeeds_afterwards(deployment: Deployment) -> None:
    with deployment.server.running(), deployment.client(patient=False) as client:
        folder = deployment.adapter("acme/full", 1, rank=256)
        disk = Disk(deployment.server.pid)
        disk.full_beyond(4 * MIB)  # less than the weights, more than the journal of a fresh database
        with pytest.raises(Unavailable) as caught:
            push.push_folder(client, folder, AdapterName("acme", "full"), base=BASE.name)
        assert caught.value.code in ("STORE_UNAVAILABLE", "SERVER_UNREACHABLE")
        assert [adapter.name for adapter in client.adapters().items] == [str(QUIET)]
        disk.free()
        deployment.push(client, folder, "acme/full")
        assert deployment.violations(client) == []
    temporary = (Path(deployment.environment["REGISTRY_DATA"]) / "blobs/tmp").glob("*")
    assert [path for path in temporary if path.stat().st_size > MIB] == []  # a record may be under way at the kill


@pytest.mark.parametrize("free_bytes", [1, 8 * 1024, 64 * 1024])
def test_a_full_disk_under_the_database_damages_nothing(deployment: Deployment, free_bytes: int) -> None:
    data = Path(deployment.environment["REGISTRY_DATA"])
    with deployment.server.running(), deployment.client(patient=False) as client:
        deployment.push(client, deployment.adapter("acme/full", 1, rank=1), "acme/full")
        disk = Disk(deployment.server.pid)
        disk.full_beyond(free_bytes)
        with pytest.raises(Unavailable) as caught:
            for seed in range(100, 130):
                deployment.push(client, deployment.adapter("acme/full", seed, rank=1), "acme/full")
        assert caught.value.code in ("DATABASE_UNAVAILABLE", "STORE_UNAVAILABLE", "SERVER_UNREACHABLE")
        assert client.resolve("acme/full@1").number == 1
        disk.free()
        deployment.push(client, deployment.adapter("acme/full", 200, rank=1), "acme/full")
        assert deployment.all_violations(client) == []
    with sqlite3.connect(data / "registry.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ------------------------------------------------------------------ a sender stalls
@pytest.fixture
def short_deadlines(environments: Environments, tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(environments.environment("sqlite", "local") | {"REGISTRY_STALL_SECONDS": "1"}, tmp_path)
    with deployment.server.running():
        yield deployment


def send_slowly(deployment: Deployment, method: str, path: str, size_bytes: int, first: bytes) -> bytes:
    """Announce a body, send its beginning and then a byte now and then; return the response."""
    parts = urlsplit(deployment.server.url)
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {deployment.server.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {size_bytes}\r\n\r\n"
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=120) as line:
        line.sendall(head.encode() + first)
        done = threading.Event()

        def drip() -> None:
            while not done.wait(0.2):
                try:
                    line.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            received = b""
            while b"\r\n\r\n" not in received or b"request_id" not in received:
                piece = line.recv(10_000)
                if not piece:
                    return received
                received += piece
            return received
        finally:
            done.set()
            dripping.join()


def test_a_json_body_that_stalls_ends_with_408(short_deadlines: Deployment) -> None:
    response = send_slowly(short_deadlines, "POST", "/api/v1/pushes", 1000, b'{"items": ')
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_STALLED" in response
    assert b"connection: close" in response.lower()


@pytest.mark.parametrize("first", [10, 300 * 1024])
def test_an_upload_that_stalls_ends_with_408_and_leaves_nothing(short_deadlines: Deployment, first: int) -> None:
    with short_deadlines.client() as client:
        folder = short_deadlines.adapter("acme/slow", 1)
        base = client.base(BASE.name)
        manifest = read_folder(folder).manifest(BaseRef(name=base.name, fingerprint=base.fingerprint))
        plan = plan_push(client, "acme/slow", PushRequest(manifest=manifest))
        largest = max(plan.uploads, key=lambda upload: upload.size_bytes)
        response = send_slowly(short_deadlines, "PUT", largest.url, largest.size_bytes, b"x" * first)
        assert response.startswith(b"HTTP/1.1 408 ")
        assert b"BODY_STALLED" in response
        short_deadlines.push(client, folder, "acme/slow")
        assert short_deadlines.violations(client) == []
    unfinished = Path(short_deadlines.environment["REGISTRY_DATA"]) / "blobs/tmp"  # records may be written at any time
    assert list(unfinished.glob(f"{largest.digest.short}-*")) == []
