"""Signed links of a registry in this process, what the application says of links, and who gets them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import update

from registry.api.access import TokenCreate
from registry.api.bases import BaseAdd
from registry.api.transfer import PullPlan, PushRequest
from registry.client.registry import Registry
from registry.client.transfer.pull import pull
from registry.client.transfer.push import push_folder
from registry.digest import Digest
from registry.errors import NotFound
from registry.names import AdapterName
from registry.server.database import db
from registry.server.database.models.pushes import PushRow
from registry.server.storage.blobs import key_of, write_blob
from registry.server.storage.local import LocalBlobs
from registry.server.storage.signed_links import LinkSigner
from registry.server.storage.states import PushState
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import commit_push, plan_pull, plan_push
from tests.faults.servers import Server
from tests.harness import URL, Harness, upload
from tests.raw_asgi import call


@pytest.fixture
def harness(database_url: str, tmp_path: Path) -> Iterator[Harness]:
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.links = LinkSigner(lambda: "secret")
    with Harness(database_url, blobs=blobs) as harness:
        harness.add_base()
        yield harness


def ask(harness: Harness, method: str, link: str, body: bytes | Iterator[bytes] | None = None) -> httpx.Response:
    request = httpx.Request(method, URL + link, content=body)
    response = harness.transport.handle_request(request)
    response.read()
    return response


def test_a_push_and_a_pull_go_by_links_without_a_token(harness: Harness) -> None:
    files = harness.files()
    manifest = harness.manifest(files)
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=manifest))
    by_digest = {Digest.of(data): data for data in files.values()}
    for item in plan.uploads:
        assert item.url.startswith("/api/v1/links/staging/" + plan.push_id)
        assert ask(harness, "PUT", item.url, by_digest[item.digest]).status_code == 204
    commit_push(harness.admin, plan.push_id)
    (pulled,), small = harness.admin.plan_pulls(["acme/support@1"])
    assert isinstance(pulled, PullPlan)
    inlined = set(small)
    assert set(pulled.direct) == {file.path for file in pulled.resolved.files if file.digest not in inlined}
    for path, link in pulled.direct.items():
        response = ask(harness, "GET", link)
        assert (response.status_code, response.content) == (200, files[path])
    assert pulled.direct_seconds == 15 * 60


def planned_link(harness: Harness, data: bytes, name: str = "acme/support") -> str:
    """The link of a plan for a file with these bytes."""
    manifest = harness.manifest({**harness.files(), "merges.txt": data})
    plan = plan_push(harness.admin, name, PushRequest(manifest=manifest))
    return next(item.url for item in plan.uploads if item.digest == Digest.of(data))


@pytest.mark.security
def test_what_a_link_does_not_allow_is_refused(harness: Harness) -> None:
    data = b"x" * 100
    digest = Digest.of(data)
    write_blob(harness.blobs, key_of(digest), [data], limit_bytes=100)
    signer = harness.blobs.links
    assert signer is not None
    read = signer.sign("GET", key_of(digest), 100, seconds=60, owner="tok_1")
    write = planned_link(harness, data)
    expired = signer.sign("GET", key_of(digest), 100, seconds=0, owner="tok_1")
    refused = [("GET", expired, None), ("PUT", read, data), ("GET", write, None), ("GET", read + "0", None)]
    refused += [("PUT", write.replace("/psh_", "/psh_0"), data), ("GET", read.replace("owner=tok_1", "owner="), None)]
    for method, link, body in refused:
        response = ask(harness, method, link, body)
        assert (response.status_code, response.json()["code"]) == (403, "LINK_INVALID"), link
    longer, chunked = ask(harness, "PUT", write, data + b"y"), ask(harness, "PUT", write, iter([data]))
    assert (longer.status_code, longer.json()["code"]) == (422, "BLOB_MISMATCH")
    assert (chunked.status_code, chunked.json()["code"]) == (411, "LENGTH_REQUIRED")
    wrong = ask(harness, "PUT", write, data[:-1] + b"y")
    assert (wrong.status_code, wrong.json()["code"]) == (422, "BLOB_MISMATCH")
    assert [stat.key for stat in harness.blobs.list("blobs/")] == [key_of(digest)]
    assert ask(harness, "DELETE", read).status_code == 405
    harness.blobs.delete(key_of(digest))
    assert ask(harness, "GET", read).json()["code"] == "BLOB_UNKNOWN"


@pytest.mark.security
def test_a_link_of_an_ended_push_writes_nothing(harness: Harness) -> None:
    files = harness.files()
    plan = plan_push(harness.admin, "acme/support", PushRequest(manifest=harness.manifest(files)))
    upload(harness.admin, plan, files)
    commit_push(harness.admin, plan.push_id)
    by_digest = {Digest.of(data): data for data in files.values()}
    for item in plan.uploads:
        assert ask(harness, "PUT", item.url, by_digest[item.digest]).status_code == 204, "a repeated PUT is no error"


@pytest.mark.security
def test_a_link_of_an_expired_push_writes_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    link = planned_link(harness, b"data")
    monkeypatch.setattr("registry.server.push.background.MEASURE_DELAY_SECONDS", 0.0)  # it was planned long ago
    with db.session(harness.app.state.engine) as session:
        session.connection().execute(update(PushRow).values(state=PushState.EXPIRED))
    assert ask(harness, "PUT", link, b"data").json()["code"] == "PUSH_UNKNOWN"
    assert list(harness.blobs.list("blobs/")) == []


@pytest.mark.security
def test_a_link_for_an_adapter_that_was_just_deleted_or_renamed_writes_nothing(harness: Harness) -> None:
    signed_in = {"Authorization": f"Bearer {harness.secret}"}
    endings = {
        "acme/one": ("DELETE", "/api/v1/adapters/acme/one", None),
        "acme/two": ("POST", "/api/v1/adapters/acme/two/rename", {"to": "acme/second"}),
        "acme/three": ("DELETE", "/api/repos/delete", {"name": "acme/three"}),
        "acme/four": ("POST", "/api/repos/move", {"fromRepo": "acme/four", "toRepo": "acme/fourth"}),
    }
    with httpx.Client(transport=harness.transport, base_url=URL, headers=signed_in) as client:
        for name, (method, path, body) in endings.items():
            harness.push(name)
            link = planned_link(harness, b"data", name)
            assert client.request(method, path, json=body).status_code == 200, name
            assert ask(harness, "PUT", link, b"data").json()["code"] == "PUSH_UNKNOWN", name
    harness.transport.settle()
    assert harness.blobs.stat(key_of(Digest.of(b"data"))) is None


@pytest.mark.security
def test_only_who_may_read_gets_links(harness: Harness) -> None:
    harness.push("acme/support")
    with pytest.raises(NotFound):
        plan_pull(harness.actor("pull", namespaces=["other"]), "acme/support@1")
    reader = harness.actor("pull", namespaces=["acme"])
    links = plan_pull(reader, "acme/support@1").direct.values()
    assert links
    assert all("owner=tok_" in link for link in links)


@pytest.mark.security
def test_of_what_a_link_does_not_allow_no_body_is_stored(harness: Harness) -> None:
    data = b"x" * 100
    write = planned_link(harness, data)
    for target, headers, status, code in (
        (write, [], 411, "LENGTH_REQUIRED"),
        (write, [("content-length", "99")], 422, "BLOB_MISMATCH"),
        (write[:-1] + ("0" if write[-1] != "0" else "1"), [("content-length", "100")], 403, "LINK_INVALID"),
    ):
        response = call(harness.app, "PUT", target, headers, [data])
        assert (response.status, response.json()["code"], response.bytes_read) == (status, code, 0), target
        assert response.headers["connection"] == "close"
    assert list(harness.blobs.list("blobs/")) == []


# ------------------------------------------------------------------ a real server
def test_servers_of_one_registry_agree_on_links_and_restarts_keep_them(tmp_path: Path) -> None:
    base = samples.llama("smollm2", hidden=512)
    files = samples.lora(base, rank=64)
    folder = samples.write(files, tmp_path / "out")
    environment = {"REGISTRY_DATA": str(tmp_path / "data")}
    with Server(environment).running() as server:
        with Registry(server.url, server.token) as registry:
            registry.add_base(BaseAdd(spec=spec_of(base)))
            push_folder(registry, folder, AdapterName.parse("acme/support"), base="smollm2")
            pull(registry, "acme/support@1", tmp_path / "pulled", cache=None)
            links = plan_pull(registry, "acme/support@1").direct
            headers = {"Authorization": f"Bearer {server.token}"}
            metrics = httpx.get(f"{server.url}/api/v1/metrics", headers=headers).text
            registry.create_token(TokenCreate(name="other", scopes=["pull"]))
        assert {path: (tmp_path / "pulled" / path).read_bytes() for path in links} == {p: files[p] for p in links}
        assert 'registry_requests_total{method="PUT",status="204"} 1.0' in metrics
    (weights,) = links.values()
    with Server(environment).running() as restarted:
        assert httpx.get(restarted.url + weights).content == files[samples.WEIGHTS]
