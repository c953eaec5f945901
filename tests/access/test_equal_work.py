"""What one tenant's push costs does not depend on what another has: the same statements, the same calls of the store.

Work is counted, not timed: what makes the same calls in the same order takes as long.

Left out: folders of `LocalBlobs` that are made with the first blob whose digest begins so; a registry in use has all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from registry.api.transfer import PushRequest
from registry.client.registry import Registry
from registry.digest import Digest
from registry.errors import NotFound
from registry.server.storage.blobs import BlobStore, key_of
from registry.server.storage.local import LocalBlobs
from registry.server.storage.s3.bucket import Bucket
from registry.server.storage.s3.store import S3Blobs
from tests import forge
from tests.access.tenants import of_subject, send
from tests.hub.commits import Pusher, add
from tests.memory_blobs import MemoryBlobs
from tests.world import World, send_blob

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
def world(database_url: str, blobs: BlobStore) -> Iterator[World]:
    with World(database_url, blobs=blobs) as made:
        made.add_base()
        yield made


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the stores do that costs time: calls of the bucket, and changes of folders."""
    told: Calls = []

    def noted(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **parameters: Any) -> Any:
            told.append(name)
            return inner(*given, **parameters)

        return call

    for name in ("link", "rename", "unlink", "fsync"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))

    for name in ("call",):
        inner = getattr(Bucket, name)

        def asked(self: Bucket, operation: str, *, inner: Any = inner, **parameters: Any) -> Any:
            told.append(operation)
            return inner(self, operation, **parameters)

        monkeypatch.setattr(Bucket, name, asked)
    return told


def make_folders(blobs: BlobStore) -> None:
    if isinstance(blobs, LocalBlobs):
        for number in range(256):
            (blobs.root / "blobs" / "sha256" / f"{number:02x}").mkdir(parents=True, exist_ok=True)


def work_of(world: World, stored: Calls, act: Callable[[], Any]) -> tuple[Calls, Calls]:
    with world.statements() as sent:
        before = len(stored)
        act()
        world.transport.settle()
    return list(sent), [call for call in stored[before:] if call != "delete_object"]  # those come after the answer


def one_push(world: World, stored: Calls, who: Registry, files: forge.Files) -> list[tuple[Calls, Calls]]:
    """The work of the plan, of each upload, and of the commit."""
    by_digest = {Digest.of(data): data for data in files.values()}
    plans: list[Any] = []

    def plan() -> None:
        plans.append(who.plan_push("globex/own", PushRequest(manifest=world.manifest(files))))

    done = [work_of(world, stored, plan)]
    for upload in plans[0].uploads:
        done.append(work_of(world, stored, partial(send_blob, who, upload, by_digest[upload.digest])))
    done.append(work_of(world, stored, lambda: who.commit_push(plans[0].push_id)))
    return done


def test_pushing_bytes_that_another_tenant_has_takes_the_same_calls(world: World, stored: Calls) -> None:
    make_folders(world.blobs)
    mine = world.client(world.issue("push", "pull", namespaces=["globex"])[1])
    same, other = world.files(), world.files()
    weights = Digest.of(same[forge.WEIGHTS])
    world.push("globex/own", by=mine)
    world.push("acme/support", same)
    assert world.blobs.stat(key_of(weights)) is not None
    known, unknown = one_push(world, stored, mine, same), one_push(world, stored, mine, other)
    assert len(known) == 4, "the plan, the weights, the card, the commit: the configuration is there already"
    assert known == unknown
    assert known[0][0], "a plan asks the database"
    if not isinstance(world.blobs, MemoryBlobs):
        if isinstance(world.blobs, LocalBlobs):
            assert "link" in known[-1][1], "the bytes are promoted, or something as long is done"
        else:
            assert all("put_object" in calls for _, calls in known[1:3]), "they are written under their final keys"
        assert [stat.key for stat in world.blobs.list("staging/")] == []


@pytest.fixture
def blobs_in_memory(database_url: str) -> Iterator[World]:
    with World(database_url) as made:
        made.add_base()
        yield made


def test_reading_an_invisible_adapter_takes_the_calls_of_an_absent_one(blobs_in_memory: World, stored: Calls) -> None:
    world = blobs_in_memory
    digest = world.push("acme/support").version.digest
    world.admin.promote("acme/support", "canary", "1", generation=0)
    world.admin.create_namespace("globex", owner="bob")
    mine = of_subject(world, "bob", namespaces=["globex"])
    send(world, "GET", "/api/v1/whoami", mine)  # a token's first use is noted
    for method, rest in (
        ("GET", "/resolve/{}/canary"),
        ("GET", f"/resolve/{{}}/{digest}"),
        ("GET", f"/resolve/{{}}/{digest[:15]}"),
        ("GET", "/adapters/{}"),
        ("GET", "/adapters/{}/aliases"),
        ("GET", "/adapters/{}/history"),
        ("HEAD", "/adapters/{}/versions/1/files/adapter_config.json"),
        ("GET", f"/adapters/{{}}/versions/{digest}/files/adapter_config.json"),
        ("GET", "/adapters/{}/versions/1/lineage"),
        ("POST", "/adapters/{}/versions/1/yank"),
        ("POST", "/adapters/{}/versions/1/unyank"),
        ("PATCH", "/adapters/{}/metadata"),
        ("PATCH", "/adapters/{}/versions/1/metadata"),
    ):
        bodies: dict[str, Any] = {"POST": {"reason": "r"}, "PATCH": {"tags": {"team": "nlp"}}}
        body = {"json": bodies[method]} if method in bodies else {}
        work = []
        for name in ("acme/support", "acme/nothing"):
            asked = (method, "/api/v1" + rest.format(name))

            def ask(asked: tuple[str, str] = asked, body: dict[str, Any] = body) -> None:
                assert send(world, *asked, mine, **body).status_code == 404, asked

            work += [work_of(world, stored, ask) for _ in range(2)]  # twice: what was kept then tells nothing either
        assert work[:2] == work[2:], rest


def test_a_hub_client_pushes_the_bytes_of_another_tenant_with_the_same_calls(world: World, stored: Calls) -> None:
    make_folders(world.blobs)
    pusher = Pusher(world, world.issue("push", namespaces=["globex"])[1], "globex/own")
    same, other = world.files(), world.files()
    world.push("acme/support", same)
    pusher.create()
    assert pusher.push(world.files()).status_code == 200  # a first version: the configuration and the card are there
    work = []
    for files in (same, other):
        answers: list[int] = []

        def push(files: forge.Files = files, answers: list[int] = answers) -> None:
            answers.append(pusher.commit(add(forge.WEIGHTS, files[forge.WEIGHTS])).status_code)

        work.append(work_of(world, stored, push))
        assert answers == [200]
    assert work[0] == work[1]


HUB_REQUESTS: dict[str, Any] = {
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
    blobs_in_memory: World, stored: Calls, route: str
) -> None:
    world = blobs_in_memory
    world.push("acme/support")
    world.admin.create_namespace("globex", owner="bob")
    mine = of_subject(world, "bob", namespaces=["globex"])
    send(world, "GET", "/api/v1/whoami", mine)  # a token's first use is noted
    method, path = route.split()
    work, answers = [], []
    for name in ("acme/support", "acme/nothing"):

        def ask(url: str = path.format(name)) -> None:
            answers.append(send(world, method, url, mine, json=HUB_REQUESTS[route]))

        work += [work_of(world, stored, ask) for _ in range(2)]
    assert work[:2] == work[2:]
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.headers["x-error-message"].replace("nothing", "support") for answer in answers}) == 1


def test_planning_a_pull_of_an_invisible_adapter_takes_the_calls_of_an_absent_one(blobs_in_memory: World) -> None:
    world = blobs_in_memory
    world.push("acme/support")
    world.admin.create_namespace("globex", owner="bob")
    mine = of_subject(world, "bob", namespaces=["globex"])
    send(world, "GET", "/api/v1/whoami", mine)

    def ask(ref: str) -> None:
        answer = send(world, "POST", "/api/v1/pulls", mine, json={"refs": [ref]})
        assert answer.json()["items"][0]["problem"]["code"] == "ADAPTER_UNKNOWN"

    seen, absent = (work_of(world, [], partial(ask, ref)) for ref in ("acme/support@1", "acme/nothing@1"))
    assert seen == absent


def test_git_ids_take_the_same_calls_whoever_read_these_bytes_before(blobs_in_memory: World) -> None:
    world = blobs_in_memory
    mine = world.issue("push", "pull", namespaces=["globex"])[1]
    same, other = world.files(), world.files()
    for name, content in (("acme/support", same), ("globex/one", same), ("globex/two", other)):
        world.push(name, content)
    asked = [send(world, "HEAD", "/acme/support/resolve/main/README.md", world.secret)]
    send(world, "GET", "/api/v1/whoami", mine)
    work = []

    def look(path: str) -> None:
        asked.append(send(world, "HEAD", path, mine))

    for name in ("one", "two"):
        path = f"/globex/{name}/resolve/main/README.md"
        work.append(work_of(world, [], partial(look, path)))
    assert [answer.status_code for answer in asked] == [200, 200, 200]
    assert asked[0].headers["etag"] == asked[1].headers["etag"] != asked[2].headers["etag"]
    assert work[0] == work[1]
    assert any(statement.startswith("UPDATE version_file") for statement in work[0][0])


def test_promoting_bytes_that_are_stored_leaves_nothing_in_staging(world: World) -> None:
    """Also where the staged bytes are gone by then: a commit may be repeated."""
    data = b"the same bytes" * 100
    digest = Digest.of(data)
    for push_id in ("psh_one", "psh_two"):
        key = f"staging/{push_id}/{digest.hex}"
        world.blobs.put(key, [data], limit_bytes=len(data))
        world.blobs.promote(key, digest)
        world.blobs.promote(key, digest)
        world.blobs.delete(key)
        world.blobs.promote(key, digest)
    assert list(world.blobs.list("staging/")) == []
    assert [stat.key for stat in world.blobs.list("blobs/")] == [key_of(digest)]
    world.blobs.delete(key_of(digest))
    with pytest.raises(NotFound):
        world.blobs.promote(key, digest)
