"""How many S3 calls a push makes, and how wrong entries of the staging cache are noticed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from registry.api.transfer import SMALL_BLOB_BYTES, PushRequest
from registry.client.registry import Registry
from registry.client.transfer import push
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound
from registry.names import AdapterName
from registry.server.app import create_app
from registry.server.database import db
from registry.server.database.models import BlobRow
from registry.server.database.models.pushes import PushRow
from registry.server.push import commit as server_commit
from registry.server.push import received
from registry.server.storage.blobs import digest_of, key_of, staging_key_of
from registry.server.storage.s3 import direct_upload, uploads
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.signed_puts import SignedPuts
from registry.server.storage.s3.store import S3Blobs
from registry.server.storage.states import BlobState
from tests import maintenance, samples
from tests.bulk import commit_push, plan_push
from tests.harness import URL, Harness, rows, send_blob, upload
from tests.httpx_transports import HttpxInProcess
from tests.hub.commits import Pusher
from tests.hub.xet import XetClient, commit

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
def calls(blobs: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operation of every request that boto3 sends, and `SignedPut` for those that the server signs itself."""
    operations: list[str] = []
    put = SignedPuts.put

    def record(model: Any, **_: Any) -> None:
        operations.append(model.name)

    def put_signed(self: SignedPuts, *args: Any) -> bool:
        operations.append("SignedPut")
        return put(self, *args)

    monkeypatch.setattr(SignedPuts, "put", put_signed)
    for client in (blobs.bucket._internal, blobs.bucket._patient):
        client.meta.events.register("before-call.s3", record)
    return operations


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def test_a_push_makes_few_calls_besides_those_that_move_bytes(
    harness: Harness, calls: list[str], tmp_path: Path
) -> None:
    push.push_folder(harness.admin, samples.write(harness.files(), tmp_path / "first"), AdapterName("acme", "first"))
    harness.transport.settle()
    calls.clear()
    files = {name: data for name, data in harness.files(rank=16).items() if name in (samples.CONFIG, samples.WEIGHTS)}
    push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), AdapterName("acme", "support"))
    harness.transport.settle()
    # The weights: begin and marker; list, marker and complete; the inspection reads them. The configuration: put.
    # Afterwards: list the staged keys, delete the marker, write a record.
    assert Counter(calls) == Counter(
        CreateMultipartUpload=1, ListParts=1, CompleteMultipartUpload=1, PutObject=2, SignedPut=2, GetObject=1,
        ListObjectsV2=1, DeleteObject=1,
    )  # fmt: skip


@pytest.mark.parametrize(("limit_bytes", "reads"), [(received.LIMIT_BYTES, {}), (0, {"GetObject": 1})])
def test_a_push_of_a_small_adapter_writes_each_blob_once(
    harness: Harness, blobs: S3Blobs, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    limit_bytes: int, reads: dict[str, int],
) -> None:  # fmt: skip
    """Weights are inspected as they arrived. They are read if they were displaced, or another process commits."""
    monkeypatch.setattr(received, "LIMIT_BYTES", limit_bytes)
    blobs._direct_from_bytes = direct_upload.FROM_BYTES
    push.push_folder(harness.admin, samples.write(harness.files(), tmp_path / "first"), AdapterName("acme", "first"))
    harness.transport.settle()
    calls.clear()
    files = {name: data for name, data in harness.files(rank=16).items() if name in (samples.CONFIG, samples.WEIGHTS)}
    assert len(files[samples.WEIGHTS]) > SMALL_BLOB_BYTES
    push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), AdapterName("acme", "support"))
    harness.transport.settle()
    # Weights, configuration and record are put. Nothing of this size is staged, so nothing is listed.
    assert Counter(calls) == Counter(SignedPut=3, **reads)
    assert all(b"".join(blobs.open(key_of(Digest.of(data)))) == data for data in files.values())
    assert list(blobs.list("staging/")) == []


def test_a_file_that_adapters_share_is_read_once_in_a_group(
    harness: Harness, blobs: S3Blobs, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_commit, "INSPECTED_AT_ONCE", 1)
    blobs._direct_from_bytes = direct_upload.FROM_BYTES
    push.push_folder(harness.admin, samples.write(harness.files(), tmp_path / "first"), AdapterName("acme", "first"))
    harness.transport.settle()
    calls.clear()
    fleet = []
    for seed in (11, 12, 13):
        files = harness.files(seed=seed)
        small = {name: files[name] for name in (samples.CONFIG, samples.WEIGHTS)}
        fleet.append((samples.write(small, tmp_path / f"m{seed}"), f"acme/m{seed}"))
    assert all(result.value for result in push.push_all(harness.admin, fleet))
    harness.transport.settle()
    # Weights and record of each are put. The configuration was there before: it is looked for and read once.
    assert Counter(calls) == Counter(SignedPut=6, HeadObject=1, GetObject=1)


def test_a_file_that_is_a_whole_xorb_is_copied_within_the_store(harness: Harness, calls: list[str]) -> None:
    pusher = Pusher(harness, harness.issue("push", namespaces=["acme"])[1])
    pusher.create()
    files = harness.files()
    weights = files.pop(samples.WEIGHTS)
    client = XetClient(pusher)
    calls.clear()
    client.upload(weights)
    assert Counter(calls) == Counter(SignedPut=1, CopyObject=1)
    assert commit(pusher, {samples.WEIGHTS: weights}, **files).status_code == 200
    harness.transport.settle()
    assert pusher.send("GET", f"/acme/support/raw/main/{samples.WEIGHTS}").status_code == 200
    assert b"".join(harness.blobs.open(key_of(Digest.of(weights)))) == weights
    assert list(harness.blobs.list("staging/")) == []


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


# ------------------------------------------------------------------ small blobs
@pytest.fixture
def small(harness: Harness, blobs: S3Blobs) -> samples.Files:
    """An adapter whose weights pass through the server."""
    blobs._direct_from_bytes = direct_upload.FROM_BYTES
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
def test_stored_bytes_count_only_for_the_push_that_sent_them(
    harness: Harness, blobs: S3Blobs, small: samples.Files
) -> None:
    """Neither before nor after the commit of the other: the plan requests them all the same."""
    request = PushRequest(manifest=harness.manifest(small))
    owner, thief = (harness.actor("push", "pull", namespaces=[name], name=name) for name in ("acme", "evil"))
    plan, stolen = plan_push(owner, "acme/support", request), plan_push(thief, "evil/copy", request)
    upload(owner, plan, small)
    for _ in range(2):
        with pytest.raises(Conflict) as refusal:
            commit_push(thief, stolen.push_id)
        assert refusal.value.code == "UPLOAD_INCOMPLETE"
        assert len(plan_push(thief, "evil/copy", request).uploads) == len(stolen.uploads) == len(small)
        with pytest.raises(NotFound):
            thief.version("evil/copy")
        commit_push(owner, plan.push_id)
    assert all(blobs.stat(key_of(item.digest)) is not None for item in plan.uploads)


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


@pytest.mark.security
def test_bytes_that_rot_again_before_the_commit_are_not_taken_for_repaired(
    harness: Harness, blobs: S3Blobs, small: samples.Files
) -> None:
    harness.push("acme/support", small)
    weights = key_of(Digest.of(small[samples.WEIGHTS]))
    with harness.session(write=True) as session:
        session.connection().execute(
            update(BlobRow).where(col(BlobRow.digest) == digest_of(weights)).values(state=BlobState.CORRUPT)
        )
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(small)))
    upload(harness.admin, plan, small)
    blobs.bucket.put(weights, bytes(len(small[samples.WEIGHTS])))
    with pytest.raises(Invalid) as mismatch:
        commit_push(harness.admin, plan.push_id)
    assert mismatch.value.code == "BLOB_MISMATCH"
    with harness.session() as session:
        assert [row.digest for row in rows(session, BlobRow) if row.state == "corrupt"] == [digest_of(weights)]
    assert not harness.push("acme/support", small).created
    assert b"".join(blobs.open(weights)) == small[samples.WEIGHTS]
