"""Who may add and delete bases, which all namespaces share."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlmodel import Session

from registry.api.bases import BaseAdd
from registry.api.jobs import JobSubmit
from registry.api.maintenance import ReindexRequest
from registry.api.transfer import PushRequest
from registry.bases import MODULES_LIMIT
from registry.client.transport import LIST_LIMIT_BYTES
from registry.errors import Conflict, Denied, Invalid, NotFound, RegistryError, TooLarge
from registry.jobs import Kind
from registry.merging.recipes import MergeOperation
from registry.server.catalog import base_rows, bases, refs, version_groups
from registry.server.database.models import BaseRow
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import plan_push
from tests.harness import Harness

pytestmark = pytest.mark.security


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url) as harness:
        yield harness


def base(name: str, source: str = "") -> BaseAdd:
    return BaseAdd(spec=spec_of(samples.llama(name)), source=source)


def test_a_pusher_adds_bases_only_under_the_name_of_its_namespace(harness: Harness) -> None:
    pusher = harness.actor("push", namespaces=["acme"])
    for name in ("llama", "meta-llama/Llama-3.1-8B", "acmes/llama"):
        with pytest.raises(Denied, match="may not add the base"):
            pusher.add_base(base(name))
    added = pusher.add_base(base("Acme/Llama", source="/home/worker"))
    assert (added.name, added.source) == ("Acme/Llama", ""), "a worker would open its source"
    assert harness.admin.add_base(base("meta-llama/Llama-3.1-8B", source="/models/llama")).source == "/models/llama"
    assert pusher.add_base(base("meta-llama/Llama-3.1-8B")).name == "meta-llama/Llama-3.1-8B", (
        "it exists: nothing changes"
    )


def test_a_fuse_needs_the_right_to_add_its_base(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    pusher = harness.actor("push", namespaces=["acme"])
    payload = {"operation": MergeOperation.FUSE, "sources": ["acme/support@1"]}
    with pytest.raises(Denied, match="may not add the base"):
        pusher.submit(JobSubmit(kind=Kind.FUSE, payload={**payload, "into": "fused"}))
    assert pusher.submit(JobSubmit(kind=Kind.FUSE, payload={**payload, "into": "acme/fused"})).kind is Kind.FUSE


def test_bases_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "BASES_PER_ORG_LIMIT", 1)
    pusher = harness.actor("push", namespaces=["acme", "globex"])
    pusher.add_base(base("acme/one"))
    with pytest.raises(TooLarge, match="'acme' has 1 bases"):
        pusher.add_base(base("acme/two"))
    pusher.add_base(base("globex/one"))
    monkeypatch.setattr(bases, "BASES_LIMIT", 2)
    with pytest.raises(TooLarge, match="this registry has 2 bases"):
        harness.admin.add_base(base("llama"))


@pytest.mark.security
@pytest.mark.parametrize("database_kind", ["sqlite", "postgres"])
def test_specs_of_bases_are_limited(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of 8 MiB took 250 MiB as a spec; a pusher added 100 of these, and a page of 200 had gigabytes."""
    specs = {name: base(f"{name}/one") for name in ("acme", "globex", "initech")}
    size = len(specs["acme"].spec.model_dump_json())
    assert bases.SPECS_PER_ORG_LIMIT <= version_groups.PAGE_CHARACTERS  # a worker reads all before each job
    assert 30 * bases.SPECS_PER_ORG_LIMIT < LIST_LIMIT_BYTES
    monkeypatch.setattr(bases, "SPECS_PER_ORG_LIMIT", 2 * size)
    pusher = harness.actor("push", namespaces=[*specs])
    for request in specs.values():
        pusher.add_base(request)
    with pytest.raises(TooLarge, match=f"over {2 * size} characters"):
        pusher.add_base(base("acme/two"))
    harness.admin.add_base(base("acme/two"))
    monkeypatch.setattr(version_groups, "PAGE_CHARACTERS", 5 * size // 2)
    path, pages = "/bases", list[list[str]]()
    cursor = ""
    while not pages or cursor:
        page = harness.admin.connection.send("GET", path, query={"cursor": cursor, "limit": 200}).json()
        pages.append([item["name"] for item in page["items"]])
        cursor = page["next_cursor"]
    assert pages == [["acme/one", "acme/two"], ["globex/one", "initech/one"]]
    assert [item.name for item in harness.admin.bases().items] == [name for names in pages for name in names]
    shape = specs["acme"].spec.modules["lm_head"]
    many = specs["acme"].spec.model_copy(update={"modules": {str(n): shape for n in range(MODULES_LIMIT + 1)}})
    body = BaseAdd.model_construct(spec=many, source="").model_dump(mode="json", exclude_defaults=True)
    with pytest.raises(Invalid, match=f"modules: .* at most {MODULES_LIMIT} items"):
        harness.admin.connection.send("POST", path, json=body)
    put = f"{path}/acme/one/modules"
    built = {"library": "transformers 5.24.0", "modules": body["spec"]["modules"]}
    with pytest.raises(Invalid, match=f"modules: .* at most {MODULES_LIMIT} items"):
        harness.admin.connection.send("PUT", put, json={"modules": built})
    experts = {f"model.{n}.experts.*.up_proj": shape.model_dump() for n in range(2)}
    mixed = specs["acme"].spec.model_copy(update={"name": "acme/three", "modules": experts})
    harness.admin.add_base(BaseAdd(spec=mixed))
    del built["modules"]["0"]
    with pytest.raises(Invalid, match=f"has {MODULES_LIMIT + 2} modules, over {MODULES_LIMIT}"):
        harness.admin.connection.send("PUT", f"{path}/acme/three/modules", json={"modules": built})
    assert harness.admin.base("acme/three").spec.library == "", "nothing is stored"


def test_a_base_is_deleted_while_nothing_refers_to_it(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/support")
    with pytest.raises(Conflict) as refused:
        harness.admin.delete_base("tiny-llama")
    assert refused.value.code == "BASE_IN_USE"
    harness.admin.add_base(base("mistaken"))
    refs.write_missing(harness.engine, harness.blobs, limit=10)
    harness.admin.add_base(base("acme/other"))
    pusher, owner = harness.actor("push", namespaces=["acme"]), harness.actor("admin", namespaces=["acme"])
    for actor, name in ((pusher, "mistaken"), (pusher, "acme/other"), (owner, "mistaken")):
        with pytest.raises(Denied):
            actor.delete_base(name)
    owner.delete_base("acme/other")
    harness.admin.delete_base("mistaken")
    harness.transport.settle()
    with pytest.raises(NotFound):
        harness.admin.base("mistaken")
    assert harness.admin.reindex(ReindexRequest()).bases == 0, "the bucket has forgotten it, too"
    assert harness.admin.add_base(BaseAdd(spec=spec_of(samples.llama("mistaken", hidden=128)))).name == "mistaken"


def test_an_alias_names_the_same_base_and_only_administrators_give_it(harness: Harness) -> None:
    harness.add_base()
    hub = "HuggingFaceTB/Tiny"
    with pytest.raises(Denied):
        harness.actor("admin", namespaces=["acme"]).set_base_aliases("tiny-llama", [hub])
    assert harness.admin.set_base_aliases("tiny-llama", [hub]).aliases == [hub]
    assert harness.admin.base(hub).name == "tiny-llama"
    named = harness.push("acme/support", samples.lora(dataclasses.replace(samples.llama(), name=hub)))
    assert {f.code for f in named.version.verdicts[0].findings if f.severity != "info"} == set()
    with pytest.raises(Conflict):
        harness.admin.add_base(base(hub))
    other = harness.admin.add_base(base("other")).name
    for alias in (hub, "tiny-llama"):
        with pytest.raises(Conflict):
            harness.admin.set_base_aliases(other, [alias])
    assert harness.admin.set_base_aliases("tiny-llama", []).aliases == []
    with pytest.raises(NotFound):
        harness.admin.base(hub)


def test_a_name_that_a_base_had_is_not_given_to_another_base_by_pushers(harness: Harness) -> None:
    harness.add_base()
    owner = harness.actor("admin", "push", namespaces=["hub", "acme"])
    harness.admin.set_base_aliases("tiny-llama", ["Hub/Tiny", "hub/other"])
    harness.admin.set_base_aliases("tiny-llama", ["hub/other"])
    owner.add_base(base("acme/Mine"))
    owner.delete_base("acme/Mine")
    for name in ("Hub/Tiny", "hub/tiny", "Hub/T1ny", "acme/Mine"):
        with pytest.raises(Conflict, match="name or an alias of another base") as refused:
            owner.add_base(base(name))
        assert refused.value.code == "NAME_TOMBSTONED"
    assert harness.admin.set_base_aliases("tiny-llama", ["Hub/Tiny"]).aliases == ["Hub/Tiny"], "it names the same base"
    harness.admin.set_base_aliases("tiny-llama", [])
    assert harness.admin.add_base(base("Hub/Tiny")).name == "Hub/Tiny", "an administrator decides"


def test_a_manifest_names_its_base_by_its_own_name(harness: Harness) -> None:
    """An alias may end and mean another base later; a version keeps its manifest."""
    harness.bases["hub/tiny"] = harness.add_base().spec
    harness.admin.set_base_aliases("tiny-llama", ["hub/tiny"])
    manifest = harness.manifest(harness.files(), "hub/tiny")
    with pytest.raises(Invalid, match="is an alias of the base 'tiny-llama'") as refused:
        plan_push(harness.admin, "acme/support", PushRequest(manifest=manifest))
    assert (refused.value.code, refused.value.findings[0].code) == ("BASE_INVALID", "base.is_alias")


def test_an_alias_that_is_given_to_another_base_changes_no_version(harness: Harness) -> None:
    """Versions, nodes and lists go by the base itself; only who names the alias from now on means the other one."""
    harness.add_base()
    harness.admin.set_base_aliases("tiny-llama", ["hub/tiny"])
    harness.push("acme/support", samples.lora(dataclasses.replace(samples.llama(), name="hub/tiny")))
    before = harness.admin.resolve("acme/support")
    state = harness.admin.desired_state("tiny-llama", "main")
    harness.admin.set_base_aliases("tiny-llama", [])
    other = harness.admin.add_base(base("other")).name
    harness.admin.set_base_aliases(other, ["hub/tiny"])
    assert harness.admin.resolve("acme/support") == before
    assert harness.admin.desired_state("tiny-llama", "main").adapters == state.adapters
    assert len(state.adapters) == 1
    assert harness.admin.desired_state("hub/tiny", "main").adapters == []


def test_a_base_that_is_deleted_by_its_alias_leaves_nothing_in_the_bucket(harness: Harness) -> None:
    harness.add_base()
    harness.admin.set_base_aliases("tiny-llama", ["hub/tiny"])
    refs.write_missing(harness.engine, harness.blobs, limit=10)
    harness.admin.delete_base("hub/tiny")
    harness.transport.settle()
    assert list(harness.blobs.list(refs.BASES)) == []


@pytest.mark.parametrize("first", ["alias", "add", "delete"])
def test_of_two_requests_for_one_name_at_once_one_decides_after_the_other(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Each reads who has the name before it takes it. The second one reads what the first one wrote."""
    harness.add_base()
    owner = harness.actor("push", "admin", namespaces=["hub"])
    if first == "delete":
        owner.add_base(base("hub/tiny"))
    requests: dict[str, Callable[[], object]] = {
        "alias": lambda: harness.admin.set_base_aliases("tiny-llama", ["hub/tiny"]),
        "add": lambda: owner.add_base(base("hub/tiny")),
        "delete": lambda: owner.delete_base("hub/tiny"),
    }
    has_read, other_ended = threading.Event(), threading.Event()
    look_up, lock = base_rows.find_named, threading.Lock()

    def pause_once(session: Session, name: str) -> BaseRow | None:
        row = look_up(session, name)
        with lock:
            is_first = not has_read.is_set()
            has_read.set()
        if is_first:
            other_ended.wait(1.0)  # the other one goes as far as it can
        return row

    def response(request: Callable[[], object]) -> str:
        try:
            request()
        except RegistryError as error:
            return error.code
        return "done"

    def take_second() -> str:
        assert has_read.wait(60)
        try:
            return response(requests["alias" if first == "add" else "add"])
        finally:
            other_ended.set()

    monkeypatch.setattr(base_rows, "find_named", pause_once)
    with ThreadPoolExecutor(2) as pool:
        responses = [pool.submit(response, requests[first]), pool.submit(take_second)]
        outcomes = [each.result(60) for each in responses]
    monkeypatch.undo()
    assert outcomes == ["done", "NAME_TOMBSTONED" if first == "delete" else "BASE_EXISTS"]
    if first == "delete":
        with pytest.raises(NotFound):
            harness.admin.base("hub/tiny")
    else:
        assert harness.admin.base("hub/tiny").name == ("tiny-llama" if first == "alias" else "hub/tiny")
