"""How many S3 calls a push makes, and how wrong entries of the staging cache are noticed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from registry.api.transfer import PushRequest
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.digest import Digest
from registry.errors import Invalid
from registry.names import AdapterName
from registry.server.app import create_app
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import digest_of, key_of
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from registry.server.storage.states import BlobState
from tests import maintenance, samples
from tests.bulk import commit_push, plan_push
from tests.harness import URL, Harness, rows, send_blob, upload
from tests.httpx_transports import HttpxInProcess


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def blobs(s3_url: str, object_store: str) -> S3Blobs:
    store = S3Blobs(Bucket(s3_url, endpoint=object_store), direct_from_bytes=2**20)
    assert all(store.capabilities.values())
    return store


@pytest.fixture
def calls(blobs: S3Blobs) -> list[str]:
    """The operation of every request that boto3 sends."""
    operations: list[str] = []

    def record(model: Any, **_: Any) -> None:
        operations.append(model.name)

    for client in (blobs.bucket._internal, blobs.bucket._patient):
        client.meta.events.register("before-call.s3", record)
    return operations


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def test_a_push_of_a_large_file_makes_few_calls_besides_the_one_that_moves_it(
    harness: Harness, calls: list[str], tmp_path: Path
) -> None:
    push.push_folder(harness.admin, samples.write(harness.files(), tmp_path / "first"), AdapterName("acme", "first"))
    harness.transport.settle()
    calls.clear()
    files = {**harness.files(rank=16), "tokenizer.json": b"{}" + b" " * 2**20}
    push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), AdapterName("acme", "support"))
    harness.transport.settle()
    # The large file: two heads and a copy; list, head and put to end its link. Others, manifest and ref: put.
    moved = Counter(HeadObject=3, CopyObject=1, ListMultipartUploads=1, PutObject=1)
    assert {name: Counter(calls)[name] for name in ("CopyObject", "ListMultipartUploads")} == {
        name: moved[name] for name in ("CopyObject", "ListMultipartUploads")
    }
    assert len(calls) <= moved.total() + 11


# ------------------------------------------------------------------ small blobs
@pytest.fixture
def small(harness: Harness) -> samples.Files:
    """An adapter whose weights pass through the server."""
    return {name: data for name, data in harness.files(rank=16).items() if name in (samples.CONFIG, samples.WEIGHTS)}


def test_another_server_commits_what_this_one_has_received(
    harness: Harness, blobs: S3Blobs, small: samples.Files
) -> None:
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    upload(harness.admin, plan, small)
    assert plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small))).uploads == []
    other = HttpxInProcess(create_app(harness.settings, engine=harness.engine, blobs=S3Blobs(blobs.bucket)))
    with contextlib.closing(other), Registry(URL, harness.secret, other) as registry:
        assert commit_push(registry, plan.push_id).created
        other.settle()


@pytest.mark.security
def test_wrong_bytes_never_reach_the_final_key(harness: Harness, blobs: S3Blobs, small: samples.Files) -> None:
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    for item in plan.uploads:
        for wrong in (b"x" * item.size_bytes, b"x" * (item.size_bytes - 1)):
            with pytest.raises(Invalid):
                send_blob(harness.admin, item, wrong)
    assert list(blobs.list("blobs/")) == list(blobs.list("staging/")) == []


def test_stored_bytes_of_a_push_that_was_never_committed_are_collected(
    harness: Harness, blobs: S3Blobs, small: samples.Files
) -> None:
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    upload(harness.admin, plan, small)
    assert {stat.key for stat in blobs.list("blobs/")} == {key_of(item.digest) for item in plan.uploads}
    maintenance.collect(harness)
    assert len(list(blobs.list("blobs/"))) == len(plan.uploads)
    with harness.session(write=True) as session:
        session.connection().execute(update(PushRow).values(expires_at=db.now()))
    maintenance.collect(harness)
    assert list(blobs.list("blobs/")) == []


def test_a_push_replaces_damaged_bytes_and_notices_when_they_are_lost_again(
    harness: Harness, blobs: S3Blobs, small: samples.Files
) -> None:
    harness.push("acme/support", small)
    weights = key_of(Digest.of(small[samples.WEIGHTS]))
    blobs.bucket.put(weights, b"rotten")
    with harness.session(write=True) as session:
        session.connection().execute(
            update(BlobRow).where(col(BlobRow.digest) == digest_of(weights)).values(state=BlobState.CORRUPT)
        )
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    upload(harness.admin, plan, small)
    assert b"".join(blobs.open(weights)) == small[samples.WEIGHTS]
    blobs.delete(weights)
    assert not commit_push(harness.admin, plan.push_id).created
    again = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    assert [item.digest for item in again.uploads] == [digest_of(weights)]
    upload(harness.admin, again, small)
    assert not commit_push(harness.admin, again.push_id).created
    with harness.session() as session:
        assert {row.state for row in rows(session, BlobRow)} == {"live"}
    assert b"".join(blobs.open(weights)) == small[samples.WEIGHTS]
