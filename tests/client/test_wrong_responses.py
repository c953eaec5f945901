"""A registry that lies: a response that does not match its request is `Corrupt`, before anything is done with it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from cli import diff
from cli.console import groups, output
from registry.api.audit import moment as audit_moment
from registry.api.jobs import ClaimRequest
from registry.client import core, response_checks
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.client.transfer import pull, push
from registry.errors import Corrupt
from registry.names import AdapterName, Ref
from registry.serving.export import export
from registry.serving.export.folder import FolderTarget
from registry.serving.store.local_store import LocalStore
from registry.serving.store.resolver import Resolver
from tests import samples
from tests.harness import URL, Harness
from tests.httpx_transports import HttpxTransport, MockTransport

pytestmark = pytest.mark.security
NAME = AdapterName("acme", "support")
Change = Callable[[Any], Any]


class TamperingTransport(HttpxTransport):
    """Changes the JSON of responses whose path ends in a suffix."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self.suffix = "\0"
        self.change: Change = lambda document: document
        self.raw: bytes | None = None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if not request.url.path.endswith(self.suffix):
            return response
        response.read()
        content = self.raw if self.raw is not None else json.dumps(self.change(response.json())).encode()
        return httpx.Response(response.status_code, content=content)


def in_first_item(change: Change) -> Change:
    """The same change of the result of the first item of a bulk response."""

    def changed(document: dict[str, Any]) -> dict[str, Any]:
        first, *others = document["items"]
        return document | {"items": [first | {"result": change(first["result"])}, *others]}

    return changed


class TamperedRegistry:
    def __init__(self, harness: Harness) -> None:
        self.transport = TamperingTransport(harness.transport)
        self.registry = Registry(URL, harness.secret, self.transport)

    def alter(self, suffix: str, change: Change) -> None:
        self.transport.suffix, self.transport.change = suffix, change


@pytest.fixture
def tampered(harness: Harness) -> TamperedRegistry:
    harness.add_base()
    harness.push("acme/support")
    harness.push("acme/support")
    harness.push("acme/other")
    return TamperedRegistry(harness)


def other_version(harness: Harness) -> dict[str, Any]:
    document: dict[str, Any] = harness.admin.resolve("acme/support@1").model_dump(mode="json")
    return document


def test_another_version_than_the_requested_digest_is_never_signed_verified_pulled_or_served(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path
) -> None:
    ref = Ref(NAME, harness.admin.version("acme/support@2").digest)
    wrong = other_version(harness)
    tampered.alter(f"/{ref.selector}", lambda _: wrong)
    with pytest.raises(Corrupt, match="digest"):
        tampered.registry.resolve(ref)
    tampered.alter("/pulls", in_first_item(lambda _: {"resolved": wrong}))
    with pytest.raises(Corrupt, match="digest"):
        pull.pull(tampered.registry, ref, tmp_path / "out", cache=None)
    assert not (tmp_path / "out").exists()
    tampered.alter(f"/{ref.selector}", lambda _: wrong)
    store = LocalStore(tmp_path / "store")
    resolver = Resolver(tampered.registry, store, engine="vllm==0.33.0", base="tiny-llama")
    response = resolver.find(f"acme/support@{ref.selector}")
    assert (response.folder, "digest" in response.reason) == (None, True)
    assert not store.versions.exists()


@pytest.mark.parametrize("change", [{"size_bytes": -1}, {"size_bytes": 7}, {"digest": "sha256:" + "0" * 64}])
def test_a_link_with_another_size_or_digest_than_the_manifest_is_refused(
    tampered: TamperedRegistry, change: dict[str, Any]
) -> None:
    tampered.alter(
        "/resolve/acme/support/2",
        lambda document: document | {"files": [document["files"][0] | change, *document["files"][1:]]},
    )
    with pytest.raises(Corrupt, match="not those of its manifest"):
        tampered.registry.resolve("acme/support@2")


@pytest.mark.parametrize("raw", [b"", b"<html>please sign in</html>", b'{"name": ', b"[" * 100_000])
def test_a_page_or_broken_json_is_a_wrong_response_and_no_internal_error(
    tampered: TamperedRegistry, raw: bytes
) -> None:
    tampered.alter("/resolve/acme/support/2", lambda document: document)
    tampered.transport.raw = raw
    with pytest.raises(Corrupt) as caught:
        tampered.registry.resolve("acme/support@2")
    assert caught.value.code == "RESPONSE_INVALID"


def test_a_redirected_request_names_the_target() -> None:
    redirect = httpx.Response(308, headers={"location": "https://registry.test/api/v1/whoami"})
    registry = Registry(URL, "", MockTransport(lambda _: redirect))
    for request in (registry.whoami, registry.checkpoint):
        with pytest.raises(Corrupt, match=r"redirects /\w+(/checkpoint)? to 'https://registry\.test"):
            request()


def test_another_version_as_the_result_of_a_push_is_refused(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path
) -> None:
    folder = samples.write(harness.files(), tmp_path / "adapter")
    wrong = harness.admin.version("acme/support@1").model_dump(mode="json")
    tampered.alter("/commit", in_first_item(lambda result: result | {"version": wrong}))
    with pytest.raises(Corrupt, match="digest"):
        push.push_folder(tampered.registry, folder, NAME)


def test_adapters_of_another_namespace_are_not_selected_for_a_change(tampered: TamperedRegistry) -> None:
    options = groups.Options(namespace="acme")
    assert len(groups.select(tampered.registry, options)) == 2
    other = {"name": "globex/support"}
    tampered.alter("/adapters", lambda page: page | {"items": [page["items"][0] | other, *page["items"][1:]]})
    with pytest.raises(Corrupt, match="namespace of 'globex/support'"):
        groups.select(tampered.registry, options)


@pytest.mark.parametrize(
    "upload",
    [
        {"digest": "sha256:" + "0" * 64},
        {"size_bytes": 1},
        {"method": "DELETE"},
        {"headers": {"Authorization": "x"}},
        {"headers": {"X": "a\r\nHost: evil"}},
        {"parts": [{"number": 1, "start": -5, "size_bytes": 10, "url": "/x"}]},
    ],
)
def test_a_push_plan_for_other_bytes_than_those_of_the_folder_is_refused(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path, upload: dict[str, Any]
) -> None:
    folder = samples.write(harness.files(), tmp_path / "adapter")
    tampered.alter(
        "/pushes",
        in_first_item(lambda plan: plan | {"uploads": [plan["uploads"][0] | upload, *plan["uploads"][1:]]}),
    )
    with pytest.raises(Corrupt):
        push.push_folder(tampered.registry, folder, NAME)


def claim_changed(harness: Harness, change: Change) -> None:
    """Claim a job from a registry that responds with a real claim, changed."""
    claimed = harness.admin.claim(ClaimRequest(worker="w"))
    assert claimed is not None
    harness.admin.cancel(claimed.job.id)
    document = change(claimed.model_dump(mode="json"))
    with Registry(URL, "", MockTransport(lambda _: httpx.Response(200, json=document))) as registry:
        registry.claim(ClaimRequest(worker="w"))


@pytest.mark.usefixtures("tampered")
@pytest.mark.parametrize(
    "job_id", ["/home/worker", "../../x", "job_0123456789abcdef0123\n", "job_0123456789ABCDEF0123"]
)
def test_a_job_id_from_a_registry_is_never_a_path(harness: Harness, job_id: str) -> None:
    with pytest.raises(Corrupt, match=r"job\.id"):
        claim_changed(harness, lambda document: document | {"job": document["job"] | {"id": job_id}})


@pytest.mark.usefixtures("tampered")
def test_a_claimed_job_is_of_a_requested_kind_and_about_its_own_version(harness: Harness) -> None:
    wrong = other_version(harness)
    claim_changed(harness, lambda document: document)
    with pytest.raises(Corrupt, match="digest"):
        claim_changed(harness, lambda document: document | {"subject": wrong})
    with pytest.raises(Corrupt, match="not requested"):
        claim_changed(harness, lambda document: document | {"job": document["job"] | {"kind": "fuse"}})


@pytest.mark.usefixtures("tampered")
def test_the_base_of_a_claimed_job_has_the_fingerprint_of_its_spec(harness: Harness) -> None:
    wrong = {"fingerprint": "sha256:" + "0" * 64}
    with pytest.raises(Corrupt, match="fingerprint"):
        claim_changed(harness, lambda document: document | {"base": document["base"] | wrong})


@pytest.mark.parametrize(
    "served", ["../../outside/model", "../acme-support-v1", "/abs", "a/b", "", "A", ".incoming-x", "acme-third-v1"]
)
def test_an_export_never_leaves_its_folder(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path, served: str
) -> None:
    harness.admin.promote("acme/support", "canary", "2", generation=0)
    harness.admin.promote("acme/other", "canary", "1", generation=0)

    def rename(document: Any) -> Any:
        for entry in document["adapters"]:
            if entry["name"] == "acme/support":
                entry["served_name"] = served
        return document

    tampered.alter("/bases/tiny-llama/adapters", rename)
    root = tmp_path / "deep" / "exports"
    desired = tampered.registry.desired_state("tiny-llama", "canary")
    done = export.run(tampered.registry, desired, FolderTarget(root), cache=None)
    states = {item.name: item.state for item in done.items}
    assert states == {"acme/other": "new", "acme/support": "failed"}
    assert {item.error["code"] for item in done.items if item.error} == {"RESPONSE_INVALID"}
    assert {path.name for path in root.iterdir()} == {"acme-other-v1", "index.json"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["exports"]


def test_an_export_uploads_the_files_of_the_manifest_and_no_others(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a key of this machine")
    harness.admin.promote("acme/support", "canary", "2", generation=0)

    def add_file(document: Any) -> Any:
        entry = document["adapters"][0]
        entry["files"].append(entry["files"][0] | {"path": f"../../../../../..{secret}"})
        return document

    tampered.alter("/bases/tiny-llama/adapters", add_file)
    desired = tampered.registry.desired_state("tiny-llama", "canary")
    location = FolderTarget(tmp_path / "exports")
    uploaded = list[str]()
    put = location.put

    def record(name: str, staged: Path, digests: dict[str, Any]) -> None:
        uploaded.extend(digests)
        put(name, staged, digests)

    monkeypatch.setattr(location, "put", record)
    export.run(tampered.registry, desired, location, cache=None)
    assert sorted(uploaded) == sorted(file.path for file in harness.admin.version("acme/support@2").files)


def test_the_desired_state_of_a_base_is_requested_by_its_alias(harness: Harness, tampered: TamperedRegistry) -> None:
    harness.admin.set_base_aliases("tiny-llama", ["hf-org/Tiny"])
    assert tampered.registry.desired_state("hf-org/Tiny", "canary").base == "tiny-llama"
    tampered.alter("/bases/hf-org/Tiny/adapters", lambda document: document | {"base": "other"})
    with pytest.raises(Corrupt, match="desired state"):
        tampered.registry.desired_state("hf-org/Tiny", "canary")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "evil"}, "name of the base"),
        ({"name": "evil", "aliases": ["tiny-llama"]}, "name in the spec"),
        ({"fingerprint": "sha256:" + "0" * 64}, "fingerprint"),
    ],
)
def test_another_base_than_the_requested_one_is_refused(
    tampered: TamperedRegistry, change: dict[str, Any], named: str
) -> None:
    tampered.alter("/bases/tiny-llama", lambda document: document | change)
    with pytest.raises(Corrupt, match=named):
        tampered.registry.base("tiny-llama")


@pytest.mark.parametrize("field", ["name", "fingerprint"])
def test_a_plan_with_another_base_than_its_digest_is_refused(
    harness: Harness, tampered: TamperedRegistry, tmp_path: Path, field: str
) -> None:
    folder = samples.write(harness.files(), tmp_path / "adapter")
    value = {"name": "evil", "fingerprint": "sha256:" + "0" * 64}[field]
    tampered.alter("/pushes", in_first_item(lambda plan: plan | {"base": plan["base"] | {field: value}}))
    with pytest.raises(Corrupt, match="digest in the push plan"):
        push.push_folder(tampered.registry, folder, NAME)


def test_a_listed_base_has_the_fingerprint_of_its_spec(tampered: TamperedRegistry) -> None:
    wrong = {"fingerprint": "sha256:" + "0" * 64}
    tampered.alter("/bases", lambda document: document | {"items": [document["items"][0] | wrong]})
    with pytest.raises(Corrupt, match="fingerprint"):
        tampered.registry.bases()


@pytest.mark.parametrize("suffix", ["/pulls", "/links/"])
def test_a_comparison_reads_no_configuration_that_is_not_of_the_version(
    tampered: TamperedRegistry, suffix: str
) -> None:
    """Other bytes than the manifest's come with the plan, or by a link."""
    config = diff._side(tampered.registry, "acme/support@1").fields["config"]
    link = next(f for f in tampered.registry.resolve("acme/support@1").files if f.path == "adapter_config.json")
    other = b'{"r": 4096}'.ljust(link.size_bytes)
    small = {"digest": str(link.digest), "data": base64.b64encode(other).decode()}
    if suffix == "/pulls":
        tampered.alter(suffix, lambda document: document | {"small": [small]})
    else:
        tampered.alter(urlsplit(link.url).path, lambda document: document)
        tampered.transport.raw = other
    assert diff._side(tampered.registry, "acme/support@1").fields["config"] == config


def test_a_list_ends(tampered: TamperedRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    cursors = iter(range(1000))
    tampered.alter("/bases", lambda document: document | {"next_cursor": "tiny-llama"})
    with pytest.raises(Corrupt, match="its own cursor"):
        tampered.registry.bases()
    monkeypatch.setattr(response_checks, "PAGES_LIMIT", 20)
    tampered.alter("/bases", lambda document: document | {"next_cursor": f"b{next(cursors)}"})
    with pytest.raises(Corrupt, match="over 20 pages"):
        tampered.registry.bases()


def test_the_events_of_the_log_only_go_forward(tampered: TamperedRegistry) -> None:
    tampered.alter("/events", lambda document: document | {"items": [], "next_cursor": "0", "last": 0})
    with pytest.raises(Corrupt, match="continues after 0"):
        list(Audit(tampered.registry).events())


def test_a_list_without_an_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "LIST_LIMIT_BYTES", 10_000)
    sent: list[int] = []

    def page(_: httpx.Request) -> httpx.Response:
        document = {"items": [], "next_cursor": f"{len(sent):01000}"}
        sent.append(len(json.dumps(document)))
        return httpx.Response(200, json=document)

    with Registry(URL, "", MockTransport(page)) as registry:
        for fetch in (registry.bases, registry.all_nodes, registry.tokens):
            sent.clear()
            with pytest.raises(Corrupt, match="is over"):
                fetch()
            assert sum(sent) < 12_000


@pytest.mark.parametrize("moment", ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"])
def test_a_time_that_is_none_in_utc_is_a_wrong_response(tampered: TamperedRegistry, moment: str) -> None:
    tampered.alter("/history", lambda response: response | {"moves": [response["moves"][0] | {"at": moment}]})
    move = tampered.registry.history("acme/support").moves[0]
    for show in (output.moment, audit_moment):
        with pytest.raises(Corrupt, match="outside of the years"):
            show(move.at)
