"""Links of a bucket that need no headers and are bound to no digest: what arrives by them is never trusted."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from registry.digest import Digest
from registry.server.storage.blobs import any_key_of, key_of
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs

PUSH = "hub_0123456789abcdef"
PART_BYTES = 5 * 2**20
DATA = b"a part of a large file " * (6 * 2**20 // 23)


@pytest.fixture
def blobs(s3_url: str, object_store: str) -> S3Blobs:
    return S3Blobs(Bucket(s3_url, endpoint=object_store), parts_from_bytes=PART_BYTES, part_bytes=PART_BYTES)


def test_parts_without_headers_become_one_blob(blobs: S3Blobs) -> None:
    digest, size_bytes = Digest.of(DATA), len(DATA)
    for _ in range(2):  # asked again, all parts have links again
        upload = blobs.presign_any(PUSH, digest, size_bytes, seconds=60, owner="")
        assert upload is not None
        assert (upload.key, upload.part_bytes, len(upload.urls)) == (any_key_of(PUSH, digest), PART_BYTES, 2)
        for url, start in zip(upload.urls, (0, PART_BYTES), strict=True):
            assert httpx.put(url, content=DATA[start : start + PART_BYTES]).status_code == 200
    assert blobs.stat(upload.key) is None
    blobs.complete_parts(upload.key, size_bytes)
    stat = blobs.stat(upload.key)
    assert stat is not None
    assert (stat.size_bytes, stat.digest) == (size_bytes, None)
    copy = blobs.snapshot(stat)
    assert copy.key != upload.key
    blobs.promote(copy.key, digest)
    assert hashlib.sha256(b"".join(blobs.open(key_of(digest)))).hexdigest() == digest.hex


@pytest.mark.security
def test_bytes_that_come_again_by_such_a_link_do_not_change_the_copy(blobs: S3Blobs) -> None:
    data = b"small"
    upload = blobs.presign_any(PUSH, Digest.of(data), len(data), seconds=60, owner="")
    assert upload is not None
    assert httpx.put(upload.urls[0], content=data).status_code == 200
    stat = blobs.stat(upload.key)
    assert stat is not None
    copy = blobs.snapshot(stat)
    assert httpx.put(upload.urls[0], content=b"other").status_code == 200
    assert (stat.digest, b"".join(blobs.open(copy.key))) == (None, data)
