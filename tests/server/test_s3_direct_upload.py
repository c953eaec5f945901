"""Direct uploads: no byte is copied, and a push can use only bytes that it has sent."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.api.transfer import PushPlan, PushRequest, Upload
from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import Conflict, Invalid, Unavailable
from registry.names import AdapterName
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import key_of, staging_key_of
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from tests import maintenance, samples
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, rows, send_blob

NAME = AdapterName("acme", "support")
SMALL_BYTES = 2**10
DATA = bytes(range(256)) * 64
DIGEST = Digest.of(DATA)
STAGED = staging_key_of("psh_one", DIGEST)


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def blobs(s3_url: str, object_store: str) -> S3Blobs:
    store = S3Blobs.from_url(s3_url, endpoint=object_store)
    store._direct_from_bytes = SMALL_BYTES
    if not store.capabilities.checksum_parts:
        pytest.skip("this store has no checksum parts")
    return store


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the bucket, in order."""
    operations: list[str] = []
    call = Bucket.call

    def record(self: Bucket, operation: str, **parameters: Any) -> Any:
        operations.append(f"{operation} {parameters.get('Key', '')}")
        return call(self, operation, **parameters)

    monkeypatch.setattr(Bucket, "call", record)
    return operations


def put(upload: Any, body: bytes) -> int:
    return httpx.put(upload.url, content=body, headers=upload.headers).status_code


def plan(harness: Harness, files: samples.Files, name: AdapterName = NAME) -> tuple[PushPlan, Upload]:
    """Return the plan and its upload of the weights."""
    push_plan = plan_push(harness.admin, name, PushRequest(manifest=harness.manifest(files)))
    return push_plan, next(u for u in push_plan.uploads if u.digest == Digest.of(files[samples.WEIGHTS]))


def open_uploads(blobs: S3Blobs) -> list[str]:
    pages = blobs.bucket.list_pages("list_multipart_uploads", Prefix="")
    return [upload["Key"] for page in pages for upload in page.get("Uploads", ())]


def test_weights_become_a_blob_without_a_copy(
    harness: Harness, blobs: S3Blobs, tmp_path: Path, operations: list[str]
) -> None:
    files = harness.files()
    weights = Digest.of(files[samples.WEIGHTS])
    pushed = push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), NAME)
    assert pushed.created
    assert not [line for line in operations if line.startswith("copy_object")]
    assert b"".join(blobs.open(key_of(weights))) == files[samples.WEIGHTS]
    assert open_uploads(blobs) == []
    pull.pull(harness.admin, str(NAME), tmp_path / "out", cache=None)
    assert (tmp_path / "out" / samples.WEIGHTS).read_bytes() == files[samples.WEIGHTS]


def test_a_direct_upload_takes_only_its_bytes_and_is_invisible_before_the_commit(
    harness: Harness, blobs: S3Blobs
) -> None:
    files = harness.files()
    push_plan, upload = plan(harness, files)
    right = files[samples.WEIGHTS]
    assert put(upload, right[:-1] + b"?") in (400, 403)
    assert httpx.put(upload.url, content=right).status_code == 403
    with pytest.raises(Conflict) as incomplete:
        commit_push(harness.admin, push_plan.push_id)
    assert incomplete.value.code == "UPLOAD_INCOMPLETE"
    assert put(upload, right) == 200
    assert blobs.stat(key_of(upload.digest)) is None


def test_a_push_that_sent_nothing_cannot_use_an_existing_blob(harness: Harness, blobs: S3Blobs, tmp_path: Path) -> None:
    files = harness.files()
    _, upload = plan(harness, files)
    push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), NAME)
    other = staging_key_of("psh_other", upload.digest)
    link = blobs.presign_upload(other, upload.size_bytes, seconds=60)
    assert link is not None
    # The link does not depend on whether another push has sent the bytes.
    assert (httpx.URL(link.url).path, sorted(httpx.URL(link.url).params)) == (
        httpx.URL(upload.url).path,
        sorted(httpx.URL(upload.url).params),
    )
    assert blobs.stat(other) is None
    blobs.delete(other)
    assert blobs.stat(other) is None
    assert b"".join(blobs.open(key_of(upload.digest))) == files[samples.WEIGHTS]


def test_a_commit_that_died_between_marker_and_completion_continues(
    blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = blobs.presign_upload(STAGED, len(DATA), seconds=60)
    assert put(link, DATA) == 200
    call = Bucket.call

    def die_at_completion(self: Bucket, operation: str, **parameters: Any) -> Any:
        if operation == "complete_multipart_upload":
            raise Unavailable("STORE_UNAVAILABLE", "gone")
        return call(self, operation, **parameters)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "call", die_at_completion)
        with pytest.raises(Unavailable):
            blobs.stat(STAGED)
    stat = blobs.stat(STAGED)
    assert stat is not None
    assert (stat.size_bytes, stat.digest) == (len(DATA), DIGEST)
    fresh = S3Blobs(blobs.bucket)  # a server that was started meanwhile
    assert fresh.read(STAGED, 3, 5) == DATA[3:8]
    fresh.promote(STAGED, DIGEST)
    fresh.delete(STAGED)
    assert b"".join(fresh.open(key_of(DIGEST))) == DATA


def test_a_direct_upload_repairs_a_damaged_blob(blobs: S3Blobs) -> None:
    blobs.bucket.put(key_of(DIGEST), b"damaged")
    link = blobs.presign_upload(STAGED, len(DATA), seconds=60)
    assert put(link, DATA) == 200
    blobs.promote(STAGED, DIGEST, replace=True)
    assert b"".join(blobs.open(key_of(DIGEST))) == DATA


def test_planning_again_continues_the_same_upload_and_asks_only_for_missing_bytes(harness: Harness) -> None:
    files = harness.files()
    first, upload = plan(harness, files)
    again, same = plan(harness, files)
    assert (again.push_id, httpx.URL(same.url).params["uploadId"]) == (
        first.push_id,
        httpx.URL(upload.url).params["uploadId"],
    )
    assert put(same, files[samples.WEIGHTS]) == 200
    third = plan_push(harness.admin, NAME, PushRequest(manifest=harness.manifest(files)))
    assert upload.digest not in [u.digest for u in third.uploads]


def test_gc_aborts_an_abandoned_direct_upload(harness: Harness, blobs: S3Blobs) -> None:
    files = harness.files()
    _, upload = plan(harness, files)
    assert len(open_uploads(blobs)) == 1
    with harness.session(write=True) as session:
        for row in rows(session, PushRow):
            row.expires_at -= timedelta(days=30)
            session.add(row)
        session.commit()
    maintenance.collect(harness)
    assert (list(blobs.list("staging/")), open_uploads(blobs)) == ([], [])
    assert put(upload, files[samples.WEIGHTS]) == 404


def test_without_the_capability_bytes_are_staged_and_copied(harness: Harness, blobs: S3Blobs, tmp_path: Path) -> None:
    blobs._capabilities = dataclasses.replace(blobs.capabilities, checksum_parts=False)
    files = harness.files()
    _, upload = plan(harness, files)
    assert "/staging/" in upload.url
    assert push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), NAME).created


def test_a_malformed_adapter_sent_by_direct_upload_is_rejected_and_collected(harness: Harness, blobs: S3Blobs) -> None:
    files = {**harness.files(), samples.WEIGHTS: b"\xff" * (2 * SMALL_BYTES)}
    push_plan, upload = plan(harness, files)
    for each in push_plan.uploads:
        body = next(data for data in files.values() if Digest.of(data) == each.digest)
        send_blob(harness.admin, each, body)
    with pytest.raises(Invalid):
        commit_push(harness.admin, push_plan.push_id)
    with harness.session(write=True) as session:
        for row in rows(session, PushRow):
            row.expires_at -= timedelta(days=30)
            session.add(row)
        session.commit()
    maintenance.collect(harness)
    assert blobs.stat(key_of(upload.digest)) is None
