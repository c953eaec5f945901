"""Bytes out: ranges, HEAD, revalidation, and who may read what; from a store with paths and one without."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry.digest import Digest
from registry.server.http import bodies
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.local import LocalBlobs
from tests import forge
from tests.memory_blobs import MemoryBlobs
from tests.world import URL, World

FILE = f"/api/v1/adapters/acme/support/versions/1/files/{forge.WEIGHTS}"


@pytest.fixture(params=["memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return MemoryBlobs() if request.param == "memory" else LocalBlobs(tmp_path / "blobs")


@pytest.fixture
def database_kind() -> str:
    return "sqlite"


@pytest.fixture
def world(database_url: str, store: BlobStore) -> Iterator[World]:
    with World(database_url, blobs=store) as made:
        made.add_base()
        yield made


@pytest.fixture
def files(world: World) -> forge.Files:
    files = world.files()
    world.push("acme/support", files)
    return files


def ask(world: World, path: str, method: str = "GET", secret: str | None = None, **headers: str) -> httpx.Response:
    client = httpx.Client(transport=world.transport, base_url=URL)
    given = {"Authorization": f"Bearer {world.secret if secret is None else secret}"}
    return client.request(method, path, headers=given | {k.replace("_", "-"): v for k, v in headers.items()})


def test_a_file_has_its_digest_as_etag_and_is_not_executed_by_a_browser(world: World, files: forge.Files) -> None:
    answer = ask(world, FILE)
    assert (answer.status_code, answer.content) == (200, files[forge.WEIGHTS])
    assert answer.headers["etag"] == f'"{Digest.of(answer.content)}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert "immutable" in answer.headers["cache-control"]
    assert "immutable" not in ask(world, FILE.replace("/1/", "/main/")).headers["cache-control"]


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [("bytes=0-0", 0, 1), ("bytes=100-199", 100, 200), ("bytes=-7", -7, None), ("bytes=9-", 9, None)],
)
def test_a_range_returns_those_bytes(
    world: World, files: forge.Files, wanted: str, first: int, last: int | None
) -> None:
    answer = ask(world, FILE, Range=wanted)
    assert (answer.status_code, answer.content) == (206, files[forge.WEIGHTS][first:last])
    assert answer.headers["content-range"].endswith(f"/{len(files[forge.WEIGHTS])}")


def test_a_range_beyond_the_end_is_416(world: World, files: forge.Files) -> None:
    assert ask(world, FILE, Range=f"bytes={len(files[forge.WEIGHTS])}-").status_code == 416


@pytest.mark.usefixtures("files")
def test_very_many_ranges_are_refused_before_they_are_read(world: World) -> None:
    for count in (9, 10_000):
        answer = ask(world, FILE, Range="bytes=" + ",".join(f"{i}-{i}" for i in range(count)))
        assert (answer.status_code, answer.content) == (416, b"")


@pytest.mark.parametrize("odd", ["bytes=0-0,2-2,4-4", "lines=1-2", "bytes=x", "bytes=5-1,3-4"])
def test_a_range_that_is_not_one_plain_range_is_ignored(world: World, files: forge.Files, odd: str) -> None:
    answer = ask(world, FILE, Range=odd)
    assert (answer.status_code, answer.content) == (200, files[forge.WEIGHTS])


def test_head_returns_the_length_without_a_body(world: World, files: forge.Files) -> None:
    answer = ask(world, FILE, "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(files[forge.WEIGHTS]))


@pytest.mark.usefixtures("files")
def test_a_matching_etag_gives_304(world: World) -> None:
    etag = ask(world, FILE).headers["etag"]
    again = ask(world, FILE, If_None_Match=etag)
    assert (again.status_code, again.content) == (304, b"")


def test_a_stale_if_range_gets_the_whole_file(world: World, files: forge.Files) -> None:
    answer = ask(world, FILE, Range="bytes=0-9", If_Range='"sha256:other"')
    assert (answer.status_code, answer.content) == (200, files[forge.WEIGHTS])


@pytest.mark.usefixtures("files")
def test_an_absent_file_and_a_hidden_adapter_are_both_not_found(world: World) -> None:
    absent = ask(world, FILE.replace(forge.WEIGHTS, "LICENSE"))
    assert (absent.status_code, absent.json()["code"]) == (404, "BLOB_UNKNOWN")
    _, outsider = world.issue("pull", namespaces=["other"])
    hidden = ask(world, FILE, secret=outsider)
    missing = ask(world, FILE.replace("support", "nothing"), secret=outsider)
    assert hidden.status_code == missing.status_code == 404
    assert hidden.json()["code"] == missing.json()["code"] == "ADAPTER_UNKNOWN"
    assert hidden.headers["content-length"] == str(len(hidden.content))


@pytest.mark.usefixtures("files")
def test_a_yanked_version_is_read_by_number_and_no_longer_by_alias(world: World) -> None:
    world.admin.yank("acme/support@1", "bad data")
    assert ask(world, FILE).status_code == 200
    by_alias = ask(world, FILE.replace("/1/", "/main/"))
    assert (by_alias.status_code, by_alias.json()["code"]) == (422, "YANKED")


def test_a_report_is_read_through_its_version_only(world: World, files: forge.Files) -> None:
    world.validate("acme/support@1")
    digest = next(v.report for v in world.admin.version("acme/support@1").verdicts if v.report)
    assert world.admin.report("acme/support@1", digest).measurements == {"largest_difference": 0.25}
    world.push("acme/other")
    for path in (f"acme/other/versions/1/reports/{digest}", f"acme/support/versions/1/reports/{Digest.of(b'x')}"):
        answer = ask(world, f"/api/v1/adapters/{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "BLOB_UNKNOWN")
    weights = Digest.of(files[forge.WEIGHTS])
    assert ask(world, f"/api/v1/adapters/acme/support/versions/1/reports/{weights}").status_code == 404


def test_a_missing_blob_is_reported_as_damaged(world: World, files: forge.Files) -> None:
    key = key_of(Digest.of(files[forge.WEIGHTS]))
    data = world.blobs.read(key, 0, 10**9)
    world.blobs.delete(key)
    answer = ask(world, FILE)
    assert (answer.status_code, answer.json()["code"]) == (500, "DIGEST_MISMATCH")
    world.blobs.put(key, [data], limit_bytes=len(data))


@pytest.mark.usefixtures("files")
def test_if_none_match_star_gives_304(world: World) -> None:
    assert ask(world, FILE, if_none_match="*").status_code == 304


def test_a_slow_reader_needs_little_memory(tmp_path: Path) -> None:
    """There may be hundreds of slow readers."""
    (tmp_path / "file").write_bytes(bytes(3 * 2**20))
    held: list[int] = []

    async def send(message: Any) -> None:
        held.append(len(message.get("body", b"")))

    async def receive() -> Any:
        raise AssertionError("nothing is to be received")

    answer = bodies.FileRangeResponse(tmp_path / "file", 0, 3 * 2**20, 200, {})
    asyncio.run(answer({"type": "http", "method": "GET"}, receive, send))
    assert sum(held) == 3 * 2**20
    assert max(held) <= 2**18
