"""Diagrams and exports of lineage: pure functions of what the registry returns, safe with any text in it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from registry.api.catalog import VersionView
from registry.api.lineage import Lineage, LineageEdge, LineageNode
from registry.digest import Digest, canonical_json
from registry.errors import TooLarge
from registry.lineage import cyclonedx, diagrams, openlineage, slsa
from registry.lineage.diagrams import svg
from registry.versions.manifest import Descriptor
from registry.versions.provenance import Provenance

ROOT, PARENT, UNSEEN, FILE, DATA = (Digest.of(word.encode()) for word in ("root", "parent", "unseen", "file", "data"))
EVIL = '</text><script>alert(1)</script>"]; click n0 "javascript:x" #quot; \\" -->'
COMMIT = "9c4f" * 10
DECLARED = Provenance.read(
    {
        "datasets": [{"name": EVIL, "uri": "s3://data/tickets.jsonl", "digest": DATA}],
        "run": {"tool": "mlflow", "id": "4f1c", "url": "https://mlflow.example.org/4f1c"},
        "code": {"repository": "https://git.example.org/acme/train", "commit": COMMIT},
        "parameters": {"lr": 2e-4},
    }
)


def sample_graph() -> Lineage:
    nodes = [
        LineageNode(id=ROOT, kind="version", name="acme/support", number=3, digest=ROOT),
        LineageNode(id=PARENT, kind="version", name="acme/support", number=2, digest=PARENT, withdrawn="yanked"),
        LineageNode(id=UNSEEN, kind="version", digest=UNSEEN, hidden=True),
        LineageNode(id="base:tiny", kind="base", name="tiny"),
        LineageNode(id=f"dataset:{DATA}", kind="dataset", name=EVIL, uri="s3://data/tickets.jsonl", digest=DATA),
        LineageNode(id="dataset:hf://datasets/a/b", kind="dataset", name="a/b", uri="hf://datasets/a/b"),
        LineageNode(id="run:mlflow:4f1c", kind="run", name="mlflow 4f1c", uri="https://mlflow.example.org/4f1c"),
    ]
    links = [
        (ROOT, PARENT, "continued"), (PARENT, UNSEEN, "merged"), (ROOT, "base:tiny", "adapter"),
        (PARENT, "base:tiny", "adapter"), (ROOT, f"dataset:{DATA}", "dataset"), (ROOT, "run:mlflow:4f1c", "run"),
        (ROOT, "dataset:hf://datasets/a/b", "claimed"),
    ]  # fmt: skip
    edges = [LineageEdge(child=c, parent=p, relation=r) for c, p, r in links]
    return Lineage(root=ROOT, nodes=nodes, edges=edges)


def version(**change: Any) -> VersionView:
    file = Descriptor(path="adapter_model.safetensors", media_type="x/y", digest=FILE, size_bytes=9)
    facts = {"method": "LORA", "card": {"datasets": ["a/b"], "tools": {"trl": "0.24.0"}}}
    values: dict[str, Any] = {
        "name": "acme/support", "number": 3, "digest": ROOT, "base": "tiny", "base_fingerprint": Digest.of(b"b"),
        "files": [file], "parents": [], "facts": facts, "verdicts": [], "aliases": [], "size_bytes": 9, "message": "",
        "created_at": datetime(2026, 5, 3, 14, 5, tzinfo=UTC), "created_by": "ci", "provenance": DECLARED,
    }  # fmt: skip
    return VersionView(**values | change)


def chain(length: int) -> Lineage:
    """A line of descent on one base."""
    ids = [str(Digest.of(b"%d" % n)) for n in range(length)]
    nodes = [
        LineageNode(id=node_id, kind="version", name="a/b", number=n + 1, digest=node_id)
        for n, node_id in enumerate(ids)
    ]
    edges = [LineageEdge(child=ids[n], parent=ids[n - 1], relation="continued") for n in range(1, length)]
    edges += [LineageEdge(child=node_id, parent="base:t", relation="adapter") for node_id in ids]
    return Lineage(root=ids[-1], nodes=[*nodes, LineageNode(id="base:t", kind="base", name="t")], edges=edges)


# ------------------------------------------------------------------ diagrams
def rectangles(text: str) -> dict[str, tuple[float, float, float, float]]:
    """Label → left, top, right, bottom of the rectangle that it stands in."""
    tree = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    areas = {}
    rects = [tuple(float(r.attrib[k]) for k in ("x", "y", "width", "height")) for r in tree.iter(f"{space}rect")]
    for word in tree.iter(f"{space}text"):
        x, y = float(word.attrib["x"]), float(word.attrib["y"])
        for x_min, top, width, height in rects:
            if x_min <= x <= x_min + width and top <= y <= top + height and word.get("class") is None:
                areas[word.text or ""] = (x_min, top, x_min + width, top + height)
    return areas


def test_an_svg_is_xml_without_script_and_its_parents_stand_left_of_their_children() -> None:
    text = "\n".join(svg(sample_graph()))
    tree = ElementTree.fromstring(text)
    tags = {element.tag.rpartition("}")[2] for element in tree.iter()}
    assert tags == {"svg", "title", "style", "defs", "marker", "path", "g", "rect", "text"}
    by_text = rectangles(text)
    assert (
        by_text["tiny"][2] < by_text["acme/support@2"][0] < by_text["acme/support@2"][2] < by_text["acme/support@3"][0]
    )
    assert len(by_text) == 7
    assert "claimed" in text
    assert "yanked" in text


@pytest.mark.parametrize("graph", [sample_graph(), chain(30), chain(1)], ids=["all kinds", "chain", "alone"])
def test_no_rectangle_covers_another(graph: Lineage) -> None:
    places = list(rectangles("\n".join(svg(graph))).values())
    assert len(places) == len(graph.nodes)
    for n, (x_min, top, right, bottom) in enumerate(places):
        for other in places[n + 1 :]:
            assert right <= other[0] or other[2] <= x_min or bottom <= other[1] or other[3] <= top


@pytest.mark.parametrize("name", ["日本語" * 10, "👩‍💻" * 20, "\ufdfd" * 8, "M" * 50, "n\u0301" * 30, "\u200b"])
def test_a_label_of_wide_letters_stays_within_its_rectangle(name: str) -> None:
    """Fonts differ, so a text that is not ASCII is drawn as wide as it was estimated."""
    graph = chain(1)
    named = graph.nodes[0].model_copy(update={"name": name, "number": None})
    tree = ElementTree.fromstring("\n".join(svg(graph.model_copy(update={"nodes": [named, *graph.nodes[1:]]}))))
    rectangle, text = (next(tree.iter(f"{{http://www.w3.org/2000/svg}}{tag}")) for tag in ("rect", "text"))
    estimate = float(text.attrib["textLength"]) if not name.isascii() else 9.8 * len(name)
    assert 0 < estimate <= float(rectangle.attrib["width"]) - 30


@pytest.mark.security
def test_a_long_chain_is_not_drawn() -> None:
    """Of 2,500 versions on one base the drawing would have 156 MB and take a minute."""
    with pytest.raises(TooLarge, match="at most 300000 are drawn") as caught:
        list(svg(chain(800)))
    assert "JSON, DOT or Mermaid" in caught.value.next_step
    assert len(list(diagrams.dot(chain(800)))) > 1600
    assert len(list(svg(chain(300)))) > 300


def test_hostile_text_is_quoted_by_the_rules_of_each_format() -> None:
    dot = "\n".join(diagrams.dot(sample_graph()))
    for line in dot.splitlines():
        unescaped = line.replace("\\\\", "").replace('\\"', "")
        assert unescaped.count('"') % 2 == 0, line
    label = next(line for line in dot.splitlines() if "script" in line)
    assert label.split('label="', 1)[1].count('"') == 3, "the end of the label, and the tooltip"
    mermaid = "\n".join(diagrams.mermaid(sample_graph()))
    assert "<" not in mermaid.replace("-->", "").replace("-.->", "")
    assert "#60;script#62;" in mermaid
    node = next(line for line in mermaid.splitlines() if "script" in line)
    assert node.count('"') == 2


def test_a_label_is_one_short_line() -> None:
    long = LineageNode(id="dataset:x", kind="dataset", name="x\n\x1b[31m\u202e" + "y" * 300)
    shown = diagrams.label(long)
    assert len(shown) <= 61
    assert shown.isprintable()
    assert diagrams.label(sample_graph().nodes[2]) == f"(not visible to you) {UNSEEN.short}"


# ------------------------------------------------------------------ exports
def test_a_bill_of_materials_names_files_data_base_and_ancestors() -> None:
    bom = cyclonedx.bom(version(), sample_graph())
    assert bom == cyclonedx.bom(version(), sample_graph()), "the same again"
    subject = bom["metadata"]["component"]
    assert (subject["type"], subject["name"], subject["version"]) == ("machine-learning-model", "acme/support", "3")
    assert subject["components"][0]["hashes"] == [{"alg": "SHA-256", "content": FILE.hex}]
    assert {p["name"].partition(":")[2]: p["value"] for p in subject["properties"]}["parameter:lr"] == "0.0002"
    assert {(r["type"], r["url"]) for r in subject["externalReferences"]} == {
        ("vcs", "https://git.example.org/acme/train"), ("build-meta", "https://mlflow.example.org/4f1c"),
    }  # fmt: skip
    kinds = {component["bom-ref"]: component["type"] for component in bom["components"]}
    assert kinds == {
        PARENT: "machine-learning-model", UNSEEN: "machine-learning-model", "base:tiny": "machine-learning-model",
        f"dataset:{DATA}": "data", "dataset:hf://datasets/a/b": "data",
    }  # fmt: skip
    claims = [c["bom-ref"] for c in bom["components"] if any("claimed" in p["name"] for p in c.get("properties", []))]
    assert claims == ["dataset:hf://datasets/a/b"]
    depends = {entry["ref"]: entry["dependsOn"] for entry in bom["dependencies"]}
    assert depends[PARENT] == sorted([UNSEEN, "base:tiny"])
    assert set(depends) == {ROOT, *kinds}


def facets(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "facets":
                yield from inner.values()
            yield from facets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from facets(inner)


def test_a_run_event_has_inputs_an_output_and_facets_that_say_whose_they_are() -> None:
    event = openlineage.event(version(), sample_graph())
    assert {"eventType", "eventTime", "run", "job", "inputs", "outputs", "producer", "schemaURL"} == set(event)
    assert datetime.fromisoformat(event["eventTime"]) == version().created_at
    assert all({"_producer", "_schemaURL"} <= set(facet) for facet in facets(event))
    assert {(d["namespace"], d["name"]) for d in event["inputs"]} == {
        ("adapter-registry", "acme/support"), ("adapter-registry:base", "tiny"), ("s3://data", "tickets.jsonl"),
        ("hf://datasets", "a/b"),
    }  # fmt: skip
    assert event["outputs"][0]["facets"]["version"]["datasetVersion"] == ROOT
    assert event["job"]["facets"]["sourceCodeLocation"]["version"] == COMMIT
    assert event["run"]["facets"]["executionParameters"]["parameters"] == [{"key": "lr", "value": "0.0002"}]


def test_a_statement_has_the_files_as_subjects_and_what_was_declared_as_dependencies() -> None:
    statement = slsa.statement(version(), sample_graph())
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    assert {s["name"]: s["digest"]["sha256"] for s in statement["subject"]} == {
        "acme/support@3": ROOT.hex, "adapter_model.safetensors": FILE.hex,
    }  # fmt: skip
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"]["parameters"] == {"lr": "0.0002"}
    by_relation = {d["annotations"]["relation"]: d for d in build["resolvedDependencies"]}
    assert set(by_relation) == {"continued", "adapter", "dataset", "claimed", "code"}
    assert by_relation["dataset"]["digest"] == {"sha256": DATA.hex}
    assert by_relation["code"]["digest"] == {"gitCommit": COMMIT}
    assert statement["predicate"]["runDetails"]["builder"]["id"].startswith("urn:adapter-registry:pusher:")
    assert json.loads(canonical_json(statement)) == statement, "it can be signed as it is"


def test_a_version_that_declares_nothing_is_exported_too() -> None:
    plain = version(provenance=None, facts={})
    alone = Lineage(root=ROOT, nodes=[sample_graph().nodes[0]], edges=[])
    assert cyclonedx.bom(plain, alone)["components"] == []
    assert openlineage.event(plain, alone)["inputs"] == []
    assert slsa.statement(plain, alone)["predicate"]["buildDefinition"]["resolvedDependencies"] == []
