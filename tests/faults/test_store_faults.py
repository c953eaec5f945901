"""A store that fails in every way that stores do: pushes and pulls succeed by themselves, or say what is unavailable.

Server and client both reach the real store through a proxy that injects the faults.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.api.transfer import PushResult, UploadPart
from registry.client.registry import Registry
from registry.client.transfer import file_transfer
from registry.client.transfer import pull as pulling
from registry.client.transfer import push as pushing
from registry.client.transport import connection
from registry.client.transport.connection import Connection
from registry.digest import Digest
from registry.errors import Corrupt, RegistryError, Unavailable
from registry.names import AdapterName, Ref
from registry.server.database.models import VersionRow
from registry.server.storage.blobs import key_of
from registry.server.storage.s3 import bucket
from registry.server.storage.s3.store import S3Blobs
from tests import samples
from tests.faults.proxy import FaultProxy
from tests.harness import URL, Harness, rows
from tests.maintenance import collect, findings

NAME = AdapterName("acme", "support")
BASE = samples.llama(hidden=256, layers=6)
MIB = 2**20
HANG_SECONDS = 1.5

WHOLE = [
    ("put", "503"), ("put", "hang"), ("put", "reset_after"), ("put", "cut"), ("put", "flip"), ("get", "500"),
    ("get", "cut"), ("get", "flip"),
]  # fmt: skip
STAGED = [
    ("put", "flip"), ("head", "500"), ("copy", "503"), ("copy", "reset_after"), ("copy", "error_in_200"),
]  # fmt: skip
PARTS = [
    ("create", "500"), ("create", "cut"), ("list", "flip"), ("part", "503"), ("part", "reset_after"), ("part", "cut"),
    ("part", "flip"), ("parts", "500"), ("complete", "hang"), ("complete", "reset_after"),
    ("complete", "error_in_200"),
]  # fmt: skip
PULL = [("get", "503"), ("get", "reset_before"), ("get", "cut")]
"""One of each kind; `make soak` draws from all."""


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "READ_SECONDS", 1)
    monkeypatch.setattr(bucket, "LONG_READ_SECONDS", 1)
    monkeypatch.setattr(connection, "READ_SECONDS", 1.0)  # of links; the registry's own responses may take longer
    monkeypatch.setenv(connection.TIMEOUT_SETTING, "60")


@pytest.fixture
def proxy(object_store: str) -> Iterator[FaultProxy]:
    with FaultProxy(object_store, hang_seconds=HANG_SECONDS) as proxy:
        yield proxy


@pytest.fixture
def blobs(s3_url: str, proxy: FaultProxy) -> S3Blobs:
    through = bucket.Bucket(s3_url, endpoint=proxy.endpoint)
    return S3Blobs(through, direct_from_bytes=1, parts_from_bytes=5 * MIB, part_bytes=5 * MIB)


@pytest.fixture
def harness(database_url: str, blobs: S3Blobs) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base(BASE)
        assert blobs.capabilities["presigned_links"]  # probed now, while the store works
        yield harness


@pytest.fixture
def client(harness: Harness) -> Registry:
    """Return a client that retries without pauses."""
    return Registry(URL, connection=Connection(URL, harness.secret, transport=harness.transport, wait=lambda _: None))


def folder(tmp_path: Path, *, rank: int = 64) -> Path:
    return samples.write(samples.lora(BASE, rank=rank), tmp_path / "adapter")


def push(client: Registry, source: Path) -> PushResult:
    return pushing.push_folder(client, source, NAME, base=BASE.name)


def pull(client: Registry, target: Path) -> None:
    pulling.pull(client, Ref(NAME), target, cache=None)


def same(source: Path, target: Path) -> bool:
    return all((target / path.name).read_bytes() == path.read_bytes() for path in source.iterdir())


@pytest.mark.parametrize(("operation", "act"), WHOLE)
def test_a_push_survives_a_fault(
    harness: Harness, client: Registry, proxy: FaultProxy, tmp_path: Path, operation: str, act: str
) -> None:
    source = folder(tmp_path)
    proxy.fail(operation, act, times=1)
    push_until_done(client, source)
    check_pushed(harness, client, source, tmp_path)
    assert proxy.happened(operation) == 1


@pytest.mark.parametrize(("operation", "act"), STAGED)
def test_a_push_of_staged_blobs_survives_a_fault(
    harness: Harness, client: Registry, proxy: FaultProxy, tmp_path: Path, operation: str, act: str
) -> None:
    test_a_push_survives_a_fault(harness, client, proxy, tmp_path, operation, act)


@pytest.mark.parametrize(("operation", "act"), PARTS)
def test_a_push_in_parts_survives_a_fault(
    harness: Harness, client: Registry, proxy: FaultProxy, tmp_path: Path, operation: str, act: str
) -> None:
    source = folder(tmp_path, rank=256)
    proxy.fail(operation, act, times=1)
    push_until_done(client, source)
    check_pushed(harness, client, source, tmp_path)
    assert proxy.happened(operation) == 1


def push_until_done(client: Registry, source: Path) -> None:
    """Push; if a flipped bit was found on the way, push again."""
    try:
        push(client, source)
        return
    except RegistryError as e:
        code = e.code
    assert code in ("BLOB_MISMATCH", "STORE_UNAVAILABLE", "UPLOAD_INCOMPLETE", "DIGEST_MISMATCH")
    push(client, source)


def check_pushed(harness: Harness, client: Registry, source: Path, tmp_path: Path) -> None:
    pull(client, tmp_path / "out")
    assert same(source, tmp_path / "out")
    collect(harness)
    assert findings(harness) == []
    assert {stat.size_bytes for stat in harness.blobs.list("staging/")} <= {0}, "what keeps links from writing again"
    with harness.session() as session:
        assert len(rows(session, VersionRow)) == 1


def test_an_upload_that_was_begun_twice_is_completed(client: Registry, proxy: FaultProxy, tmp_path: Path) -> None:
    """boto3 repeats a CreateMultipartUpload whose response was lost; the parts then go to the second upload."""
    proxy.fail("create", "reset_after", times=1)
    assert push(client, folder(tmp_path, rank=256)).created
    assert proxy.counts["create"] >= 2


def test_a_push_whose_links_expire_gets_new_ones_and_sends_no_part_twice(
    monkeypatch: pytest.MonkeyPatch, client: Registry, tmp_path: Path
) -> None:
    sent: list[int] = []
    ended = {2, 3}
    send_part = file_transfer._send_part

    def sending(registry: Registry, part: UploadPart, *rest: Any) -> None:
        if part.number in ended and sent:
            ended.remove(part.number)
            raise Unavailable("STORE_UNAVAILABLE", "the store responded with AccessDenied")
        send_part(registry, part, *rest)
        sent.append(part.number)

    monkeypatch.setattr(file_transfer, "_send_part", sending)
    monkeypatch.setattr(file_transfer, "PARTS_AT_ONCE", 1)
    bar = ProgressBar()
    source = folder(tmp_path, rank=512)
    assert pushing.push_folder(client, source, NAME, base=BASE.name, progress=bar).created
    assert sorted(sent) == [1, 2, 3]
    assert bar.moved == bar.total


def test_a_push_whose_links_are_all_rejected_fails(
    monkeypatch: pytest.MonkeyPatch, client: Registry, tmp_path: Path
) -> None:
    part_numbers: list[int] = []

    def refused(_registry: Registry, part: UploadPart, *_: Any) -> None:
        part_numbers.append(part.number)
        raise Unavailable("STORE_UNAVAILABLE", "the store responded with AccessDenied")

    monkeypatch.setattr(file_transfer, "_send_part", refused)
    monkeypatch.setattr(file_transfer, "PARTS_AT_ONCE", 1)
    with pytest.raises(Unavailable, match="AccessDenied"):
        push(client, folder(tmp_path, rank=512))
    assert part_numbers.count(1) == 1


class ProgressBar:
    total = moved = 0

    def start(self, total_bytes: int) -> None:
        self.total = total_bytes

    def advance(self, count: int) -> None:
        self.moved += count


@pytest.mark.parametrize(("operation", "act"), PULL)
def test_a_pull_survives_a_fault(client: Registry, proxy: FaultProxy, tmp_path: Path, operation: str, act: str) -> None:
    source = folder(tmp_path)
    push(client, source)
    proxy.fail(operation, act, times=2)
    pull(client, tmp_path / "out")
    assert proxy.happened(operation) == 2
    assert same(source, tmp_path / "out")


@pytest.mark.parametrize("seed", range(2))
def test_a_flipped_bit_is_never_pulled(client: Registry, proxy: FaultProxy, tmp_path: Path, seed: int) -> None:
    push(client, folder(tmp_path))
    proxy._random.seed(seed)
    proxy.fail("get", "flip")
    with pytest.raises(Corrupt, match="hash to"):
        pull(client, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    proxy.heal()
    pull(client, tmp_path / "out")
    assert same(tmp_path / "adapter", tmp_path / "out")


def test_the_server_finds_a_flipped_bit_in_a_small_file_and_the_client_asks_again(
    client: Registry, proxy: FaultProxy, tmp_path: Path
) -> None:
    """Small files come with the plan of a pull; the server leaves damaged ones out."""
    push(client, folder(tmp_path))
    proxy.fail("get", "flip", times=1)
    pull(client, tmp_path / "out")
    assert proxy.happened("get") == 1
    assert same(tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("operation", ["put", "copy"])
def test_a_store_that_stays_away_fails_the_push_and_the_next_one_succeeds(
    harness: Harness,
    client: Registry,
    proxy: FaultProxy,
    tmp_path: Path,
    operation: str,
) -> None:
    source = folder(tmp_path)
    proxy.fail(operation, "reset_before")
    with pytest.raises(Unavailable) as caught:
        push(client, source)
    assert caught.value.code in ("STORE_UNAVAILABLE", "SERVER_UNREACHABLE")
    assert client.adapters().items == []
    with harness.session() as session:
        assert rows(session, VersionRow) == []
    proxy.heal()
    assert push(client, source).created
    check_pushed(harness, client, source, tmp_path)


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("put", "500"),
        ("head", "reset_after"),
        ("get", "cut"),
        ("copy", "cut"),
        ("complete", "500"),
    ],
)
def test_a_probe_that_meets_a_fault_is_repeated(blobs: S3Blobs, proxy: FaultProxy, operation: str, act: str) -> None:
    proxy.fail(operation, act, times=1)
    with contextlib.suppress(Unavailable):
        assert blobs.capabilities
    assert blobs.capabilities


def test_the_circuit_breaker_rejects_calls_after_a_timeout(blobs: S3Blobs, proxy: FaultProxy) -> None:
    """Each caller would wait as long; one of them finds out when the store is back."""
    assert blobs.capabilities["ranges"]
    proxy.fail("head", "hang")
    key = key_of(Digest.of(b""))
    with pytest.raises(Unavailable, match="did not respond in time"):
        blobs.stat(key)
    heads = proxy.counts["head"]
    for _ in range(3):
        with pytest.raises(Unavailable, match="a moment ago"):
            blobs.stat(key)
    assert proxy.counts["head"] == heads
    proxy.heal()
    blobs.bucket._breaker._open_until = 0.0  # its pause is over
    assert blobs.stat(key) is None
    assert blobs.stat(key) is None


def test_a_store_that_asks_for_fewer_requests_is_no_outage(
    blobs: S3Blobs, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    assert blobs.capabilities["ranges"]
    caplog.clear()
    proxy.fail("list", "503")
    with pytest.raises(Unavailable, match="SlowDown"):
        list(blobs.list("blobs/"))
    assert caplog.messages == []


@pytest.mark.parametrize("act", ["reset_before", "503", "hang"])
def test_an_outage_has_one_line_when_it_begins_and_one_when_it_ends(
    blobs: S3Blobs, proxy: FaultProxy, caplog: pytest.LogCaptureFixture, act: str
) -> None:
    assert blobs.capabilities["ranges"]
    caplog.clear()
    proxy.fail("head", act)
    key = key_of(Digest.of(b""))
    for _ in range(3):
        with pytest.raises(Unavailable):
            blobs.stat(key)
        blobs.bucket._breaker._open_until = blobs.bucket._breaker._open_until and 0.0  # its pause is over
    name = blobs.bucket.name
    begin = f"the blob store is unavailable: bucket '{name}' cannot serve head_object now: "
    assert [message[: len(begin)] for message in caplog.messages] == [begin]
    proxy.heal()
    for _ in range(2):
        assert blobs.stat(key) is None
    assert caplog.messages[1:] == [f"the blob store is available again: bucket '{name}'"]
