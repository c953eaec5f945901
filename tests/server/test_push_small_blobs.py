"""Small blobs come with the commit instead of a request of their own, under the rules of uploads."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from registry.api.transfer import SMALL_BLOB_BYTES, PushPlan, PushRequest, SmallBlob
from registry.client.transfer.push import push_all
from registry.digest import Digest
from registry.errors import Invalid, RegistryError
from registry.server.database.models import BlobRow, VersionRow
from registry.server.storage import references
from registry.server.storage.blobs import BlobWriter, digest_of
from tests import samples
from tests.bulk import commit_body, commit_push, plan_push
from tests.harness import Harness, rows, upload


@pytest.fixture
def filled_harness(harness: Harness) -> Harness:
    harness.add_base()
    return harness


def plan(harness: Harness, files: samples.Files) -> PushPlan:
    return plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))


def send(harness: Harness, plan: PushPlan, files: samples.Files) -> None:
    upload(harness.admin, plan, files)


def small_of(plan: PushPlan, files: samples.Files) -> list[SmallBlob]:
    by_digest = {Digest.of(data): data for data in files.values()}
    return [
        SmallBlob(digest=u.digest, data=base64.b64encode(by_digest[u.digest]).decode())
        for u in plan.uploads
        if u.size_bytes <= SMALL_BLOB_BYTES
    ]


def test_a_commit_may_carry_small_blobs(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    small = small_of(planned, files)
    assert {len(small), len(planned.uploads)} == {2, 3}
    sent = {item.digest for item in small}
    big = planned.model_copy(update={"uploads": [u for u in planned.uploads if u.digest not in sent]})
    send(filled_harness, big, files)
    assert commit_push(filled_harness.admin, planned.push_id, small=small).created
    assert not commit_push(filled_harness.admin, planned.push_id, small=small).created


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda _: {"data": "not base64!"}, "REQUEST_INVALID"),
        (lambda item: {"data": base64.b64encode(b"x" * len(base64.b64decode(item.data))).decode()}, "BLOB_MISMATCH"),
        (lambda item: {"data": base64.b64encode(base64.b64decode(item.data) + b"x").decode()}, "BLOB_MISMATCH"),
        (lambda _: {"digest": Digest.of(b"never asked for")}, "BLOB_UNKNOWN"),
    ],
)
def test_small_blobs_follow_the_rules_of_uploads(filled_harness: Harness, change: Any, code: str) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    first, *others = small_of(planned, files)
    with pytest.raises(RegistryError) as refusal:
        commit_push(filled_harness.admin, planned.push_id, small=[first.model_copy(update=change(first)), *others])
    assert refusal.value.code == code
    with filled_harness.session() as session:
        assert rows(session, VersionRow) == []


def test_a_blob_that_is_not_small_is_refused_in_a_commit(filled_harness: Harness) -> None:
    files = filled_harness.files()
    planned = plan(filled_harness, files)
    small = [{"digest": planned.uploads[0].digest, "data": "A" * (2 * SMALL_BLOB_BYTES)}]
    with pytest.raises(Invalid) as refusal:
        filled_harness.admin.connection.send("POST", "/pushes/commit", json=commit_body(planned.push_id, small=small))
    assert refusal.value.code == "REQUEST_INVALID"


def test_the_size_of_a_blob_is_what_its_commit_measured(filled_harness: Harness) -> None:
    files = filled_harness.files()
    sizes = {Digest.of(data): len(data) for data in files.values()}
    with filled_harness.session(write=True) as session:
        references.reserve(session, dict.fromkeys(sizes, 1))
    filled_harness.push("acme/support", files)
    with filled_harness.session() as session:
        stored_sizes = {row.digest: row.size_bytes for row in rows(session, BlobRow)}
    assert sizes.items() <= stored_sizes.items()


def test_equal_small_blobs_of_a_group_are_written_once(
    filled_harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters of one training script have the same configuration."""
    files = [filled_harness.files(rank=16) for _ in range(3)]
    written: list[str] = []
    open_writer = filled_harness.blobs.open_writer

    def note(key: str, *, limit_bytes: int, is_hashed: bool = False) -> BlobWriter:
        written.append(str(digest_of(key)))
        return open_writer(key, limit_bytes=limit_bytes, is_hashed=is_hashed)

    monkeypatch.setattr(filled_harness.blobs, "open_writer", note)
    folders = [
        (samples.write({**each, "README.md": f"# {number}".encode()}, tmp_path / f"a{number}"), f"acme/a{number}")
        for number, each in enumerate(files)
    ]
    results = push_all(filled_harness.admin, folders)
    filled_harness.transport.settle()
    versions = [result.value.version for result in results if result.value is not None]
    assert len(versions) == 3
    configs = {file.digest for version in versions for file in version.files if file.path == samples.CONFIG}
    cards = {file.digest for version in versions for file in version.files if file.path == "README.md"}
    assert (len(configs), len(cards)) == (1, 3)
    assert [written.count(digest) for digest in (*configs, *cards)] == [1, 1, 1, 1]
    assert {*configs, *cards} <= {digest_of(stat.key) for stat in filled_harness.blobs.list("blobs/")}
