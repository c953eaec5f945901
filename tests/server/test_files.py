"""Bytes out: ranges, HEAD, revalidation, and who may read what; from a store with paths and one without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.digest import Digest
from registry.server.routes.transfer import pulls
from registry.server.storage.blobs import BlobStore, key_of, write_blob
from registry.server.storage.local import LocalBlobs
from tests import samples
from tests.harness import URL, Harness
from tests.memory_blobs import MemoryBlobs

FILE = f"/api/v1/adapters/acme/support/versions/1/files/{samples.WEIGHTS}"


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryBlobs() if request.param == "memory" else LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def harness(database_url: str, store: BlobStore) -> Iterator[Harness]:
    with Harness(database_url, blobs=store) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def files(harness: Harness) -> samples.Files:
    files = harness.files()
    harness.push("acme/support", files)
    return files


def ask(harness: Harness, path: str, method: str = "GET", secret: str | None = None, **headers: str) -> httpx.Response:
    client = httpx.Client(transport=harness.transport, base_url=URL)
    default_headers = {"Authorization": f"Bearer {harness.secret if secret is None else secret}"}
    return client.request(method, path, headers=default_headers | {k.replace("_", "-"): v for k, v in headers.items()})


def test_a_file_has_its_digest_as_etag_and_is_not_executed_by_a_browser(harness: Harness, files: samples.Files) -> None:
    response = ask(harness, FILE)
    assert (response.status_code, response.content) == (200, files[samples.WEIGHTS])
    assert response.headers["etag"] == f'"{Digest.of(response.content)}"'
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"].startswith("attachment")
    assert "immutable" in response.headers["cache-control"]
    assert "immutable" not in ask(harness, FILE.replace("/1/", "/main/")).headers["cache-control"]


@pytest.mark.parametrize(
    ("range_header", "first", "last"),
    [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=-7", -7, None), ("bytes=9-", 9, None)],
)
def test_a_range_returns_those_bytes(
    harness: Harness, files: samples.Files, range_header: str, first: int, last: int | None
) -> None:
    response = ask(harness, FILE, Range=range_header)
    assert (response.status_code, response.content) == (206, files[samples.WEIGHTS][first:last])
    assert response.headers["content-range"].endswith(f"/{len(files[samples.WEIGHTS])}")


def test_a_range_beyond_the_end_is_416(harness: Harness, files: samples.Files) -> None:
    assert ask(harness, FILE, Range=f"bytes={len(files[samples.WEIGHTS])}-").status_code == 416


@pytest.mark.parametrize("odd", ["bytes=0-0,2-2,4-4", "lines=1-2", "bytes=x", "bytes=5-1,3-4"])
def test_a_range_that_is_not_one_plain_range_is_ignored(harness: Harness, files: samples.Files, odd: str) -> None:
    response = ask(harness, FILE, Range=odd)
    assert (response.status_code, response.content) == (200, files[samples.WEIGHTS])


def test_head_returns_the_length_without_a_body(harness: Harness, files: samples.Files) -> None:
    response = ask(harness, FILE, "HEAD")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-length"] == str(len(files[samples.WEIGHTS]))


@pytest.mark.usefixtures("files")
def test_a_matching_etag_gives_304(harness: Harness) -> None:
    etag = ask(harness, FILE).headers["etag"]
    again = ask(harness, FILE, If_None_Match=etag)
    assert (again.status_code, again.content) == (304, b"")


def test_a_stale_if_range_gets_the_whole_file(harness: Harness, files: samples.Files) -> None:
    response = ask(harness, FILE, Range="bytes=0-9", If_Range='"sha256:other"')
    assert (response.status_code, response.content) == (200, files[samples.WEIGHTS])


@pytest.mark.usefixtures("files")
def test_an_absent_file_and_a_hidden_adapter_are_both_not_found(harness: Harness) -> None:
    absent = ask(harness, FILE.replace(samples.WEIGHTS, "LICENSE"))
    assert (absent.status_code, absent.json()["code"]) == (404, "BLOB_UNKNOWN")
    _, outsider = harness.issue("pull", namespaces=["other"])
    hidden = ask(harness, FILE, secret=outsider)
    missing = ask(harness, FILE.replace("support", "nothing"), secret=outsider)
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["code"] == missing.json()["code"] == "ADAPTER_UNKNOWN"
    assert hidden.headers["content-length"] == str(len(hidden.content))


@pytest.mark.usefixtures("files")
def test_a_yanked_version_is_read_by_number_and_no_longer_by_alias(harness: Harness) -> None:
    harness.admin.yank("acme/support@1", "bad data")
    assert ask(harness, FILE).status_code == 200
    by_alias = ask(harness, FILE.replace("/1/", "/main/"))
    assert (by_alias.status_code, by_alias.json()["code"]) == (422, "YANKED")


def test_a_report_is_read_through_its_version_only(harness: Harness, files: samples.Files) -> None:
    harness.validate("acme/support@1")
    digest = next(v.report for v in harness.admin.version("acme/support@1").verdicts if v.report)
    assert harness.admin.report("acme/support@1", digest).measurements == {"largest_difference": 0.25}
    harness.push("acme/other")
    for path in (f"acme/other/versions/1/reports/{digest}", f"acme/support/versions/1/reports/{Digest.of(b'x')}"):
        response = ask(harness, f"/api/v1/adapters/{path}")
        assert (response.status_code, response.json()["code"]) == (404, "BLOB_UNKNOWN")
    weights = Digest.of(files[samples.WEIGHTS])
    assert ask(harness, f"/api/v1/adapters/acme/support/versions/1/reports/{weights}").status_code == 404


def test_a_missing_blob_is_reported_as_damaged(harness: Harness, files: samples.Files) -> None:
    key = key_of(Digest.of(files[samples.WEIGHTS]))
    data = harness.blobs.read(key, 0, 10**9)
    harness.blobs.delete(key)
    response = ask(harness, FILE)
    assert (response.status_code, response.json()["code"]) == (500, "DIGEST_MISMATCH")
    write_blob(harness.blobs, key, [data], limit_bytes=len(data))


def test_a_slow_reader_needs_little_memory(tmp_path: Path) -> None:
    """There may be hundreds of slow readers."""
    (tmp_path / "file").write_bytes(bytes(3 * 2**20))
    sizes: list[int] = []

    async def send(message: Any) -> None:
        sizes.append(len(message.get("body", b"")))

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    response = pulls.FileRangeResponse(tmp_path / "file", 0, 3 * 2**20, 200, {})
    asyncio.run(response({"type": "http", "method": "GET"}, receive, send))
    assert sum(sizes) == 3 * 2**20
    assert max(sizes) <= pulls.READ_BYTES
