"""Pushes and pulls whose bytes go directly between client and S3 store, on a real store (SeaweedFS)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.api.transfer import PushPlan, PushRequest
from registry.client.transfer import pull, push
from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.names import AdapterName
from registry.server.database.models import VersionRow
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import key_of
from registry.server.storage.s3.store import S3Blobs
from tests import samples
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, rows
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
    store = S3Blobs.from_url(s3_url, endpoint=object_store, public_endpoint=proxy.endpoint)
    set_capabilities(store, signed_headers=True)  # Ceph does not have it, and would get no links
    store._direct_from_bytes = 1
    return store


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def set_capabilities(blobs: S3Blobs, **capabilities: bool) -> None:
    """Pretend that the probe found these capabilities."""
    blobs._capabilities = dataclasses.replace(blobs.capabilities, **capabilities)


def plan(harness: Harness, files: samples.Files) -> PushPlan:
    return plan_push(harness.admin, NAME, PushRequest(manifest=harness.manifest(files)))


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
    # Small files come with the commit and with the plan of the pull; the weights go directly to the store and back.
    assert (len(proxy.targets("PUT")), len(proxy.targets("GET"))) == (1, 1)
    # A store that verifies parts has them at the final key; in another one (Ceph) they are staged and then copied.
    (target,) = proxy.targets("PUT")
    direct = blobs.capabilities.checksum_parts
    assert ("uploadId=" in target, "/staging/" in target) == (direct, not direct)
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


def test_a_link_accepts_only_the_planned_bytes(harness: Harness, blobs: S3Blobs) -> None:
    if not blobs.capabilities.checksum_links:
        pytest.skip("this store has no checksum links: the next test shows the fallback")
    set_capabilities(blobs, checksum_parts=False)
    files = harness.files()
    for upload in plan(harness, files).uploads:
        wrong = b"x" * upload.size_bytes
        assert put(upload.url, wrong, upload.headers) in (400, 403)
        assert put(upload.url, wrong, {}) == 403
        assert put(upload.url, b"short", upload.headers) in (400, 403)


def test_without_checksums_a_link_writes_once_and_the_server_hashes(harness: Harness, blobs: S3Blobs) -> None:
    set_capabilities(blobs, checksums=False, checksum_links=False, checksum_parts=False)
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    first = plan(harness, files)
    for upload in first.uploads:
        wrong = b"x" * upload.size_bytes
        assert put(upload.url, wrong, upload.headers) == 200
        assert put(upload.url, by_digest[upload.digest], upload.headers) == 412
    # Each commit finds one wrong file and deletes it, so that the right one can be sent.
    for _ in first.uploads:
        with pytest.raises(Invalid) as refusal:
            commit_push(harness.admin, first.push_id)
        assert refusal.value.code == "BLOB_MISMATCH"
        (upload,) = plan(harness, files).uploads
        assert put(upload.url, by_digest[upload.digest], upload.headers) == 200
    assert commit_push(harness.admin, first.push_id).created
    with harness.session() as session:
        assert len(rows(session, VersionRow)) == 1


def test_without_bound_links_bytes_pass_through_the_server(
    harness: Harness, blobs: S3Blobs, proxy: RecordingProxy, tmp_path: Path
) -> None:
    set_capabilities(blobs, checksum_links=False, conditional_links=False, checksum_parts=False, parts=False)
    folder = samples.write(harness.files(), tmp_path / "adapter")
    assert push.push_folder(harness.admin, folder, NAME).created
    assert proxy.targets("PUT") == []
    set_capabilities(blobs, links=False)
    pull.pull(harness.admin, str(NAME), tmp_path / "out", cache=None)
    assert proxy.targets("GET") == []


def test_a_lost_response_does_not_make_a_conditional_link_fail(
    harness: Harness, blobs: S3Blobs, tmp_path: Path
) -> None:
    set_capabilities(blobs, checksums=False, checksum_links=False, checksum_parts=False)
    files = harness.files()
    by_digest = {Digest.of(data): data for data in files.values()}
    links = plan(harness, files).uploads
    for upload in links:
        assert put(upload.url, by_digest[upload.digest], upload.headers) == 200
        source = tmp_path / upload.digest.hex
        source.write_bytes(by_digest[upload.digest])
        with open(source, "rb", buffering=0) as file:  # a client whose first attempt arrived
            sent = harness.admin.connection.send_file(upload.url, file, 0, upload.size_bytes, headers=upload.headers)
        assert sent.status == 200


@pytest.fixture
def in_parts(harness: Harness, blobs: S3Blobs) -> Harness:
    blobs._parts_from_bytes = blobs._part_bytes = 5 * MIB
    return harness


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
    uploads = plan(in_parts, big_files()).uploads
    # Where the store verifies no part (Ceph), only a file in several parts has an upload; others have one PUT.
    multipart = [upload for upload in uploads if upload.parts or blobs.capabilities.checksum_parts]
    assert multipart
    assert blobs.delete_unfinished(timedelta(hours=1)) == 0
    assert blobs.delete_unfinished(timedelta(hours=-1)) == len(multipart)
    assert blobs.delete_unfinished(timedelta(hours=-1)) == 0


def test_health_shows_the_capabilities_of_the_store(harness: Harness) -> None:
    health = harness.admin.health()
    assert health.blobs == "s3"
    assert health.capabilities["parts"] is True


def test_an_unreachable_store_is_probed_again_after_a_pause(s3_url: str, object_store: str) -> None:
    blobs: Any = S3Blobs.from_url(s3_url, endpoint="http://127.0.0.1:9")
    with pytest.raises(Unavailable, match="cannot serve") as caught:
        _ = blobs.capabilities
    assert caught.value.code == "STORE_UNAVAILABLE"
    blobs.bucket = S3Blobs.from_url(s3_url, endpoint=object_store).bucket
    with pytest.raises(Unavailable):
        _ = blobs.capabilities  # too soon
    blobs._probe_again_at = 0.0
    assert blobs.capabilities.ranges


def test_health_shows_that_the_store_is_away(database_url: str, s3_url: str) -> None:
    with Harness(database_url, blobs=S3Blobs.from_url(s3_url, endpoint="http://127.0.0.1:9")) as harness:
        harness.admin.connection.repeats = False  # it would ask for a minute
        with pytest.raises(Unavailable):
            harness.admin.health()
        harness.check = lambda: None  # type: ignore[method-assign]
