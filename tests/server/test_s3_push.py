"""Pushes and pulls whose bytes go directly between client and S3 store, on a real store (SeaweedFS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import update

from registry.api.transfer import PushPlan, PushRequest
from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import Conflict, Invalid, Unavailable
from registry.names import AdapterName
from registry.server.database import db
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import key_of
from registry.server.storage.open import try_store
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from tests import samples
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, rows
from tests.maintenance import collect
from tests.recording_proxy import RecordingProxy

NAME = AdapterName("acme", "support")
MIB = 2**20


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def proxy(object_store: str) -> Iterator[RecordingProxy]:
    """Clients reach the store here; the server reaches it directly."""
    with RecordingProxy(object_store) as proxy:
        yield proxy


@pytest.fixture
def blobs(s3_url: str, object_store: str, proxy: RecordingProxy) -> S3Blobs:
    bucket = Bucket(s3_url, endpoint=object_store, public_endpoint=proxy.endpoint)
    return S3Blobs(bucket, direct_from_bytes=1)


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def manifest_of(harness: Harness, files: samples.Files) -> PushRequest:
    return PushRequest(manifest=harness.manifest(files))


def plan(harness: Harness, files: samples.Files) -> PushPlan:
    return plan_push(harness.admin, NAME, manifest_of(harness, files))


def put(url: str, body: bytes, headers: dict[str, str]) -> int:
    return httpx.put(url, content=body, headers=headers).status_code


def big_files() -> samples.Files:
    """An adapter of about 12 MiB."""
    base = samples.llama()
    rank_1_bytes, rank_2_bytes = (len(samples.lora(base, rank=rank)[samples.WEIGHTS]) for rank in (1, 2))
    return samples.lora(base, rank=12 * MIB // (rank_2_bytes - rank_1_bytes), seed=77)


def test_bytes_go_directly_to_the_store_and_back_without_the_token(
    harness: Harness, blobs: S3Blobs, proxy: RecordingProxy, tmp_path: Path
) -> None:
    files = harness.files()
    folder = samples.write(files, tmp_path / "adapter")
    pushed = push.push_folder(harness.admin, folder, NAME)
    resolved = pull.pull(harness.admin, f"{NAME}@{pushed.version.number}", tmp_path / "out", cache=None)
    assert {f.path: (tmp_path / "out" / f.path).read_bytes() for f in resolved.files} == files
    # Small files come with the plans of the push and the pull; the weights go directly to the store and back.
    assert (len(proxy.targets("PUT")), len(proxy.targets("GET"))) == (1, 1)
    assert "/staging/" in proxy.targets("PUT")[0]
    assert list(blobs.list("blobs/")) != []
    assert not [head for head in proxy.heads if "authorization:" in head.lower() or harness.secret in head]


def test_a_second_push_of_the_same_bytes_sends_none_of_them(
    harness: Harness, proxy: RecordingProxy, tmp_path: Path
) -> None:
    folder = samples.write(harness.files(), tmp_path / "adapter")
    push.push_folder(harness.admin, folder, NAME)
    sent = len(proxy.heads)
    again = push.push_folder(harness.admin, folder, NAME)
    other = push.push_folder(harness.admin, folder, AdapterName("acme", "other"))
    assert (again.created, other.created, len(proxy.heads)) == (False, True, sent)


@pytest.mark.security
def test_a_link_accepts_only_the_planned_bytes_and_only_once(harness: Harness, blobs: S3Blobs) -> None:
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    planned = plan(harness, files)
    for item in planned.uploads:
        right, wrong = by_digest[item.digest], b"x" * item.size_bytes
        assert put(item.url, wrong, item.headers) in (400, 403)
        assert put(item.url, right, {}) == 403
        assert put(item.url, b"short", item.headers) in (400, 403)
        assert put(item.url, right, {**item.headers, "x-amz-meta-note": "mine"}) == 403
        copied = {**item.headers, "x-amz-copy-source": f"/{blobs.bucket.name}/{item.digest.hex}"}
        assert put(item.url, b"", copied) in (400, 403)
        assert [put(item.url, right, item.headers) for _ in range(2)] == [200, 412]
    assert list(blobs.list("blobs/")) == [], "no link leads there"
    assert commit_push(harness.admin, planned.push_id).created
    assert all(b"".join(blobs.open(key_of(digest))) == data for digest, data in by_digest.items())


@pytest.mark.security
def test_a_link_writes_nothing_after_its_push(harness: Harness, blobs: S3Blobs) -> None:
    """It would fill the bucket, and no quota counted it. An empty object keeps it out until it has expired."""
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    first, second = plan(harness, files), plan_push(harness.admin, "acme/other", manifest_of(harness, files))
    for item in first.uploads:
        put(item.url, by_digest[item.digest], item.headers)
    for planned in (first, second):
        with suppress(Conflict):  # the other one has sent nothing
            commit_push(harness.admin, planned.push_id)
    with harness.session(write=True) as session:
        session.connection().execute(update(PushRow).values(expires_at=db.now()))
    harness.transport.settle()
    assert {put(item.url, by_digest[item.digest], item.headers) for item in first.uploads} == {412}
    collect(harness)
    assert {stat.size_bytes for stat in blobs.list("staging/")} <= {0}
    assert {put(item.url, by_digest[item.digest], item.headers) for item in first.uploads} == {412}


@pytest.mark.security
def test_bytes_count_only_for_the_push_that_sent_them(harness: Harness) -> None:
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    owner, thief = (harness.actor("push", "pull", namespaces=[name], name=name) for name in ("acme", "evil"))
    request = manifest_of(harness, files)
    planned, stolen = plan_push(owner, NAME, request), plan_push(thief, "evil/copy", request)
    for item in planned.uploads:
        put(item.url, by_digest[item.digest], item.headers)
    assert commit_push(owner, planned.push_id).created
    with pytest.raises(Conflict) as refusal:
        commit_push(thief, stolen.push_id)
    assert refusal.value.code == "UPLOAD_INCOMPLETE"


class LackingBlobs(S3Blobs):
    """A store without one of the four things."""

    lacking = ""

    @property
    def capabilities(self) -> Mapping[str, bool]:  # type: ignore[override]
        return {**super().capabilities, self.lacking: False}


@pytest.mark.parametrize("lacking", ["conditional_puts", "sha256_checksums", "presigned_links", "ranges"])
def test_all_bytes_of_a_store_that_lacks_something_pass_through_the_server(
    database_url: str, blobs: S3Blobs, proxy: RecordingProxy, tmp_path: Path, lacking: str
) -> None:
    store = LackingBlobs(blobs.bucket, direct_from_bytes=1, parts_from_bytes=5 * MIB, part_bytes=5 * MIB)
    store.lacking = lacking
    files = big_files()
    with Harness(database_url, blobs=store) as harness:
        harness.add_base()
        assert push.push_folder(harness.admin, samples.write(files, tmp_path / "adapter"), NAME).created
        pull.pull(harness.admin, str(NAME), tmp_path / "out", cache=None)
        assert {path: (tmp_path / "out" / path).read_bytes() for path in files} == files
        assert harness.admin.health().capabilities[lacking] is False
    assert proxy.heads == []
    assert f"lacks {lacking.replace('_', ' ')}" in try_store(store, "s3://bucket")


def test_a_lost_response_does_not_make_a_link_fail(harness: Harness, tmp_path: Path) -> None:
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    for item in plan(harness, files).uploads:
        assert put(item.url, by_digest[item.digest], item.headers) == 200
        source = tmp_path / item.digest.hex
        source.write_bytes(by_digest[item.digest])
        with open(source, "rb", buffering=0) as file:  # a client whose first attempt arrived
            sent = harness.admin.connection.send_file(item.url, file, 0, item.size_bytes, headers=item.headers)
        assert sent.status == 200


@pytest.fixture
def in_parts(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    store = S3Blobs(blobs.bucket, direct_from_bytes=1, parts_from_bytes=5 * MIB, part_bytes=5 * MIB)
    with Harness(database_url, blobs=store) as harness:
        harness.add_base()
        yield harness


def test_a_large_file_is_sent_in_parts_and_becomes_one_blob(
    in_parts: Harness, blobs: S3Blobs, proxy: RecordingProxy, tmp_path: Path
) -> None:
    files = big_files()
    pushed = push.push_folder(in_parts.admin, samples.write(files, tmp_path / "adapter"), NAME)
    parts = sorted(target for target in proxy.targets("PUT") if "partNumber=" in target)
    assert len(parts) == 3
    assert b"".join(blobs.open(key_of(Digest.of(files[samples.WEIGHTS])))) == files[samples.WEIGHTS]
    assert pushed.version.verdicts[0].outcome == "warn"  # its rank is over the width
    in_parts.transport.settle()
    assert blobs.delete_unfinished(timedelta(hours=-1)) == 0


def test_a_killed_client_sends_only_the_missing_parts(in_parts: Harness, proxy: RecordingProxy, tmp_path: Path) -> None:
    files = big_files()
    folder = samples.write(files, tmp_path / "adapter")
    weights = files[samples.WEIGHTS]
    (upload,) = [upload for upload in plan(in_parts, files).uploads if upload.parts]
    part = upload.parts[1]
    assert put(part.url, weights[part.start : part.start + part.size_bytes], {}) == 200
    proxy.heads.clear()
    push.push_folder(in_parts.admin, folder, NAME)
    numbers = [part.split("partNumber=")[1].split("&")[0] for part in proxy.targets("PUT") if "partNumber=" in part]
    assert sorted(numbers) == ["1", "3"]


def test_a_push_with_a_missing_or_wrong_part_creates_no_version(in_parts: Harness) -> None:
    files = big_files()
    by_digest = {Digest.of(data): data for data in files.values()}
    first = plan(in_parts, files)
    for upload in first.uploads:
        if not upload.parts:
            put(upload.url, by_digest[upload.digest], upload.headers)
            continue
        for part in upload.parts[1:]:
            put(part.url, b"x" * part.size_bytes, {})
    with pytest.raises(Exception, match="was not uploaded"):
        commit_push(in_parts.admin, first.push_id)
    (last,) = plan(in_parts, files).uploads
    (part,) = last.parts
    assert put(part.url, b"x" * part.size_bytes, {}) == 200
    assert plan(in_parts, files).uploads == []
    with pytest.raises(Invalid) as refusal:
        commit_push(in_parts.admin, first.push_id)
    assert refusal.value.code == "BLOB_MISMATCH"
    assert [u.size_bytes for u in plan(in_parts, files).uploads] == [last.size_bytes]
    assert put(part.url, b"late" * (part.size_bytes // 4), {}) >= 400
    with in_parts.session() as session:
        assert [row.state for row in rows(session, PushRow)] == ["open"]


def test_unfinished_uploads_are_aborted(in_parts: Harness, blobs: S3Blobs) -> None:
    assert [len(item.parts) for item in plan(in_parts, big_files()).uploads if item.parts] == [3]
    assert blobs.delete_unfinished(timedelta(hours=1)) == 0
    assert blobs.delete_unfinished(timedelta(hours=-1)) == 1
    assert blobs.delete_unfinished(timedelta(hours=-1)) == 0


def test_health_shows_the_capabilities_of_the_store(harness: Harness) -> None:
    health = harness.admin.health()
    assert health.blobs == "s3"
    assert health.capabilities == dict.fromkeys(health.capabilities, True)
    assert len(health.capabilities) == 4


def test_an_unreachable_store_is_probed_again(s3_url: str, object_store: str) -> None:
    blobs: Any = S3Blobs.from_url(s3_url, endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="cannot serve") as caught:
        _ = blobs.capabilities
    assert caught.value.code == "STORE_UNAVAILABLE"
    blobs.bucket = S3Blobs.from_url(s3_url, endpoint=object_store).bucket
    assert blobs.capabilities["ranges"]


def test_health_shows_that_the_store_is_away(database_url: str, s3_url: str) -> None:
    with Harness(database_url, blobs=S3Blobs.from_url(s3_url, endpoint="http://127.0.0.1:9")) as harness:
        harness.admin.connection.repeats = False  # it would ask for a minute
        with pytest.raises(Unavailable):
            harness.admin.health()
        harness.check = lambda: None  # type: ignore[method-assign]
