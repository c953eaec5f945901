"""Nothing that a client can write into the store is read as the server's own note, and no bytes count unhashed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from registry.api.maintenance import GcRequest
from registry.api.transfer import PushPlan, PushRequest
from registry.digest import Digest
from registry.errors import Invalid, NotFound, RegistryError
from registry.server.database.models import BlobRow
from registry.server.database.models.pushes import PushRow
from registry.server.push import inspect
from registry.server.storage.blobs import key_of, staging_key_of
from registry.server.storage.s3 import store as s3_store
from registry.server.storage.s3 import uploads
from registry.server.storage.s3.bucket import CHECKSUM_HEADER, checksum_of
from registry.server.storage.s3.capabilities import Capabilities
from registry.server.storage.s3.direct_upload import marker_key_of
from registry.server.storage.s3.store import S3Blobs
from registry.server.storage.s3.uploads import MultipartUpload
from registry.server.storage.states import BlobState, PushState
from registry.versions.manifest import Manifest
from tests import samples
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, send_blob
from tests.stub_bucket import StoredObject, StubBucket

pytestmark = pytest.mark.security

CEPH = Capabilities(
    ranges=True, copies=True, conditional=True, conditional_copy=False, checksums=False, signed_puts=False,
    links=True, signed_headers=False, checksum_links=False, conditional_links=True, parts=True, checksum_parts=False,
)  # fmt: skip
"""What the probe finds at a store that keeps metadata which nobody signed."""
MIB = 2**20


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def stub() -> S3Blobs:
    store = S3Blobs(StubBucket())
    store._capabilities = CEPH
    store._direct_from_bytes = 1
    return store


@pytest.fixture
def stub_harness(database_url: str, stub: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=stub) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def real(s3_url: str, object_store: str) -> S3Blobs:
    store = S3Blobs.from_url(s3_url, endpoint=object_store)
    store._direct_from_bytes = 1
    return store


@pytest.fixture
def real_harness(database_url: str, real: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=real) as harness:
        harness.add_base()
        yield harness


def send(url: str, data: bytes, headers: dict[str, str]) -> int:
    return httpx.put(url, content=data, headers=headers).status_code


def forge_markers(
    harness: Harness, store: S3Blobs, capabilities: Capabilities, put: Callable[[str, bytes, dict[str, str]], int]
) -> PushPlan:
    """Plan a push of bytes that only another tenant has, and send zeros with forged metadata through each link."""
    store._capabilities = dataclasses.replace(capabilities, links=False, signed_headers=False)
    harness.push("acme/support", files := harness.files())
    store._capabilities = capabilities
    thief = harness.actor("push", "pull", namespaces=["evil"])
    plan = plan_push(thief, "evil/copy", PushRequest(manifest=harness.manifest(files)))
    assert len(plan.uploads) == len(files)
    for upload in plan.uploads:
        if not upload.url.startswith("http"):
            continue
        note = {"upload": "forged", "arrived": "yes", "size": str(upload.size_bytes)}
        forged = {f"x-amz-meta-{name}": value for name, value in note.items()}
        put(upload.url, bytes(upload.size_bytes), {**upload.headers, **forged})
    with pytest.raises(RegistryError) as refusal:
        commit_push(thief, plan.push_id)
    assert refusal.value.code in ("BLOB_MISMATCH", "UPLOAD_INCOMPLETE")
    with pytest.raises(RegistryError):
        thief.version("evil/copy")
    return plan


def test_a_forged_marker_is_not_read_by_a_store_that_keeps_unsigned_metadata(
    stub_harness: Harness, stub: S3Blobs
) -> None:
    bucket: Any = stub.bucket
    plan = forge_markers(stub_harness, stub, dataclasses.replace(CEPH, signed_headers=True), bucket.send)
    assert {upload.url.split("/")[2] for upload in plan.uploads} == {"store.invalid"}


def test_no_link_to_write_is_given_where_unsigned_headers_are_kept(stub_harness: Harness, stub: S3Blobs) -> None:
    bucket: Any = stub.bucket
    plan = forge_markers(stub_harness, stub, CEPH, bucket.send)
    assert all(upload.url.startswith("/api/") for upload in plan.uploads)
    assert stub.presign_parts(staging_key_of(plan.push_id, plan.digest), 2**30, seconds=60) is None


def test_a_forged_marker_is_not_read_by_a_real_store(real_harness: Harness, real: S3Blobs) -> None:
    capabilities = dataclasses.replace(
        real.capabilities, signed_headers=True, checksums=False, checksum_links=False, checksum_parts=False
    )
    forge_markers(real_harness, real, capabilities, send)


def test_the_probe_sees_whether_unsigned_headers_are_refused(real: S3Blobs) -> None:
    """Metadata proves nothing, but with the other header a link would copy a blob of another tenant."""
    victim, key = key_of(Digest.of(b"private")), staging_key_of("psh_one", Digest.of(b"private"))
    real.bucket.put(victim, b"private")
    upload = MultipartUpload.begin(real.bucket, key)
    links = (
        real.bucket.presign("put_object", 60, internal=True, Key=key),
        real.bucket.presign("upload_part", 60, internal=True, Key=key, UploadId=upload.id, PartNumber=1),
    )
    source = f"/{real.bucket.name}/{real.bucket.prefix}{victim}"
    forged = ({"x-amz-meta-upload": "forged"}, {"x-amz-copy-source": source})
    statuses = [send(link, b"", headers) for link in links for headers in forged]
    assert real.capabilities.signed_headers is all(400 <= status < 500 for status in statuses)
    if real.capabilities.signed_headers:
        assert real.bucket.head(key) is None
        assert upload.list_parts() == {}


def test_no_link_leads_to_the_key_of_a_marker(real: S3Blobs) -> None:
    key = marker_key_of(staging_key_of("psh_one", Digest.of(b"right")))
    assert real.presign_upload(key, 5, seconds=60) is None
    assert real.presign_upload(key, 64 * MIB, seconds=60) is None
    assert real.presign_parts(key, 2 * 2**30, seconds=60) is None


@pytest.mark.parametrize("ranges", [False, True])
def test_bytes_that_replace_the_hashed_ones_are_not_promoted(
    real_harness: Harness, real: S3Blobs, monkeypatch: pytest.MonkeyPatch, ranges: bool
) -> None:
    """A client has written again between the hash of its bytes and their promotion."""
    if ranges:
        monkeypatch.setattr(s3_store, "COPY_LIMIT_BYTES", 5 * MIB)
    real._parts_from_bytes = real._part_bytes = 5 * MIB
    real._capabilities = dataclasses.replace(
        real.capabilities, checksums=False, checksum_parts=False, signed_headers=True
    )
    base = samples.llama()
    rank_1_bytes, rank_2_bytes = (len(samples.lora(base, rank=rank)[samples.WEIGHTS]) for rank in (1, 2))
    files = samples.lora(base, rank=6 * MIB // (rank_2_bytes - rank_1_bytes), seed=7)
    weights = files[samples.WEIGHTS]
    by_digest = {Digest.of(data): data for data in files.values()}
    plan = plan_push(real_harness.admin, "acme/support", PushRequest(manifest=real_harness.manifest(files)))
    for upload in plan.uploads:
        data = by_digest[upload.digest]
        for part in upload.parts:
            assert send(part.url, data[part.start : part.start + part.size_bytes], {}) == 200
        if not upload.parts:
            send_blob(real_harness.admin, upload, data)
    staged = staging_key_of(plan.push_id, Digest.of(weights))
    inspect_files = inspect.inspect_files

    def replace_first(blobs: S3Blobs, keys: dict[Digest, str], manifest: Manifest, *args: Any, **options: Any) -> Any:
        inspected = inspect_files(blobs, keys, manifest, *args, **options)
        real.bucket.put(staged, b"x" * len(weights))
        return inspected

    with monkeypatch.context() as patch:
        patch.setattr(inspect, "inspect_files", replace_first)
        assert commit_push(real_harness.admin, plan.push_id).created
    assert b"".join(real.open(key_of(Digest.of(weights)))) == weights
    real_harness.transport.settle()
    assert {stat.size_bytes for stat in real.list("staging/")} <= {0}, "what keeps links from writing again"


@pytest.mark.parametrize("operation", ["copy_object", "get_object"])
def test_bytes_with_the_same_etag_do_not_take_the_place_of_the_hashed_ones(
    stub_harness: Harness, stub: S3Blobs, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    """Others are staged before the commit copies what it hashes, or afterwards. ETags are MD5: they can collide."""
    stub._capabilities = dataclasses.replace(CEPH, signed_headers=True)
    monkeypatch.setattr(StoredObject, "etag", '"equal"')
    bucket: Any = stub.bucket
    files = stub_harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    plan = plan_push(stub_harness.admin, "acme/support", PushRequest(manifest=stub_harness.manifest(files)))
    for upload in plan.uploads:
        assert bucket.send(upload.url, by_digest[upload.digest], upload.headers) == 200
    staged = staging_key_of(plan.push_id, Digest.of(files[samples.WEIGHTS]))

    def replace_staged(called: str, key: str) -> None:
        if called == operation and key.startswith("staging/") and key.endswith(staged[-64:]):
            bucket.objects[staged] = StoredObject(bytes(len(files[samples.WEIGHTS])))

    bucket.on_call = replace_staged
    if operation == "get_object":
        assert commit_push(stub_harness.admin, plan.push_id).created
        assert b"".join(stub.open(key_of(Digest.of(files[samples.WEIGHTS])))) == files[samples.WEIGHTS]
    else:
        with pytest.raises(Invalid) as refusal:
            commit_push(stub_harness.admin, plan.push_id)
        assert refusal.value.code == "BLOB_MISMATCH"
        assert stub.stat(key_of(Digest.of(files[samples.WEIGHTS]))) is None
    assert [stat.key for stat in stub.list("staging/") if stat.key.count("/") > 2] == []


def test_a_checksum_that_comes_by_a_link_to_any_bytes_proves_nothing(stub_harness: Harness, stub: S3Blobs) -> None:
    """It is right when the commit looks, and the link then replaces the bytes: only a copy that was hashed counts."""
    stub._capabilities = dataclasses.replace(CEPH, signed_headers=True, checksums=True)
    bucket: Any = stub.bucket
    files = stub_harness.files()
    links: dict[Digest, str] = {}
    keys: dict[Digest, str] = {}
    for data in files.values():
        digest = Digest.of(data)
        upload = stub.presign_any("hub_0123456789abcdef", digest, len(data), seconds=60, owner="")
        assert bucket.send(upload.urls[0], data, {CHECKSUM_HEADER: checksum_of(digest)}) == 200
        assert bucket.head(upload.key)["ChecksumSHA256"] == checksum_of(digest), "the store has kept it"
        links[digest], keys[digest] = upload.urls[0], upload.key
    with inspect.verified_blobs(stub, keys, frozenset(), stub_harness.manifest(files)) as verified:
        for digest, stat in verified.items():
            assert bucket.send(links[digest], bytes(stat.size_bytes), {}) == 200
            assert Digest.of(b"".join(stub.open(stat.key))) == digest, "what is promoted"


def test_what_a_commit_hashes_has_no_links(real: S3Blobs) -> None:
    key = f"staging/psh_one/copy-{'0' * 16}/{Digest.of(b'right').hex}"
    assert real.presign_upload(key, 5, seconds=60) is None
    assert real.presign_parts(key, 2 * 2**30, seconds=60) is None


def test_completing_an_upload_aborts_the_others_to_its_key(real: S3Blobs) -> None:
    key, data = staging_key_of("psh_one", Digest.of(b"right")), b"right"
    for upload in [MultipartUpload.begin(real.bucket, key) for _ in range(3)]:
        upload.send_part(data)
    uploads.complete_upload(real.bucket, key, len(data), 5 * MIB)
    pages = real.bucket.list_pages("list_multipart_uploads", Prefix=key)
    assert [upload for page in pages for upload in page.get("Uploads", ())] == []
    assert b"".join(real.open(key)) == data


# ------------------------------------------------------------------ links after the end of their push
def check_that_links_end_with_their_push(
    harness: Harness, store: S3Blobs, put: Callable[[str, bytes, dict[str, str]], int]
) -> None:
    """Neither a link that was used nor one that was not writes after the commit; the keys go when the links have."""
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    request = PushRequest(manifest=harness.manifest(files))
    other = harness.actor("push", "pull", name="other")
    plan, unused = plan_push(harness.admin, "acme/support", request), plan_push(other, "acme/support", request)
    for upload in plan.uploads:
        assert put(upload.url, by_digest[upload.digest], upload.headers) == 200
    version = commit_push(harness.admin, plan.push_id).version
    assert commit_push(other, unused.push_id).version.digest == version.digest
    harness.transport.settle()
    for _ in range(2):
        links = (*plan.uploads, *unused.uploads)
        assert {put(u.url, by_digest[u.digest], u.headers) for u in links} == {412}
        assert {put(u.url, bytes(u.size_bytes), u.headers) for u in links} <= {412, 400}
        assert {stat.size_bytes for stat in store.list("staging/")} == {0}
        assert harness.admin.collect(GcRequest()).staged_deleted == 0
    assert commit_push(harness.admin, plan.push_id).version.digest == version.digest
    harness.transport.settle()
    with harness.session(write=True) as session:
        session.connection().execute(update(PushRow).values(state=PushState.EXPIRED))
    store.bucket.put(staging_key_of(plan.push_id, plan.digest), b"a PUT that ended late")
    assert harness.admin.collect(GcRequest()).staged_deleted == 1
    assert {stat.size_bytes for stat in store.list("staging/")} == {0}


def test_links_end_with_their_push_at_a_store_with_conditional_links(stub_harness: Harness, stub: S3Blobs) -> None:
    stub._capabilities = dataclasses.replace(CEPH, signed_headers=True)
    bucket: Any = stub.bucket
    check_that_links_end_with_their_push(stub_harness, stub, bucket.send)
    bucket.age(timedelta(hours=2))
    assert stub_harness.admin.collect(GcRequest()).staged_deleted > 0
    assert list(stub.list("staging/")) == []


@pytest.mark.parametrize("checksums", [False, True])
def test_links_end_with_their_push_at_a_real_store(real_harness: Harness, real: S3Blobs, checksums: bool) -> None:
    """Also links that are bound to a SHA-256, which could stage the same bytes again."""
    able = real.capabilities
    if not able.conditional_links or (checksums and not able.checksum_links):
        pytest.skip("this store has no such links")
    without = {} if checksums else {"checksums": False, "checksum_links": False}
    real._capabilities = dataclasses.replace(able, signed_headers=True, checksum_parts=False, **without)
    check_that_links_end_with_their_push(real_harness, real, send)


def test_nothing_is_read_from_the_staging_keys_of_an_ended_push(stub_harness: Harness, stub: S3Blobs) -> None:
    """Not even for a damaged blob, nor for a version that was deleted since."""
    stub._capabilities = dataclasses.replace(CEPH, signed_headers=True)
    bucket: Any = stub.bucket
    files = stub_harness.files()
    plan = plan_push(stub_harness.admin, "acme/support", PushRequest(manifest=stub_harness.manifest(files)))
    by_digest = {Digest.of(data): data for data in files.values()}
    for upload in plan.uploads:
        assert bucket.send(upload.url, by_digest[upload.digest], upload.headers) == 200
    commit_push(stub_harness.admin, plan.push_id)
    stub_harness.transport.settle()
    with stub_harness.session(write=True) as session:
        session.connection().execute(update(BlobRow).values(state=BlobState.CORRUPT))
    reads: list[str] = []
    bucket.on_call = lambda operation, key: reads.append(key) if operation in ("head_object", "get_object") else None
    assert not commit_push(stub_harness.admin, plan.push_id).created
    stub_harness.admin.delete_adapter("acme/support")
    with pytest.raises(NotFound):
        commit_push(stub_harness.admin, plan.push_id)
    assert [key for key in reads if key.startswith("staging/")] == []
