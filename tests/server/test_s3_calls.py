"""How many S3 calls a push makes, and how wrong entries of the staging cache are noticed."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.client import push
from registry.digest import Digest
from registry.errors import NotFound
from registry.names import AdapterName
from registry.server.storage.blobs import key_of, staging_key_of
from registry.server.storage.s3 import uploads
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from tests import forge
from tests.world import World

DATA = bytes(range(256)) * 64
DIGEST = Digest.of(DATA)
STAGED = staging_key_of("psh_one", DIGEST)
MIB = 2**20


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def blobs(s3_url: str, object_store: str) -> S3Blobs:
    store = S3Blobs.from_url(s3_url, endpoint=object_store)
    store._direct_from_bytes = 2**10
    if not store.capabilities.checksum_parts:
        pytest.skip("this store has no checksum parts")
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
def world(database_url: str, blobs: S3Blobs) -> Iterator[World]:
    with World(database_url, blobs=blobs) as world:
        world.add_base()
        yield world


def test_a_push_makes_few_calls_besides_those_that_move_bytes(world: World, calls: list[str], tmp_path: Path) -> None:
    push.push_folder(world.admin, forge.write(world.files(), tmp_path / "first"), AdapterName("acme", "first"))
    world.transport.settle()
    calls.clear()
    files = {name: data for name, data in world.files(rank=16).items() if name in (forge.CONFIG, forge.WEIGHTS)}
    push.push_folder(world.admin, forge.write(files, tmp_path / "adapter"), AdapterName("acme", "support"))
    world.transport.settle()
    counts = Counter(calls)
    # The weights: begin and marker; list, marker and complete. The configuration: put, head of its final key, copy.
    # Reads are of the inspection. Afterwards: list the staged keys, delete two of them, write a record.
    assert counts - Counter({"GetObject": counts["GetObject"]}) == Counter(
        CreateMultipartUpload=1, ListParts=1, CompleteMultipartUpload=1, PutObject=4, HeadObject=1, CopyObject=1,
        ListObjectsV2=1, DeleteObject=2,
    )  # fmt: skip
    assert counts["GetObject"] <= 5


def test_a_file_is_sent_in_parts_from_the_configured_size_on(blobs: S3Blobs) -> None:
    assert not blobs._has_parts(uploads.PARTS_FROM_BYTES_WITH_CHECKSUM_PARTS - 1)
    assert blobs._has_parts(uploads.PARTS_FROM_BYTES_WITH_CHECKSUM_PARTS)
    blobs._capabilities = dataclasses.replace(blobs.capabilities, checksum_parts=False)
    assert blobs._has_parts(uploads.PARTS_FROM_BYTES)
    assert not blobs._has_parts(uploads.PARTS_FROM_BYTES - 1)
    chosen = S3Blobs(blobs.bucket, parts_from_bytes=5 * MIB)
    assert chosen._has_parts(5 * MIB)


def test_a_cached_entry_is_dropped_when_another_server_deleted_the_object(blobs: S3Blobs) -> None:
    blobs.put(STAGED, [DATA], limit_bytes=len(DATA))
    S3Blobs(blobs.bucket).delete(STAGED)
    with pytest.raises(NotFound):
        blobs.promote(STAGED, DIGEST)
    assert blobs.stat(key_of(DIGEST)) is None
    assert blobs.stat(STAGED) is None
    blobs.put(STAGED, [DATA], limit_bytes=len(DATA))
    S3Blobs(blobs.bucket).delete(STAGED)
    with pytest.raises(NotFound):
        blobs.read(STAGED, 0, 10)
    assert blobs.stat(STAGED) is None


def test_two_servers_share_one_upload_and_either_completes_it(blobs: S3Blobs) -> None:
    other = S3Blobs(blobs.bucket)
    other._direct_from_bytes = blobs._direct_from_bytes
    first, second = (
        blobs.presign_upload(STAGED, len(DATA), seconds=60),
        other.presign_upload(STAGED, len(DATA), seconds=60),
    )
    assert first is not None
    assert second is not None
    assert httpx.URL(first.url).params["uploadId"] == httpx.URL(second.url).params["uploadId"]
    pages = blobs.bucket.list_pages("list_multipart_uploads", Prefix="")
    assert len([upload for page in pages for upload in page.get("Uploads", ())]) == 1
    assert httpx.put(first.url, content=DATA, headers=first.headers).status_code == 200
    for store in (other, blobs, other):
        stat = store.stat(STAGED)
        assert stat is not None
        assert (stat.size_bytes, stat.digest) == (len(DATA), DIGEST)
    assert b"".join(blobs.open(STAGED)) == DATA


def test_an_upload_that_another_server_aborted_is_begun_again(blobs: S3Blobs) -> None:
    first = blobs.presign_upload(STAGED, len(DATA), seconds=60)
    S3Blobs(blobs.bucket).delete(STAGED)
    assert blobs.stat(STAGED) is None
    second = blobs.presign_upload(STAGED, len(DATA), seconds=60)
    assert first is not None
    assert second is not None
    assert httpx.put(first.url, content=DATA, headers=first.headers).status_code == 404
    assert httpx.put(second.url, content=DATA, headers=second.headers).status_code == 200
    assert blobs.stat(STAGED) is not None


def test_a_marker_whose_response_was_lost_is_found_and_its_upload_used(
    blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Bucket.put

    def write_but_fail_the_condition(self: Bucket, key: str, data: bytes, **parameters: Any) -> bool:
        put(self, key, data, **parameters)
        return "IfNoneMatch" not in parameters  # the response to a retry whose first attempt arrived

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "put", write_but_fail_the_condition)
        link = blobs.presign_upload(STAGED, len(DATA), seconds=60)
    assert link is not None
    assert httpx.put(link.url, content=DATA, headers=link.headers).status_code == 200
    assert blobs.stat(STAGED) is not None
