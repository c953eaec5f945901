"""Fixtures: a database of its own for each test, on SQLite or PostgreSQL, and a Harness on it.

The schema is migrated once per process and then copied or emptied, so that a fresh database costs little. Tests
get SQLite unless their folder's conftest.py asks for both (tests/server, tests/contract).
"""

from __future__ import annotations

import functools
import os
import shutil
import ssl
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from registry.worker.model_process.client import Pool
    from tests import services
    from tests.truth import warm

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # nothing is compiled: a second less for each import of PEFT
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # PEFT asks the Hub about a base when it saves an adapter
_ssl: Any = ssl
_ssl.create_default_context = functools.cache(ssl.create_default_context)  # reading the certificates: 12 ms a client
# httpx waits five seconds by default; on a busy machine an honest response may take longer.
for _step in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _step, 120.0)

pytest_plugins = ["tests.order"]


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the newest schema, to be copied."""
    from registry.server.database import schema
    from registry.server.database.engine import open_database
    from registry.server.settings import Settings
    from tests import dialects

    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    engine = open_database(Settings(database_url=f"sqlite:///{path}"))
    schema.prepare(engine)
    dialects.share(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    from tests import services

    with services.postgres_url() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: str) -> Iterator[str]:
    """A PostgreSQL database with the newest schema, emptied before each test; copying it takes longer."""
    from registry.server.database import schema
    from registry.server.database.engine import open_database
    from registry.server.settings import Settings
    from tests import dialects, services

    with services.fresh_database(postgres_server) as url:
        engine = open_database(Settings(database_url=url))
        schema.prepare(engine)
        dialects.share(engine)
        engine.dispose()
        yield url


@pytest.fixture(scope="session")
def store_server() -> Iterator[services.ObjectStore]:
    """A running S3 store (SeaweedFS) and its identities."""
    from tests import services

    with services.seaweedfs() as store:
        yield store


@pytest.fixture(scope="session")
def object_store(store_server: services.ObjectStore) -> Iterator[str]:
    """The endpoint of that store; boto3's environment names its writer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", store_server.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", store_server.secret_key)
        patch.setenv("AWS_REGION", store_server.region)
        yield store_server.endpoint


@pytest.fixture(scope="session")
def bucket(object_store: str) -> str:
    import boto3

    name = f"test-{uuid.uuid4().hex[:16]}"
    boto3.session.Session().client("s3", endpoint_url=object_store).create_bucket(Bucket=name)
    return name


@pytest.fixture
def s3_url(bucket: str) -> str:
    """A place of its own in a bucket of that store, as the setting names it."""
    return f"s3://{bucket}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real base, for workers."""
    from tests.worker import models

    return models.base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def fork_server() -> Iterator[warm.Server]:
    from tests.truth.warm import Server

    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def pool(fork_server: warm.Server) -> Iterator[Pool]:  # noqa: ARG001 - its programs may be forks, so it ends first
    """Model processes for all tests that need a worker: starting one costs some seconds of imports."""
    from registry.worker.model_process.client import Pool

    with Pool() as pool:
        yield pool


@pytest.fixture(scope="module")
def forked_programs(fork_server: warm.Server) -> Iterator[None]:
    """The worker's programs are forks: for modules that start many, and test what they answer, not how they start."""
    with fork_server.starts_programs():
        yield


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


MEMORY, MEMORY_BYTES = Path("/dev/shm"), 2 * 2**30


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder for databases and blobs, in memory where there is space: commits need not wait for a disk."""
    if not os.access(MEMORY, os.W_OK) or shutil.disk_usage(MEMORY).free < MEMORY_BYTES:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="registry-test-", dir=MEMORY) as folder:
        yield Path(folder)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database with the newest schema."""
    if database_kind == "sqlite":
        path = request.getfixturevalue("quick_path") / "registry.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    url = request.getfixturevalue("migrated_postgres")
    _empty(url)
    yield url


def _empty(postgres_url: str) -> None:
    """Nothing of the test before may still work here: whoever is connected is ended first."""
    import psycopg

    from registry.server.database import tables

    children_first = [table.name for table in reversed(tables.metadata.sorted_tables)]
    statements = "; ".join(f'DELETE FROM "{name}"' for name in children_first)
    with psycopg.connect(postgres_url.replace("postgresql+psycopg://", "postgresql://", 1)) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        connection.execute(statements)


@pytest.fixture
def harness(database_url: str) -> Iterator[object]:
    from tests.harness import Harness

    with Harness(database_url) as harness:
        yield harness


@pytest.fixture
def stored_harness(database_kind: str, database_url: str, quick_path: Path) -> Iterator[object]:
    """A Harness with a base. Each database has one of the stores, so that two runs see both of each: what is told
    between the two does not depend on which ones they are."""
    from registry.server.storage.local import LocalBlobs
    from tests.harness import Harness
    from tests.memory_blobs import MemoryBlobs

    blobs = MemoryBlobs() if database_kind == "postgres" else LocalBlobs(quick_path / "blobs")
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness
