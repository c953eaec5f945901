"""Reading: versions, lists, search, pages, lineage; and that what is out of sight does not exist."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx
import pytest
from sqlmodel import select

from registry.api.bases import BaseAdd
from registry.api.catalog import VersionView
from registry.client.registry import Registry
from registry.errors import Conflict, Invalid, NotFound, TooLarge
from registry.server.database.models import VersionRow
from registry.server.push.inspect import FACTS_LIMIT_BYTES
from registry.versions.manifest import Edge, Relation
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import plan_pull
from tests.harness import URL, Harness

NAME = "acme/support"


def continued(*parents: VersionView) -> list[Edge]:
    return [Edge(relation=Relation.CONTINUED, digest=p.digest, name=f"{p.name}@{p.number}") for p in parents]


def raw(harness: Harness, registry: Registry, path: str) -> httpx.Response:
    return httpx.Client(transport=harness.transport, base_url=URL).get(
        f"/api/v1{path}", headers={"Authorization": registry.connection._own_headers(None)["Authorization"]}
    )


def test_the_view_of_a_version_has_all_its_fields(harness: Harness) -> None:
    harness.add_base()
    files = harness.files(rank=4)
    pushed = harness.push(NAME, files, message="first try").version
    harness.validate(f"{NAME}@1")
    view = harness.admin.version(NAME)
    assert (view.name, view.number, view.digest, view.base) == (NAME, 1, pushed.digest, "tiny-llama")
    assert view.message == "first try"
    assert view.created_by == "token:admin"
    assert {f.path for f in view.files} == set(files)
    assert view.size_bytes == sum(map(len, files.values()))
    assert view.aliases == ["main"]
    assert [(v.check, v.outcome, v.subject) for v in view.verdicts] == [
        ("compat", "pass", pushed.digest),
        ("weights", "pass", pushed.digest),
        ("smoke", "pass", pushed.digest),
    ]
    for ref in (f"{NAME}:main", f"{NAME}@1", f"{NAME}@{pushed.digest}"):
        assert harness.admin.version(ref) == view


def test_versions_come_newest_first_in_pages(harness: Harness) -> None:
    harness.add_base()
    for _ in range(5):
        harness.push(NAME)
    numbers, cursor = [], ""
    while True:
        page = harness.admin.versions(NAME, cursor=cursor, limit=2)
        numbers += [v.number for v in page.items]
        cursor = page.next_cursor
        if not cursor:
            break
    assert numbers == [5, 4, 3, 2, 1]


@pytest.mark.security
def test_facts_of_a_version_are_limited(harness: Harness) -> None:
    """Names of modules stand in facts several times: a header of 16 MiB made a row of 50."""
    harness.add_base()

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        names = [f"base_model.model.{'m' * 100}{number}" for number in range(3000)]
        rest = {f"{name}.lora_{side}.weight": ("F32", (1, 1), None) for name in names for side in "AB"}
        return {**tensors, **rest}

    with pytest.raises(TooLarge, match=f"over the limit of {FACTS_LIMIT_BYTES}"):
        harness.push(NAME, harness.files(rank=1, change=change))
    assert harness.push(NAME).version.number == 1


def test_the_list_is_searched_and_paged_and_costs_four_statements(harness: Harness) -> None:
    harness.add_base()
    harness.add_base(samples.gpt2())
    for name in ("acme/alpha", "acme/beta", "globex/alpha"):
        harness.push(name)
    gpt2 = samples.gpt2()
    harness.push("globex/gpt", harness.files(gpt2, targets=("c_attn",)), base=gpt2.name)
    harness.push("acme/alpha")
    harness.admin.promote("acme/beta", "canary", "1", generation=0)

    def listed(**search: Any) -> list[str]:
        return [item.name for item in harness.admin.adapters(**search).items]

    assert listed() == ["acme/alpha", "acme/beta", "globex/alpha", "globex/gpt"]
    assert listed(namespace="acme") == ["acme/alpha", "acme/beta"]
    assert listed(base=gpt2.name) == ["globex/gpt"]
    assert listed(method="lora") == listed(method="LORA") == listed()
    assert listed(text="alph") == ["acme/alpha", "globex/alpha"]
    assert listed(text="Globex/al") == ["globex/alpha"]
    assert listed(text="lpha") == listed(text="%") == listed(text="alpha nothing") == []
    assert listed(alias="canary") == ["acme/beta"]
    first = harness.admin.adapters(limit=3)
    rest = harness.admin.adapters(cursor=first.next_cursor, limit=3)
    assert [i.name for i in (*first.items, *rest.items)] == listed()
    assert rest.next_cursor == ""
    view = harness.admin.adapter("acme/alpha")
    assert view == first.items[0]
    assert (view.versions, view.newest, view.aliases) == (2, 2, {"main": 2})
    assert view.verdicts == {"compat": "pass", "weights": "pass"}
    with harness.statements() as sent:
        harness.admin.adapters()
    assert len([s for s in sent if "FROM token" not in s]) == 4


@pytest.mark.parametrize("limit", [0, -1])
def test_a_page_has_a_limit(harness: Harness, limit: int) -> None:
    with pytest.raises(Invalid) as caught:
        harness.admin.adapters(limit=limit)
    assert caught.value.code == "REQUEST_INVALID"


def test_an_invisible_adapter_gets_the_same_bytes_as_an_absent_one(harness: Harness) -> None:
    harness.add_base()
    hidden = harness.push("globex/secret").version
    acme = harness.actor("push", "promote", "pull", namespaces=["acme"])
    for path in (
        "/adapters/globex/{}",
        "/adapters/globex/{}/versions",
        "/adapters/globex/{}/versions/main",
        "/adapters/globex/{}/versions/" + hidden.digest,
        "/adapters/globex/{}/versions/1/lineage",
        "/adapters/globex/{}/versions/1/files/README.md",
        "/adapters/globex/{}/aliases",
        "/adapters/globex/{}/aliases/main",
        "/adapters/globex/{}/history",
        "/resolve/globex/{}/main",
        "/resolve/globex/{}/1",
    ):
        there, absent = raw(harness, acme, path.format("secret")), raw(harness, acme, path.format("absent"))
        assert there.status_code == absent.status_code == 404, (path, there.text)
        without_id = [{k: v for k, v in response.json().items() if k != "request_id"} for response in (there, absent)]
        assert str(without_id[0]).replace("secret", "absent") == str(without_id[1])
        assert there.headers.keys() == absent.headers.keys()
    assert acme.adapters().items == []
    assert [job.subject for job in acme.jobs().items] == []


def test_kinds_of_absence_are_distinguished_for_those_who_may_look(harness: Harness) -> None:
    harness.add_base()
    harness.push(NAME)
    for ref, code in (
        ("acme/nothing", "ADAPTER_UNKNOWN"),
        (f"{NAME}:prod", "ALIAS_UNKNOWN"),
        (f"{NAME}@7", "VERSION_UNKNOWN"),
        (f"{NAME}@sha256:{'0' * 64}", "VERSION_UNKNOWN"),
    ):
        for ask in (harness.admin.resolve, harness.admin.version):
            with pytest.raises(NotFound) as caught:
                ask(ref)
            assert caught.value.code == code


def set_digest(harness: Harness, digest: str, ref: str) -> None:
    """Change the digest in the row of a version."""
    with harness.session(write=True) as session:
        row = session.exec(select(VersionRow).where(VersionRow.digest == harness.admin.version(ref).digest)).one()
        row.digest = digest
        session.add(row)


def test_a_short_digest_names_the_one_version_that_begins_with_it(harness: Harness) -> None:
    harness.add_base()
    first, other = harness.push(NAME).version, harness.push("acme/other").version
    short = f"{NAME}@{first.digest[:15]}"
    assert harness.admin.resolve(short).number == harness.admin.version(short).number == 1
    assert plan_pull(harness.admin, short).resolved.digest == first.digest
    assert [job.subject for job in harness.admin.jobs(ref=short).items] == [f"{NAME}@1"]
    for ref in (f"{NAME}@{other.digest[:15]}", f"{NAME}@sha256:{'0' * 8}"):
        for ask in (harness.admin.resolve, harness.admin.version, partial(plan_pull, harness.admin)):
            with pytest.raises(NotFound, match="has no version"):
                ask(ref)

    harness.push(NAME)
    set_digest(harness, first.digest[:15] + "0" * 56, f"{NAME}@2")
    for ask in (harness.admin.resolve, harness.admin.version, partial(plan_pull, harness.admin)):
        with pytest.raises(NotFound, match=f"has 2 versions whose digest begins with {first.digest[:15]}") as caught:
            ask(short)
        assert caught.value.code == "VERSION_UNKNOWN"
        assert "more of its digits" in caught.value.next_step


# ------------------------------------------------------------------ lineage
def test_lineage_goes_up_to_the_bases_and_down_to_the_children(harness: Harness) -> None:
    harness.add_base()
    first = harness.push("acme/first").version
    second = harness.push("acme/second", parents=continued(first)).version
    third = harness.push("acme/third", parents=continued(second, first)).version
    up = harness.admin.lineage("acme/third")
    assert up.root == third.digest
    assert {(e.child, e.parent, e.relation) for e in up.edges if e.relation != "adapter"} == {
        (third.digest, second.digest, "continued"),
        (third.digest, first.digest, "continued"),
        (second.digest, first.digest, "continued"),
    }
    assert {n.name for n in up.nodes} == {"acme/first", "acme/second", "acme/third", "tiny-llama"}
    down = harness.admin.lineage("acme/first", down=True)
    assert {e.child for e in down.edges if e.relation == "continued"} == {second.digest, third.digest}
    assert harness.admin.lineage("acme/first").edges == [e for e in up.edges if e.child == first.digest]


def test_an_invisible_parent_is_shown_by_its_digest_alone(harness: Harness) -> None:
    harness.add_base()
    grandparent = harness.push("globex/old").version
    parent = harness.push("globex/secret", parents=continued(grandparent)).version
    child = harness.push("acme/child", parents=continued(parent)).version
    acme = harness.actor("pull", namespaces=["acme"])
    up = acme.lineage("acme/child")
    nodes = {n.id: n for n in up.nodes}
    assert nodes[parent.digest].model_dump() == {
        "id": parent.digest, "kind": "version", "name": "", "number": None, "digest": parent.digest, "hidden": True,
        "uri": "", "withdrawn": "",
    }  # fmt: skip
    assert grandparent.digest not in nodes
    assert nodes[child.digest].name == "acme/child"
    globex = harness.actor("pull", namespaces=["globex"])
    assert [e.child for e in globex.lineage("globex/old", down=True).edges if e.relation == "continued"] == [
        parent.digest
    ]


def test_a_digest_under_two_names_is_shown_under_the_requested_name(harness: Harness) -> None:
    harness.add_base()
    files = harness.files()
    first = harness.push("acme/a", files).version
    second = harness.push("acme/b", files).version
    assert first.digest == second.digest
    up = harness.admin.lineage("acme/b")
    assert next(n for n in up.nodes if n.id == first.digest).name == "acme/b"


# ------------------------------------------------------------------ bases
def test_a_base_is_added_once_and_never_changed(harness: Harness) -> None:
    spec = spec_of(samples.llama())
    view = harness.admin.add_base(BaseAdd(spec=spec, source="/models/tiny"))
    assert harness.admin.add_base(BaseAdd(spec=spec)) == view
    other = spec_of(samples.llama(hidden=32))
    with pytest.raises(Conflict) as caught:
        harness.admin.add_base(BaseAdd(spec=other))
    assert caught.value.code == "BASE_EXISTS"
    assert "they differ in hidden," in str(caught.value)
    assert "fingerprints.architecture" in str(caught.value)
    assert harness.admin.base(spec.name).spec == spec
    assert [b.name for b in harness.admin.bases().items] == [spec.name]


def test_a_base_counts_the_visible_adapters(harness: Harness) -> None:
    harness.add_base()
    harness.push("acme/a")
    harness.push("acme/a")
    harness.push("globex/b")
    assert harness.admin.base("tiny-llama").adapters == 2
    assert harness.actor("pull", namespaces=["acme"]).base("tiny-llama").adapters == 1


def test_a_base_name_may_have_an_organization(harness: Harness) -> None:
    base = samples.llama("meta/Tiny-1B")
    harness.add_base(base)
    assert harness.admin.base("meta/Tiny-1B").name == "meta/Tiny-1B"
    with pytest.raises(NotFound) as caught:
        harness.admin.base("meta/other")
    assert caught.value.code == "BASE_UNKNOWN"
