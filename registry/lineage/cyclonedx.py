"""A version's lineage as a CycloneDX 1.6 machine-learning bill of materials (ML-BOM), in JSON.

The serial number is made from the digest, so equal lineage gives an equal document. A parent that the reader may not
see is its digest.
"""

import uuid
from collections.abc import Iterator
from typing import Any

from registry import __version__
from registry.api.catalog import VersionView
from registry.api.lineage import Lineage, LineageNode
from registry.versions.files import CARD

SPEC_VERSION = "1.6"
PROPERTY = "adapter-registry:"


def bom(version: VersionView, lineage: Lineage) -> dict[str, Any]:
    """The bill of materials of one version; `lineage` holds its ancestors."""
    data = {node.id: node for node in lineage.nodes if node.kind == "dataset"}
    models = [node for node in lineage.nodes if node.kind in ("version", "base") and node.id != lineage.root]
    node_ids = {lineage.root, *data, *(node.id for node in models)}
    claimed = {edge.parent for edge in lineage.edges if edge.relation == "claimed"}
    depends: dict[str, list[str]] = {node: [] for node in sorted(node_ids)}
    for edge in lineage.edges:
        if edge.child in node_ids and edge.parent in node_ids:
            depends[edge.child].append(edge.parent)
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, version.digest)}",
        "version": 1,
        "metadata": {
            "timestamp": version.created_at.isoformat(),
            "tools": {"components": [{"type": "application", "name": "adapter-registry", "version": __version__}]},
            "component": _subject(version, lineage),
        },
        "components": [_model(node) for node in models] + [_data(node, node.id in claimed) for node in data.values()],
        "dependencies": [{"ref": node, "dependsOn": sorted(set(parents))} for node, parents in depends.items()],
    }


def _subject(version: VersionView, lineage: Lineage) -> dict[str, Any]:
    about = {edge.parent for edge in lineage.edges if edge.child == lineage.root}
    card: dict[str, Any] = {"modelParameters": {"datasets": []}}
    card["modelParameters"]["datasets"] = [
        {"ref": node.id} for node in lineage.nodes if node.kind == "dataset" and node.id in about
    ]
    if method := version.facts.get("method"):
        card["modelParameters"]["modelArchitecture"] = f"{method} adapter of {version.base}"
    component = {
        "type": "machine-learning-model",
        "bom-ref": lineage.root,
        "name": version.name,
        "version": str(version.number),
        "hashes": _hashes(version.digest),
        "modelCard": card,
        "components": [
            {"type": "file", "bom-ref": f"{lineage.root}#{f.path}", "name": f.path, "mime-type": f.media_type,
             "hashes": _hashes(f.digest)}
            for f in version.files
        ],
        "properties": list(_properties(version)),
    }  # fmt: skip
    references = list(_references(version))
    return component | ({"externalReferences": references} if references else {})


def _properties(version: VersionView) -> Iterator[dict[str, str]]:
    properties = {"manifest": version.digest, "base": version.base, "base-fingerprint": version.base_fingerprint}
    properties |= {"pushed-by": version.created_by}
    declared = version.provenance
    if declared is not None:
        properties |= {f"parameter:{name}": value for name, value in sorted(declared.parameters.items())}
        if declared.run is not None:
            properties["run"] = f"{declared.run.tool}:{declared.run.id}"
    properties |= {f"claimed-tool:{name}": number for name, number in _tools(version)}
    trained = version.facts.get("trainer") or {}
    properties |= {f"claimed-training:{name}": f"{value:.6g}" for name, value in trained.items() if name != "losses"}
    yield from ({"name": PROPERTY + name, "value": value} for name, value in properties.items())


def _tools(version: VersionView) -> list[tuple[str, str]]:
    return sorted(((version.facts.get("card") or {}).get("tools") or {}).items())


def _references(version: VersionView) -> Iterator[dict[str, str]]:
    declared = version.provenance
    if declared is not None and declared.code is not None:
        yield {"type": "vcs", "url": declared.code.repository, "comment": f"commit {declared.code.commit}"}
    if declared is not None and declared.run is not None and declared.run.url:
        yield {"type": "build-meta", "url": declared.run.url, "comment": f"training run of {declared.run.tool}"}


def _model(node: LineageNode) -> dict[str, Any]:
    component: dict[str, Any] = {"type": "machine-learning-model", "bom-ref": node.id, "name": node.name or node.id}
    if node.number:
        component["version"] = str(node.number)
    if node.digest:
        component["hashes"] = _hashes(node.digest)
    if node.withdrawn:
        component["properties"] = [{"name": PROPERTY + "withdrawn", "value": node.withdrawn}]
    return component


def _data(node: LineageNode, claimed: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"type": "dataset", "name": node.name or node.uri or node.digest}
    if node.uri:
        described["contents"] = {"url": node.uri}
    component: dict[str, Any] = {
        "type": "data", "bom-ref": node.id, "name": node.name or node.uri or node.digest, "data": [described],
    }  # fmt: skip
    if node.digest:
        component["hashes"] = _hashes(node.digest)
    if claimed:
        component["properties"] = [{"name": PROPERTY + "claimed-by", "value": CARD}]
    return component


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest.removeprefix("sha256:")}]
