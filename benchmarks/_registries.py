"""Servers for benchmarks/resolve.py: ours with so many adapters, the distribution registry with one tag, and the floor.

Example
    >>> with ours(folder, "sqlite", 1_000) as target:
    ...     target.url, target.paths[0]
    ('http://127.0.0.1:40001', '/api/v1/resolve/bench/a0/prod')
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, inspect, text

from benchmarks import _contenders
from registry.api.access import TokenCreate
from registry.digest import Digest
from registry.server.access import tokens
from registry.server.actors import TRUSTED
from registry.server.database import db
from registry.server.settings import Settings
from tests import services
from tests.harness import Harness

NAMESPACE = "bench"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
FLEET = 200
BATCH = 1_000


@dataclass(frozen=True)
class Target:
    """What is asked: an address, the paths of a fleet, and the headers of each request."""

    url: str
    paths: tuple[str, ...]
    headers: dict[str, str]
    all_paths: tuple[str, ...] = ()


@contextlib.contextmanager
def ours(scratch: Path, database: str, adapters: int) -> Iterator[Target]:
    """`adapter serve` over that many adapters, each with a version, verdicts and the alias prod; a token may pull."""
    folder = scratch / f"{database}-{adapters}"
    with contextlib.ExitStack() as stack:
        url = f"sqlite:///{folder}/registry.db"
        if database == "postgres":
            url = stack.enter_context(services.fresh_database(stack.enter_context(services.postgres_url())))
        settings = Settings(database_url=url, data=str(folder)).with_defaults()
        folder.mkdir(parents=True)
        secret = _fill(url, adapters)
        environment = os.environ | {"REGISTRY_DATA": str(folder), "REGISTRY_DATABASE_URL": settings.database_url}
        environment = {"REGISTRY_LOG_LEVEL": "warning"} | environment  # no line for a request, as the others log none
        command = [*_contenders.ADAPTER, "serve", "--port", "0", "--json"]
        server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        stack.callback(_contenders._end, server)
        address = json.loads(server.stdout.readline())["url"]  # type: ignore[union-attr]
        paths = [f"/api/v1/resolve/{NAMESPACE}/a{number}/prod" for number in range(adapters)]
        step = max(1, adapters // FLEET)
        yield Target(address, tuple(paths[::step][:FLEET]), {"Authorization": f"Bearer {secret}"}, tuple(paths))


def _fill(url: str, adapters: int) -> str:
    """One adapter is pushed for real; the others are copies of its rows. A token's secret comes back."""
    with Harness(url) as harness:
        harness.add_base()
        harness.push(f"{NAMESPACE}/a0")
        harness.validate(f"{NAMESPACE}/a0@1")
        harness.admin.promote(f"{NAMESPACE}/a0", "prod", "1", generation=0)
        with harness.session(write=True) as session:
            view = TokenCreate(name="node", scopes=["pull"], namespaces=[NAMESPACE])
            secret = tokens.issue(session, TRUSTED, view)[1]
        engine = harness.engine
        with db.session(engine) as session:  # once: the copies inherit it, and no maintenance fills it in
            session.connection().execute(text("UPDATE version SET recorded_at = created_at, measured_at = created_at"))
        for start in range(1, adapters, BATCH):
            with db.session(engine) as session:
                _copies(session.connection(), range(start, min(start + BATCH, adapters)))
        with db.bind(engine, write=False).connect() as connection:
            connection.execute(text("ANALYZE"))
    return secret


def _copies(connection: Connection, numbers: range) -> None:
    names = [
        {"id": 10 + n, "name": f"a{n}", "digest": str(Digest.of(str(n).encode()))} for n in numbers
    ]  # ids far from those that exist
    columns = {
        table: [c for c in inspect(connection).get_columns(table) if c["name"] not in ("id",)]
        for table in ("adapter", "version", "verdict", "alias")
    }

    def copy(table: str, keyed: bool, where: str, **own: str) -> None:
        column_names = [c["name"] for c in columns[table]]
        values = [own.get(name, f'"{name}"') for name in column_names]
        into = ", ".join([*(["id"] if keyed else []), *(f'"{name}"' for name in column_names)])
        chosen = ", ".join([*([":id"] if keyed else []), *values])
        connection.execute(text(f'INSERT INTO "{table}" ({into}) SELECT {chosen} FROM "{table}" WHERE {where}'), names)

    copy("adapter", True, f"namespace = '{NAMESPACE}' AND name = 'a0'", name=":name")
    copy("version", True, "id = 1", adapter_id=":id", digest=":digest", recorded_at="created_at")
    column_names = ", ".join(f'"{c["name"]}"' for c in columns["verdict"])
    chosen = column_names.replace('"version_id"', ":id")
    connection.execute(
        text(f"INSERT INTO verdict ({column_names}) SELECT {chosen} FROM verdict WHERE version_id = 1"), names
    )
    copied = "adapter_id = (SELECT adapter_id FROM version WHERE id = 1)"
    copy("alias", False, copied, adapter_id=":id", version_id=":id")


@contextlib.contextmanager
def distribution(scratch: Path) -> Iterator[Target | None]:
    """The distribution registry with one small image under one tag; None where it is not installed."""
    with _contenders.distribution(scratch) as running:
        if running is None:
            yield None
            return
        url = f"http://{running[0]}"
        config = b"{}"
        digest = "sha256:" + hashlib.sha256(config).hexdigest()
        upload_url = _request("POST", f"{url}/v2/bench/a0/blobs/uploads/")
        _request("PUT", f"{upload_url}&digest={digest}", config, "application/octet-stream")
        described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": len(config)}
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described, "layers": []}
        _request("PUT", f"{url}/v2/bench/a0/manifests/prod", json.dumps(manifest).encode(), MANIFEST_TYPE)
        yield Target(url, ("/v2/bench/a0/manifests/prod",), {"Accept": MANIFEST_TYPE})


@contextlib.contextmanager
def bare(body: bytes) -> Iterator[Target]:
    """What is left when nothing is looked up: an ASGI application of two messages on the server that ours runs on."""
    command = [sys.executable, "-m", "benchmarks._bare", str(len(body))]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Target(server.stdout.readline().strip(), ("/",), {})  # type: ignore[union-attr]
    finally:
        _contenders._end(server)


def _request(method: str, url: str, body: bytes = b"", kind: str = "") -> str:
    headers = {"Content-Type": kind} if kind else {}
    request = urllib.request.Request(url, data=body, method=method, headers=headers)
    with urllib.request.urlopen(request) as response:
        return str(response.headers.get("Location", ""))


def installed(program: str) -> bool:
    return subprocess.run(["which", program], capture_output=True, check=False).returncode == 0
