"""Lineage: inputs, data sets, bases, what is fused into them; what is out of sight leaves no trace; one statement."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from registry.api.bases import BaseAdd
from registry.api.catalog import VersionView
from registry.api.lineage import Lineage
from registry.digest import Digest
from registry.errors import Invalid, NotFound
from registry.server.catalog import lineage
from registry.versions.manifest import Edge, Relation
from registry.versions.provenance import Provenance
from tests import samples
from tests.base_specs import spec_of
from tests.bulk import PUSHES, push_body, response_about
from tests.harness import Harness

D = Digest.of(b"tickets")
URI = "s3://data/tickets.jsonl"


def edges(*parents: VersionView, relation: Relation = Relation.CONTINUED) -> list[Edge]:
    return [Edge(relation=relation, digest=p.digest, name=f"{p.name}@{p.number}") for p in parents]


def declared(**values: Any) -> Provenance:
    provenance = Provenance.read(values)
    assert provenance is not None
    return provenance


def edges_by_name(graph: Lineage) -> set[tuple[str, str, str]]:
    """Edges by names: child, relation, parent."""
    names = {n.id: f"{n.name}@{n.number}" if n.number else n.name or n.id for n in graph.nodes}
    assert {n.id for n in graph.nodes} >= {
        graph.root,
        *(e.child for e in graph.edges),
        *(e.parent for e in graph.edges),
    }
    return {(names[e.child], e.relation, names[e.parent]) for e in graph.edges}


def fused_harness(harness: Harness) -> None:
    """acme/x on the first base is fused into a second one, on which acme/y is trained, from which acme/z goes on."""
    x = harness.push("acme/x", provenance=declared(datasets=[{"name": "tickets", "uri": URI, "digest": D}])).version
    other = samples.llama("tiny-fused", seed=2)
    harness.bases[other.name] = spec_of(other)
    harness.admin.add_base(BaseAdd(spec=spec_of(other), parents=edges(x, relation=Relation.FUSED)))
    y = harness.push("acme/y", harness.files(other), base=other.name).version
    harness.push("acme/z", harness.files(other), base=other.name, parents=edges(y))


def test_what_was_declared_and_what_the_readme_claims_are_nodes(filled_harness: Harness) -> None:
    card = b"---\ndatasets: [acme/chats]\n---\n"
    provenance = declared(
        datasets=[{"name": "tickets", "uri": URI, "digest": D, "split": "train"}],
        run={"tool": "mlflow", "id": "4f", "url": "https://mlflow.example.org/4f"},
        code={"repository": "https://git.example.org/acme/train", "commit": "9c4f" * 10},
        parameters={"lr": 2e-4},
    )
    version = filled_harness.push(
        "acme/a", {**filled_harness.files(), "README.md": card}, provenance=provenance
    ).version
    assert version.provenance == provenance
    assert version.facts["card"] == {"datasets": ["acme/chats"]}
    assert filled_harness.admin.resolve("acme/a").manifest.provenance == provenance
    graph = filled_harness.admin.lineage("acme/a")
    assert edges_by_name(graph) == {
        ("acme/a@1", "adapter", "tiny-llama"),
        ("acme/a@1", "dataset", "tickets"),
        ("acme/a@1", "claimed", "acme/chats"),
        ("acme/a@1", "run", "mlflow 4f"),
        ("acme/a@1", "code", "train@9c4f9c4f9c4f"),
    }
    nodes = {n.kind: n for n in graph.nodes if n.name != "acme/chats"}
    assert (nodes["dataset"].uri, nodes["dataset"].digest) == (URI, D)
    assert nodes["run"].uri == "https://mlflow.example.org/4f"
    assert filled_harness.push("acme/a", {**filled_harness.files(), "README.md": card}).version.provenance is None


def test_the_server_refuses_invalid_provenance_too(filled_harness: Harness) -> None:
    plain = filled_harness.manifest(filled_harness.files()).model_dump(mode="json")
    for wrong, status, message in (
        ({"datasets": [{"uri": "https://me:pw@h/x"}]}, 422, "provenance.datasets.0.uri holds a user"),
        ({"run": {"tool": "x", "id": "1", "token": "y"}}, 400, "provenance.run.token"),
        ({}, 422, "declares nothing"),
    ):
        response = _sent(filled_harness, plain | {"provenance": wrong})
        assert (response[0], message in response[1]) == (status, True), response


def _sent(harness: Harness, manifest: dict[str, Any]) -> tuple[int, str]:
    with httpx.Client(transport=harness.transport, base_url="http://registry.test") as client:
        headers = {"Authorization": f"Bearer {harness.secret}"}
        response = response_about(client.post(PUSHES, json=push_body("acme/a", manifest), headers=headers))
    return response.status_code, response.json()["detail"]


def test_descendants_of_a_data_set_are_found_by_digest_and_by_uri(filled_harness: Harness) -> None:
    first = filled_harness.push(
        "acme/one", provenance=declared(datasets=[{"name": "tickets", "uri": URI, "digest": D}])
    ).version
    filled_harness.push("acme/two", provenance=declared(datasets=[{"uri": URI}]))
    filled_harness.push("acme/three", parents=edges(first))
    filled_harness.push(
        "acme/none", provenance=declared(datasets=[{"uri": URI + ".other"}], run={"tool": "w", "id": "1"})
    )
    below = {("acme/three@1", "continued", "acme/one@1"), ("acme/three@1", "adapter", "tiny-llama")}
    graph = filled_harness.admin.lineage_of(dataset=D)
    assert edges_by_name(graph) == below | {("acme/one@1", "dataset", D), ("acme/one@1", "adapter", "tiny-llama")}
    assert graph.root == f"dataset:{D}"
    graph = filled_harness.admin.lineage_of(dataset=URI)
    assert {(c, r) for c, r, p in edges_by_name(graph) if p == URI} == {
        ("acme/one@1", "dataset"),
        ("acme/two@1", "dataset"),
    }
    assert edges_by_name(graph) >= below
    assert filled_harness.admin.lineage_of(dataset="s3://nobody/knows").edges == []
    files = {**filled_harness.files(), "README.md": b"---\ndatasets:\n- acme/chats\n---\n"}
    filled_harness.push("acme/claims", files)
    assert ("acme/claims@1", "claimed", "hf://datasets/acme/chats") in edges_by_name(
        filled_harness.admin.lineage_of(dataset="hf://datasets/acme/chats")
    )


def test_lineage_continues_through_fused_bases(filled_harness: Harness) -> None:
    fused_harness(filled_harness)
    line = {
        ("acme/x@1", "adapter", "tiny-llama"),
        ("tiny-fused", "fused", "acme/x@1"),
        ("acme/y@1", "adapter", "tiny-fused"),
        ("acme/z@1", "adapter", "tiny-fused"),
        ("acme/z@1", "continued", "acme/y@1"),
    }
    assert edges_by_name(filled_harness.admin.lineage_of(base="tiny-llama")) == line
    assert edges_by_name(filled_harness.admin.lineage("acme/x", down=True)) == line
    assert edges_by_name(filled_harness.admin.lineage_of(dataset=D)) == line | {("acme/x@1", "dataset", D)}
    upwards = line | {("acme/x@1", "dataset", "tickets")}
    assert edges_by_name(filled_harness.admin.lineage("acme/z")) == upwards
    assert edges_by_name(filled_harness.admin.lineage_of(base="tiny-fused", down=False)) == {
        edge for edge in upwards if edge[0] in ("tiny-fused", "acme/x@1")
    }
    assert filled_harness.admin.lineage_of(base="tiny-llama", down=False).edges == []


def test_invisible_versions_leave_no_trace_in_lineage(filled_harness: Harness) -> None:
    acme = filled_harness.actor("pull", namespaces=["acme"])
    provenance = declared(datasets=[{"uri": URI, "digest": D}])
    visible_version = filled_harness.push("acme/seen", provenance=provenance).version

    def everything() -> list[Lineage]:
        graphs = [acme.lineage_of(dataset=URI), acme.lineage_of(dataset=D), acme.lineage_of(base="tiny-llama")]
        return [*graphs, acme.lineage("acme/seen"), acme.lineage("acme/seen", down=True)]

    before = everything()
    hidden = filled_harness.push("globex/secret", provenance=provenance, parents=edges(visible_version)).version
    below = filled_harness.push("globex/deeper", parents=edges(hidden)).version
    assert everything() == before
    visible = filled_harness.push("acme/again", parents=edges(below)).version
    graph = acme.lineage("acme/again")
    assert [n.model_dump(exclude_defaults=True) for n in graph.nodes if n.hidden] == [
        {"id": below.digest, "kind": "version", "digest": below.digest, "hidden": True}
    ]
    assert hidden.digest not in {n.id for n in graph.nodes}
    assert visible.digest not in {n.id for n in acme.lineage("acme/seen", down=True).nodes}, "only through the unseen"
    assert visible.digest in {n.id for n in filled_harness.admin.lineage("acme/seen", down=True).nodes}


def test_a_withdrawn_version_is_marked(filled_harness: Harness) -> None:
    first = filled_harness.push("acme/a").version
    filled_harness.push("acme/b", parents=edges(first))
    filled_harness.admin.yank("acme/b@1", "diverged")
    states = {n.name: n.withdrawn for n in filled_harness.admin.lineage("acme/a", down=True).nodes}
    assert states == {"acme/a": "", "acme/b": "yanked", "tiny-llama": ""}


@pytest.mark.parametrize(
    "query",
    [{}, {"dataset": URI, "base": "tiny-llama"}, {"dataset": "sha256:1"}, {"dataset": URI, "down": False}],
)
def test_a_lineage_request_names_exactly_one_root(filled_harness: Harness, query: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        filled_harness.admin.lineage_of(**query)
    with pytest.raises(NotFound):
        filled_harness.admin.lineage_of(base="nobody/knows")


def test_a_truncated_response_says_so(filled_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    first = filled_harness.push("acme/a").version
    for _ in range(4):
        filled_harness.push("acme/b", parents=edges(first))
    assert not filled_harness.admin.lineage("acme/a@1", down=True).truncated
    monkeypatch.setattr(lineage, "EDGES_LIMIT", 3)
    graph = filled_harness.admin.lineage("acme/a@1", down=True)
    assert graph.truncated
    assert 1 <= len([e for e in graph.edges if e.relation == "continued"]) <= 4


# ------------------------------------------------------------------ how it is asked
