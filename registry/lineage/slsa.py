"""A version's origin as an unsigned in-toto statement with the SLSA provenance predicate, v1.

It says what was declared: the builder is the pusher, never the registry, which has seen no training.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from registry import attestations
from registry.api.catalog import VersionView
from registry.api.lineage import Lineage, LineageNode

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:adapter-registry:training:v1"


def statement(version: VersionView, lineage: Lineage) -> dict[str, Any]:
    """The statement about one version; the direct ancestors in `lineage` are its dependencies."""
    payload = attestations.statement(PREDICATE, subjects(version), predicate(version, lineage))
    document: dict[str, Any] = json.loads(payload)
    return document


def subjects(version: VersionView) -> dict[str, str]:
    """The version (by its manifest) and each of its files → SHA-256 in hex."""
    files = {file.path: file.digest.hex for file in version.files}
    return {f"{version.name}@{version.number}": version.digest.hex, **files}


def predicate(version: VersionView, lineage: Lineage) -> dict[str, Any]:
    """The SLSA predicate: what was declared of the version's training."""
    declared = version.provenance
    external: dict[str, Any] = {"adapter": version.name, "base": version.base}
    metadata: dict[str, Any] = {"finishedOn": version.created_at.isoformat()}
    if declared is not None:
        external["parameters"] = dict(declared.parameters)
        if declared.run is not None:
            metadata["invocationId"] = declared.run.url or f"{declared.run.tool}:{declared.run.id}"
    return {
        "buildDefinition": {
            "buildType": BUILD,
            "externalParameters": external,
            "internalParameters": {
                "tools": (version.facts.get("card") or {}).get("tools") or {},
                **({"trainer": trainer} if (trainer := _trainer(version)) else {}),
            },
            "resolvedDependencies": list(_dependencies(version, lineage)),
        },
        "runDetails": {
            "builder": {"id": f"urn:adapter-registry:pusher:{quote(version.created_by, safe='')}"},
            "metadata": metadata,
        },
    }


def _trainer(version: VersionView) -> dict[str, str]:
    """What the trainer's log claims, as text: a signed statement holds no fraction."""
    trainer = version.facts.get("trainer") or {}
    return {name: f"{value:.6g}" for name, value in sorted(trainer.items()) if name != "losses"}


def _dependencies(version: VersionView, lineage: Lineage) -> Iterator[dict[str, Any]]:
    nodes = {node.id: node for node in lineage.nodes}
    for edge in lineage.edges:
        node = nodes[edge.parent]
        if edge.child == lineage.root and node.kind in ("version", "base", "dataset"):
            yield _descriptor(version, node, edge.relation)
    if version.provenance is not None and (code := version.provenance.code):
        uri = code.repository if code.repository.startswith("git+") else f"git+{code.repository}"
        dependency = {"uri": f"{uri}@{code.commit}", "digest": {"gitCommit": code.commit}}
        yield {**dependency, "annotations": {"relation": "code"}}


def _descriptor(version: VersionView, node: LineageNode, relation: str) -> dict[str, Any]:
    """A resource descriptor: a name, where it is, its digest as far as it is known."""
    descriptor: dict[str, Any] = {"name": node.name or node.id, "annotations": {"relation": relation}}
    if node.uri:
        descriptor["uri"] = node.uri
    if node.digest:
        descriptor["digest"] = {"sha256": node.digest.removeprefix("sha256:")}
    if node.kind == "base":
        descriptor["annotations"]["fingerprint"] = str(version.base_fingerprint)
    return descriptor
