"""The database crashes in the middle, the disk is full, a sender stalls, a look-up goes on while the store is away."""

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

from registry.api.push import PushRequest
from registry.client import push
from registry.client.folder import read_folder
from registry.errors import Unavailable
from registry.manifest import BaseRef
from registry.names import AdapterName
from registry.server.database import db
from registry.server.database.engine import open_database
from tests.faults.places import Places
from tests.faults.stage import BASE, Stage

StageOn = Callable[[str, str], Stage]
MIB = 2**20


# ------------------------------------------------------------------ the database crashes
def crash_postgres(url: str) -> None:
    """A backend that dies by SIGKILL makes PostgreSQL throw out everybody, recover and begin anew."""
    address = url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(address) as connection:
        os.kill(connection.info.backend_pid, signal.SIGKILL)


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="the database is somebody else's")
@pytest.mark.parametrize(
    "point", ["push.plan.after_rows@1", "push.hashed@1", "push.before_commit@1", "alias.swapped@2"]
)
def test_a_push_survives_a_crash_of_the_database(stage_on: StageOn, tmp_path: Path, point: str) -> None:
    stage = stage_on("postgres", "local")
    seed = len(stage.promises)
    name, _, turn = point.partition("@")
    go_on = tmp_path / "go"
    folder = stage.adapter(f"acme/d{seed}", seed)
    with (
        stage.server.running(failpoints=f"{name}=wait:{go_on}@{turn}"),
        stage.client() as client,
        ThreadPoolExecutor(1) as pool,
    ):
        pushed = pool.submit(push_and_promote, stage, folder, f"acme/d{seed}")
        wait_for(go_on.with_name("go.reached"))
        crash_postgres(stage.environment["REGISTRY_DATABASE_URL"])
        go_on.touch()
        pushed.result(180)
        assert stage.violations(client) == []


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="the database is somebody else's")
def test_a_database_that_hangs_is_waited_for_no_longer_than_it_may_take(
    stage_on: StageOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "HANG_SECONDS", 0.5)
    engine = open_database(stage_on("postgres", "local").settings)
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


def push_and_promote(stage: Stage, folder: Path, name: str) -> None:
    with stage.client() as client:
        client.promote(name, "canary", stage.push(client, folder, name), generation=0)


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < limit, f"{path} never came"
        time.sleep(0.01)


# ------------------------------------------------------------------ the disk is full
class Disk:
    """No file of the server may grow beyond a size, as when the disk is full: a soft limit, which can be lifted."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]

    def full_beyond(self, size_bytes: int) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (size_bytes, self._hard))

    def free(self) -> None:
        resource.prlimit(self._pid, resource.RLIMIT_FSIZE, (self._hard, self._hard))


@pytest.fixture
def stage(places: Places, tmp_path: Path) -> Stage:
    return Stage(places.environment("sqlite", "local"), tmp_path)


def test_no_room_for_a_blob_is_said_and_the_push_goes_on_when_there_is(stage: Stage) -> None:
    with stage.server.running(), stage.client(patient=False) as client:
        folder = stage.adapter("acme/full", 1)
        disk = Disk(stage.server.pid)
        disk.full_beyond(MIB)  # less than the weights, more than the journal of a fresh database
        with pytest.raises(Unavailable) as caught:
            push.push_folder(client, folder, AdapterName("acme", "full"), base=BASE.name)
        assert caught.value.code in ("STORE_UNAVAILABLE", "SERVER_UNREACHABLE")
        assert client.adapters().items == []
        disk.free()
        stage.push(client, folder, "acme/full")
        assert stage.violations(client) == []
    assert list((Path(stage.environment["REGISTRY_DATA"]) / "blobs/tmp").glob("*")) == []


@pytest.mark.parametrize("room_bytes", [1, 8 * 1024, 64 * 1024])
def test_no_room_for_the_database_is_said_and_nothing_is_damaged(stage: Stage, room_bytes: int) -> None:
    data = Path(stage.environment["REGISTRY_DATA"])
    with stage.server.running(), stage.client(patient=False) as client:
        stage.push(client, stage.adapter("acme/full", 1, rank=1), "acme/full")
        disk = Disk(stage.server.pid)
        disk.full_beyond(room_bytes)
        with pytest.raises(Unavailable) as caught:
            for seed in range(100, 130):
                stage.push(client, stage.adapter("acme/full", seed, rank=1), "acme/full")
        assert caught.value.code in ("DATABASE_UNAVAILABLE", "STORE_UNAVAILABLE", "SERVER_UNREACHABLE")
        assert client.resolve("acme/full@1").number == 1
        disk.free()
        stage.push(client, stage.adapter("acme/full", 200, rank=1), "acme/full")
        assert stage.all_violations(client) == []
    with sqlite3.connect(data / "registry.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# ------------------------------------------------------------------ a sender stalls
@pytest.fixture
def hurried(places: Places, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(places.environment("sqlite", "local") | {"REGISTRY_STALL_SECONDS": "1"}, tmp_path)
    with stage.server.running():
        yield stage


def send_slowly(stage: Stage, method: str, path: str, size_bytes: int, first: bytes) -> bytes:
    """Promise a body, send its beginning and then a byte now and then; what the server says and that it hangs up."""
    parts = urlsplit(stage.server.url)
    head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {stage.server.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {size_bytes}\r\n\r\n"
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=120) as line:
        line.sendall(head.encode() + first)
        answered = threading.Event()

        def drip() -> None:
            while not answered.wait(0.2):
                try:
                    line.sendall(b"x")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            heard = b""
            while b"\r\n\r\n" not in heard or b"request_id" not in heard:
                piece = line.recv(10_000)
                if not piece:
                    return heard
                heard += piece
            return heard
        finally:
            answered.set()
            dripping.join()


def test_a_json_body_that_stalls_ends_with_408(hurried: Stage) -> None:
    answer = send_slowly(hurried, "POST", "/api/v1/adapters/acme/slow/pushes", 1000, b'{"manifest": ')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"BODY_STALLED" in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("first", [10, 300 * 1024])
def test_an_upload_that_stalls_ends_with_408_and_leaves_nothing(hurried: Stage, first: int) -> None:
    with hurried.client() as client:
        folder = hurried.adapter("acme/slow", 1)
        base = client.base(BASE.name)
        manifest = read_folder(folder).manifest(BaseRef(name=base.name, fingerprint=base.fingerprint))
        plan = client.plan_push("acme/slow", PushRequest(manifest=manifest))
        largest = max(plan.uploads, key=lambda upload: upload.size_bytes)
        answer = send_slowly(hurried, "PUT", largest.url, largest.size_bytes, b"x" * first)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"BODY_STALLED" in answer
        hurried.push(client, folder, "acme/slow")
        assert hurried.violations(client) == []
    assert list((Path(hurried.environment["REGISTRY_DATA"]) / "blobs/tmp").glob("*")) == []
