"""Garbage collection, checks and re-indexing with a bucket, on a real store (SeaweedFS)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import httpx
import pytest

from registry.digest import Digest
from registry.server.storage.blobs import key_of
from registry.server.storage.s3.store import S3Blobs
from registry.server.storage.s3.uploads import UPLOAD_PART_BYTES
from tests import samples
from tests.harness import Harness
from tests.maintenance import collect, expire, findings, plan, states


@pytest.fixture
def database_kind() -> str:
    return "postgres"


@pytest.fixture
def blobs(s3_url: str, object_store: str) -> S3Blobs:
    return S3Blobs.from_url(s3_url, endpoint=object_store, parts_from_bytes=UPLOAD_PART_BYTES)


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def open_uploads(blobs: S3Blobs) -> list[str]:
    pages = blobs.bucket.list_pages("list_multipart_uploads", Prefix="")
    return [upload["UploadId"] for page in pages for upload in page.get("Uploads", ())]


def test_an_abandoned_push_leaves_no_staged_bytes_and_no_upload(harness: Harness, blobs: S3Blobs) -> None:
    files = harness.files()
    big = {**files, "tokenizer.json": b"[" + b" " * (UPLOAD_PART_BYTES + 5) + b"]"}
    planned = plan(harness, big)
    in_parts = next(upload for upload in planned.uploads if upload.parts)
    httpx.put(in_parts.parts[0].url, content=big["tokenizer.json"][: in_parts.parts[0].size_bytes]).raise_for_status()
    collect(harness)
    assert len(open_uploads(blobs)) == 1
    expire(harness, planned)
    report = collect(harness)
    assert (report.pushes_expired, report.blobs_deleted) == (1, len(big) + 1), "the files and the manifest"
    assert blobs.delete_unfinished(timedelta(hours=-1)) == 1, "`gc` aborts it when it is old"
    assert open_uploads(blobs) == []
    assert states(harness) == {}


def test_damage_in_the_bucket_is_found_and_repaired_by_a_push(harness: Harness, blobs: S3Blobs) -> None:
    files = harness.files()
    harness.push("acme/support", files)
    weights = Digest.of(files[samples.WEIGHTS])
    blobs.bucket.put(key_of(weights), files[samples.WEIGHTS][:-1] + b"!")
    assert findings(harness, deep=False) == []
    assert findings(harness) == [f"blob.damaged {weights}"]
    assert harness.push("acme/support", files).version.damaged == []
    assert findings(harness) == []
