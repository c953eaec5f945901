"""Uploads that lie: about digest, size, owner and what was asked for. Nothing of them is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.digest import Digest
from registry.server.storage.blobs import BlobStore
from registry.server.storage.local import LocalBlobs
from tests import samples
from tests.bad_inputs.raw_push import RawClient, reasons
from tests.bulk import PUSHES, push_body
from tests.harness import Harness
from tests.memory_blobs import MemoryBlobs

pytestmark = pytest.mark.security


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryBlobs() if request.param == "memory" else LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def harness(database_url: str, store: BlobStore) -> Iterator[Harness]:
    with Harness(database_url, blobs=store) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def client(harness: Harness) -> RawClient:
    return RawClient(harness)


@pytest.fixture
def planned(client: RawClient) -> dict[str, Any]:
    files = client.harness.files()
    upload = next(u for u in client.plan(files).json()["uploads"] if u["digest"] == Digest.of(files[samples.WEIGHTS]))
    return {"data": files[samples.WEIGHTS], "url": upload["url"], "files": files}


def test_bytes_that_hash_to_something_else_are_refused(client: RawClient, planned: dict[str, Any]) -> None:
    bent = bytes([planned["data"][0] ^ 1]) + planned["data"][1:]
    response = client.ask("PUT", planned["url"], content=bent)
    assert (response.status_code, response.json()["code"]) == (422, "BLOB_MISMATCH")
    assert reasons(response) == {"blob.digest_mismatch"}
    assert_nothing_kept(client)


def test_a_length_that_differs_from_the_plan_is_refused_before_the_body(
    client: RawClient, planned: dict[str, Any]
) -> None:
    for data in (planned["data"][:-1], planned["data"] + b"x"):
        response = client.ask("PUT", planned["url"], content=data)
        assert (response.status_code, response.json()["code"]) == (422, "BLOB_MISMATCH")
        assert reasons(response) == {"blob.size_mismatch"}
    assert_nothing_kept(client)


def test_a_body_without_a_length_is_refused_unread(client: RawClient, planned: dict[str, Any]) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(10_000):
            sent += 2**16
            yield bytes(2**16)

    response = client.ask("PUT", planned["url"], content=endless())
    assert (response.status_code, response.json()["code"], sent) == (411, "LENGTH_REQUIRED", 0)
    assert_nothing_kept(client)


@pytest.mark.parametrize("size_bytes", [100, 2**20])
def test_another_body_than_its_length_says_is_refused(
    client: RawClient, planned: dict[str, Any], size_bytes: int
) -> None:
    """Over a socket the length ends the body. In this process it does not."""
    headers = {"Content-Length": str(len(planned["data"]))}
    response = client.ask("PUT", planned["url"], content=iter([bytes(size_bytes)]), headers=headers)
    assert (response.status_code, response.json()["code"]) in ((422, "BLOB_MISMATCH"), (413, "SIZE_INVALID"))
    assert_nothing_kept(client)


def test_a_blob_that_was_not_requested_is_refused(client: RawClient, planned: dict[str, Any]) -> None:
    for digest in (Digest.of(b"x").hex, "abc", "A" * 64, "a" * 64 + "%0a"):
        url = planned["url"].replace(Digest.of(planned["data"]).hex, digest)
        response = client.ask("PUT", url, content=planned["data"])
        assert (response.status_code, response.json()["code"]) == (403, "LINK_INVALID")
    assert_nothing_kept(client)


def test_a_manifest_that_lies_about_a_size_does_not_become_a_version(client: RawClient) -> None:
    client.harness.push("acme/other", client.harness.files())
    files = client.harness.files()
    manifest = client.manifest(files)
    manifest["files"][0]["size_bytes"] += 1
    planned = client.plan_manifest(manifest)
    for upload in planned.json()["uploads"]:
        data = next(d for d in files.values() if Digest.of(d) == upload["digest"])
        client.ask("PUT", upload["url"], content=data)
    response = client.commit(planned)
    assert (response.status_code, response.json()["code"]) == (422, "UPLOAD_INCOMPLETE")


def test_a_known_blob_with_another_size_is_requested_again_and_then_refused(client: RawClient) -> None:
    files = client.harness.files()
    client.harness.push("acme/other", files)
    manifest = client.manifest(files)
    manifest["files"][-1]["size_bytes"] += 1
    planned = client.plan_manifest(manifest).json()
    assert [u["digest"] for u in planned["uploads"]] == [manifest["files"][-1]["digest"]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "REQUEST_INVALID"),
        (b"{", 400, "REQUEST_INVALID"),
        (b"[]", 400, "REQUEST_INVALID"),
        (b'{"items": [{"name": "acme/x", "manifest": 5}]}', 400, "REQUEST_INVALID"),
        (b"\xff\xfe", 400, "REQUEST_INVALID"),
        (b'{"items":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "REQUEST_INVALID"),
        (b" " * (9 * 2**20), 413, "SIZE_INVALID"),
    ],
)
def test_a_plan_that_cannot_be_read_is_refused(refusing: RawClient, body: bytes, status: int, code: str) -> None:
    response = refusing.ask("POST", PUSHES, content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"schema_version": 2},
        {"media_type": "text/plain"},
        {"files": []},
        {"annotations": {"a": 1}},
        {"parents": [{"relation": "child", "digest": "sha256:" + "0" * 64}]},
        {"parents": [{"relation": "merged", "digest": "0" * 64}]},
        {"base": {"name": "../x", "fingerprint": "sha256:" + "0" * 64}},
        {"annotations": {"a": "\ud800"}},
    ],
)
def test_a_manifest_that_breaks_its_shape_is_refused(refusing: RawClient, change: dict[str, object]) -> None:
    manifest = refusing.manifest(refusing.harness.files()) | change
    body = json.dumps(push_body("acme/support", manifest)).encode()
    response = refusing.ask("POST", PUSHES, content=body, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500, response.text
    assert response.json()["code"] in ("REQUEST_INVALID", "MANIFEST_INVALID", "NAME_INVALID")


def assert_nothing_kept(client: RawClient) -> None:
    store = client.harness.blobs
    assert list(store.list("blobs/")) == []
    assert list(store.list("blobs/")) == []
    if isinstance(store, LocalBlobs):
        assert not list((store.root / "tmp").glob("*"))
