"""What one tenant's push costs does not depend on what another has: the same statements, the same calls of the store.

Work is counted, not timed: what makes the same calls in the same order takes as long.

Left out: folders of `LocalBlobs` that are made with the first blob whose digest begins so; a registry in use has all.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from registry.api import PREFIX
from registry.api.operations.table import OPERATIONS
from registry.api.transfer import PushRequest
from registry.client.registry import Registry
from registry.digest import Digest
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.local import LocalBlobs
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from tests import samples
from tests.access.tenants import of_subject, send
from tests.bulk import commit_push, plan_push
from tests.harness import Harness, send_blob
from tests.hub.commits import Pusher, add
from tests.hub.xet import XetClient
from tests.memory_blobs import MemoryBlobs

pytestmark = pytest.mark.security

Calls = list[str]


@pytest.fixture(params=["memory", "folder", "bucket"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, database_kind: str) -> BlobStore:
    if request.param == "bucket":
        if database_kind != "sqlite":
            pytest.skip("what the store is asked for does not depend on the database")
        url, endpoint = request.getfixturevalue("s3_url"), request.getfixturevalue("object_store")
        return S3Blobs.from_url(url, endpoint=endpoint)
    return LocalBlobs(tmp_path / "blobs") if request.param == "folder" else MemoryBlobs()


@pytest.fixture
def harness(database_url: str, blobs: BlobStore) -> Iterator[Harness]:
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the stores do that costs time: calls of the bucket, and changes of folders."""
    calls: Calls = []

    def noted(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **parameters: Any) -> Any:
            calls.append(name)
            return inner(*args, **parameters)

        return call

    for name in ("link", "rename", "unlink", "fsync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))

    call = Bucket.call

    def recorded_call(self: Bucket, operation: str, **parameters: Any) -> Any:
        calls.append(operation)
        return call(self, operation, **parameters)

    monkeypatch.setattr(Bucket, "call", recorded_call)
    return calls


def make_folders(blobs: BlobStore) -> None:
    if isinstance(blobs, LocalBlobs):
        for number in range(256):
            (blobs.root / "blobs" / "sha256" / f"{number:02x}").mkdir(parents=True, exist_ok=True)


def work_of(harness: Harness, stored: Calls, act: Callable[[], Any]) -> tuple[Calls, Calls]:
    with harness.statements() as sent:
        before = len(stored)
        act()
        harness.transport.settle()
    return list(sent), [call for call in stored[before:] if call != "delete_object"]  # those come after the response


def one_push(harness: Harness, stored: Calls, who: Registry, files: samples.Files) -> list[tuple[Calls, Calls]]:
    """The work of the plan, of each upload, and of the commit."""
    by_digest = {Digest.of(data): data for data in files.values()}
    plans: list[Any] = []

    def plan() -> None:
        plans.append(plan_push(who, "globex/own", PushRequest(manifest=harness.manifest(files))))

    done = [work_of(harness, stored, plan)]
    for upload in plans[0].uploads:
        done.append(work_of(harness, stored, partial(send_blob, who, upload, by_digest[upload.digest])))
    done.append(work_of(harness, stored, lambda: commit_push(who, plans[0].push_id)))
    return done


def test_pushing_bytes_that_another_tenant_has_takes_the_same_calls(harness: Harness, stored: Calls) -> None:
    make_folders(harness.blobs)
    tenant = harness.client(harness.issue("push", "pull", namespaces=["globex"])[1])
    same, other = harness.files(), harness.files()
    weights = Digest.of(same[samples.WEIGHTS])
    harness.push("globex/own", by=tenant)
    harness.push("acme/support", same)
    assert harness.blobs.stat(key_of(weights)) is not None
    existing, unknown = one_push(harness, stored, tenant, same), one_push(harness, stored, tenant, other)
    assert len(existing) == 4, "the plan, the weights, the card, the commit: the configuration is there already"
    assert existing == unknown
    assert existing[0][0], "a plan asks the database"
    if not isinstance(harness.blobs, MemoryBlobs):
        if isinstance(harness.blobs, LocalBlobs):
            assert all("rename" in calls for _, calls in existing[1:3]), "they are written under their final keys"
        else:
            assert all("put_object" in calls for _, calls in existing[1:3]), "they are written under their final keys"


@pytest.fixture
def blobs_in_memory(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        harness.add_base()
        yield harness


def test_reading_an_invisible_adapter_takes_the_calls_of_an_absent_one(blobs_in_memory: Harness, stored: Calls) -> None:
    harness = blobs_in_memory
    digest = harness.push("acme/support").version.digest
    harness.admin.promote("acme/support", "canary", "1", generation=0)
    harness.admin.create_namespace("globex", owner="bob")
    secret = of_subject(harness, "bob", namespaces=["globex"])
    send(harness, "GET", "/api/v1/whoami", secret)  # a token's first use is noted
    for row in OPERATIONS.values():
        if "{namespace}" not in row.path:
            continue
        names = {"selector": digest, "digest": digest, "alias": "canary", "path": "adapter_config.json"}
        body = {"json": row.example} if row.example is not None else {}
        work = []
        for namespace, name in (("acme", "support"), ("acme" if "{name}" in row.path else "initech", "nothing")):
            filled = row.fill_path(defaultdict(lambda: "none", names, namespace=namespace, name=name))

            def ask(method: str = row.method, path: str = PREFIX + filled, body: dict[str, Any] = body) -> None:
                response = send(harness, method, path, secret, headers={"If-Match": '"1"'}, **body)
                assert response.status_code == 404, (method, path, response.text)

            for _ in range(2):  # what was kept the first time tells nothing either
                send(harness, "GET", f"{PREFIX}/events", harness.secret)  # numbers the events until now
                work.append(work_of(harness, stored, ask))
        assert work[:2] == work[2:], row.route


def test_a_hub_client_pushes_the_bytes_of_another_tenant_with_the_same_calls(harness: Harness, stored: Calls) -> None:
    make_folders(harness.blobs)
    pusher = Pusher(harness, harness.issue("push", namespaces=["globex"])[1], "globex/own")
    same, other = harness.files(), harness.files()
    harness.push("acme/support", same)
    pusher.create()
    assert pusher.push(harness.files()).status_code == 200  # a first version: the configuration and the card are there
    work = []
    for files in (same, other):
        responses: list[int] = []

        def push(files: samples.Files = files, responses: list[int] = responses) -> None:
            responses.append(pusher.commit(add(samples.WEIGHTS, files[samples.WEIGHTS])).status_code)

        work.append(work_of(harness, stored, push))
        assert responses == [200]
    assert work[0] == work[1]


def test_a_xet_client_sends_the_bytes_of_another_tenant_with_the_same_calls(harness: Harness, stored: Calls) -> None:
    make_folders(harness.blobs)
    pusher = Pusher(harness, harness.issue("push", namespaces=["globex"])[1], "globex/own")
    same, other = (files[samples.WEIGHTS] for files in (harness.files(), harness.files()))
    harness.push("acme/support", harness.files() | {samples.WEIGHTS: same})
    pusher.create()
    XetClient(pusher).upload(harness.files()[samples.WEIGHTS])
    clients = [XetClient(pusher), XetClient(pusher)]
    work = [
        work_of(harness, stored, partial(client.upload, data))
        for client, data in zip(clients, (same, other), strict=True)
    ]
    assert work[0] == work[1]
    assert any("xorb" in statement for statement in work[0][0])


HUB_REQUESTS: dict[str, Any] = {
    "GET /api/models/{}/xet-write-token/main": None,
    f"POST /api/models/{{}}/xet/one/v1/xorbs/default/{'0' * 64}": {},
    "POST /api/models/{}/xet/one/v1/shards": {},
    "POST /api/models/{}/preupload/main": {"files": [{"path": "README.md", "size": 1}]},
    "POST /{}.git/info/lfs/objects/batch": {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]},
    "POST /{}.git/info/lfs/objects/verify": {"oid": "0" * 64, "size": 1},
    "POST /api/models/{}/commit/main": {"key": "header", "value": {}},
    "POST /api/models/{}/branch/next": {},
    "POST /api/models/{}/tag/v1": {"tag": "v1"},
    "POST /api/models/{}/super-squash/main": {},
    "PUT /api/models/{}/settings": {"private": True},
    "GET /api/models/{}/refs": None,
    "GET /api/models/{}/commits/main": None,
    "GET /{}/commit/main": None,
}


@pytest.mark.parametrize("route", HUB_REQUESTS)
def test_a_hub_client_is_refused_an_invisible_adapter_with_the_calls_of_an_absent_one(
    blobs_in_memory: Harness, stored: Calls, route: str
) -> None:
    harness = blobs_in_memory
    harness.push("acme/support")
    harness.admin.create_namespace("globex", owner="bob")
    secret = of_subject(harness, "bob", namespaces=["globex"])
    send(harness, "GET", "/api/v1/whoami", secret)  # a token's first use is noted
    method, path = route.split()
    work, responses = [], []
    for name in ("acme/support", "acme/nothing"):

        def ask(url: str = path.format(name)) -> None:
            responses.append(send(harness, method, url, secret, json=HUB_REQUESTS[route]))

        work += [work_of(harness, stored, ask) for _ in range(2)]
    assert work[:2] == work[2:]
    assert {response.status_code for response in responses} == {404}
    assert len({response.headers["x-error-message"].replace("nothing", "support") for response in responses}) == 1


BULK: dict[str, Callable[[str], dict[str, Any]]] = {
    "pulls": lambda name: {"refs": [f"{name}@1"]},
    "moves": lambda name: {"items": [{"name": name, "alias": "canary", "version": "1"}]},
    "approvals": lambda name: {"items": [{"ref": f"{name}@1", "alias": "canary"}]},
    "metadata": lambda name: {"items": [{"subject": name, "tags": {"team": "x"}}]},
}


@pytest.mark.parametrize("route", BULK)
def test_a_bulk_request_about_an_invisible_adapter_takes_the_calls_of_an_absent_one(
    blobs_in_memory: Harness, route: str
) -> None:
    harness = blobs_in_memory
    harness.push("acme/support")
    harness.admin.create_namespace("globex", owner="bob")
    secret = of_subject(harness, "bob", namespaces=["globex"])
    send(harness, "GET", "/api/v1/whoami", secret)

    def ask(name: str) -> None:
        response = send(harness, "POST", f"/api/v1/{route}", secret, json=BULK[route](name))
        assert response.json()["items"][0]["problem"]["code"] == "ADAPTER_UNKNOWN"

    invisible, absent = (work_of(harness, [], partial(ask, name)) for name in ("acme/support", "acme/nothing"))
    assert invisible == absent


def test_git_ids_take_the_same_calls_whatever_was_read_before(blobs_in_memory: Harness) -> None:
    harness = blobs_in_memory
    secret = harness.issue("push", "pull", namespaces=["globex"])[1]
    same, other = harness.files(), harness.files()
    for name, content in (("acme/support", same), ("globex/one", same), ("globex/two", other)):
        harness.push(name, content)
    responses = [send(harness, "HEAD", "/acme/support/resolve/main/README.md", harness.secret)]
    send(harness, "GET", "/api/v1/whoami", secret)
    work = []

    def look(path: str) -> None:
        responses.append(send(harness, "HEAD", path, secret))

    for name in ("one", "two"):
        path = f"/globex/{name}/resolve/main/README.md"
        work.append(work_of(harness, [], partial(look, path)))
    assert [response.status_code for response in responses] == [200, 200, 200]
    assert responses[0].headers["etag"] == responses[1].headers["etag"] != responses[2].headers["etag"]
    assert work[0] == work[1]
    assert any(statement.startswith("UPDATE version_file") for statement in work[0][0])
