"""The throw-away servers themselves: they come up, keep tests apart, refuse unknown clients, and end afterwards."""

from __future__ import annotations

import hashlib
import socket
from typing import Any
from urllib.parse import urlsplit

import boto3
import psycopg
import pytest
from botocore.client import Config
from botocore.exceptions import ClientError

from tests import services


def _connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1))


def _listens(url: str) -> bool:
    address = urlsplit(url)
    try:
        socket.create_connection((address.hostname, address.port), 2).close()
    except OSError:
        return False
    return True


def test_two_databases_of_one_server_do_not_see_each_other_and_the_server_ends_with_its_block() -> None:
    with services.postgres_url() as server:
        with services.fresh_database(server) as first, services.fresh_database(server) as two:
            with _connect(first) as connection:
                connection.execute("CREATE TABLE note (text text)")
            with _connect(two) as connection:
                row = connection.execute("SELECT to_regclass('note')").fetchone()
            assert row == (None,)
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            _connect(first)
    assert not _listens(server)


def test_a_database_made_from_a_template_starts_with_what_the_template_holds(postgres_server: str) -> None:
    def fill(url: str) -> None:
        with _connect(url) as connection:
            connection.execute("CREATE TABLE note (text text)")
            connection.execute("INSERT INTO note VALUES ('from the template')")

    with services.template_database(postgres_server, fill) as template:
        for _ in range(2):
            with services.fresh_database(postgres_server, template=template) as url, _connect(url) as connection:
                assert connection.execute("SELECT text FROM note").fetchall() == [("from the template",)]
                connection.execute("DELETE FROM note")


def _s3(store: services.ObjectStore, access_key: str, secret_key: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name=store.region,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        config=Config(signature_version="s3v4", retries={"max_attempts": 1}),
    )


def test_the_object_store_keeps_what_the_writer_puts_and_the_reader_may_only_read(
    store_server: services.ObjectStore,
) -> None:
    writer = _s3(store_server, store_server.access_key, store_server.secret_key)
    writer.create_bucket(Bucket="bucket")
    data = b"weights" * 1000
    writer.put_object(Bucket="bucket", Key="a/b", Body=data, ChecksumAlgorithm="SHA256")
    reader = _s3(store_server, store_server.reader_access_key, store_server.reader_secret_key)
    body = reader.get_object(Bucket="bucket", Key="a/b")["Body"].read()
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
    with pytest.raises(ClientError, match="AccessDenied"):
        reader.put_object(Bucket="bucket", Key="a/c", Body=b"no")


def test_the_object_store_refuses_a_wrong_secret(store_server: services.ObjectStore) -> None:
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        _s3(store_server, store_server.access_key, "wrong").list_buckets()
