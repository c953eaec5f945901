"""Environments of killable servers: SQLite or PostgreSQL, a folder or an S3 store.

with Environments(folder) as environments:
    deployment = Deployment(environments.environment("postgres", "s3"), folder)
"""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path

import boto3
import psycopg
from psycopg import sql

from tests import services
from tests.services import ObjectStore

KINDS = [(database, store) for database in ("sqlite", "postgres") for store in ("local", "s3")]


class Environments(contextlib.ExitStack):
    """Starts each service when it is first needed."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._postgres = ""
        self._store: ObjectStore | None = None

    def environment(self, database: str, store: str, *, endpoint: str = "") -> dict[str, str]:
        """Return the settings of an empty registry. `endpoint`: where to reach the S3 store, by default directly."""
        name = uuid.uuid4().hex[:12]
        settings = {"REGISTRY_DATA": str(self.folder / name)}
        if database == "postgres":
            settings["REGISTRY_DATABASE_URL"] = self.enter_context(services.fresh_database(self.postgres()))
            keep_commits(settings["REGISTRY_DATABASE_URL"])
        if store == "s3":
            settings |= self._bucket(name, endpoint)
        return settings

    def postgres(self) -> str:
        self._postgres = self._postgres or self.enter_context(services.postgres_url())
        return self._postgres

    def object_store(self) -> ObjectStore:
        if self._store is None:
            self._store = self.enter_context(services.seaweedfs())
        return self._store

    def _bucket(self, name: str, endpoint: str) -> dict[str, str]:
        store = self.object_store()
        session = boto3.session.Session(store.access_key, store.secret_key, region_name=store.region)
        session.client("s3", endpoint_url=store.endpoint).create_bucket(Bucket=name)
        return {
            "REGISTRY_BLOBS": f"s3://{name}/data",
            "REGISTRY_S3_ENDPOINT": endpoint or store.endpoint,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_REGION": store.region,
        }


def keep_commits(url: str) -> None:
    """Make commits durable, as in production: the tests' PostgreSQL loses the latest ones in a crash."""
    with psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = on").format(name))
