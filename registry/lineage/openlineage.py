"""A version's origin as an OpenLineage run event: the training is the run, data sets go in, the version comes out.

What has no facet in the specification is a facet with our prefix. The run's id is made from the digest.
"""

import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from registry.api.catalog import VersionView
from registry.api.lineage import Lineage, LineageNode

PRODUCER = "urn:adapter-registry:lineage:v1"
NAMESPACE = "adapter-registry"
_SPEC = "https://openlineage.io/spec"


def event(version: VersionView, lineage: Lineage) -> dict[str, Any]:
    """The run that made one version; the direct ancestors in `lineage` are its inputs."""
    nodes = {node.id: node for node in lineage.nodes}
    direct = {edge.parent: edge.relation for edge in lineage.edges if edge.child == lineage.root}
    return {
        "eventType": "COMPLETE",
        "eventTime": version.created_at.isoformat(),
        "producer": PRODUCER,
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, version.digest)), "facets": dict(_run_facets(version))},
        "job": {"namespace": NAMESPACE, "name": version.name, "facets": dict(_job_facets(version))},
        "inputs": [dataset for node, relation in direct.items() for dataset in _input(nodes[node], relation)],
        "outputs": [_dataset(NAMESPACE, version.name, version.digest)],
    }


def _facet(schema: str, **fields: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": schema, **fields}


def _own(**fields: Any) -> dict[str, Any]:
    return _facet(f"{PRODUCER}:facet", **fields)


def _run_facets(version: VersionView) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "adapterRegistry_push", _own(pushedBy=version.created_by, digest=version.digest)
    if trainer := version.facts.get("trainer"):
        yield "adapterRegistry_trainerState", _own(claimed={k: v for k, v in trainer.items() if k != "losses"})
    declared = version.provenance
    if declared is None:
        return
    if declared.parameters:
        parameters = [{"key": name, "value": value} for name, value in sorted(declared.parameters.items())]
        yield "executionParameters", _facet(_spec_of("1-0-0", "ExecutionParametersRunFacet"), parameters=parameters)
    if run := declared.run:
        yield "adapterRegistry_trainingRun", _own(tool=run.tool, id=run.id, url=run.url)


def _job_facets(version: VersionView) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = {"processingType": "BATCH", "integration": "ADAPTER_REGISTRY", "jobType": "MODEL"}
    yield "jobType", _facet(_spec_of("2-0-4", "JobTypeJobFacet"), **kind)
    if version.provenance is not None and (code := version.provenance.code):
        where = {"type": "git", "url": code.repository, "repoUrl": code.repository, "version": code.commit}
        yield "sourceCodeLocation", _facet(_spec_of("1-1-0", "SourceCodeLocationJobFacet"), **where)


def _input(node: LineageNode, relation: str) -> Iterator[dict[str, Any]]:
    if node.kind == "version":
        yield _dataset(NAMESPACE, node.name or node.digest, node.digest, relation=relation)
    elif node.kind == "base":
        yield _dataset(f"{NAMESPACE}:base", node.name, relation=relation)
    elif node.kind == "dataset":
        namespace, name = _named(node)
        yield _dataset(namespace, name, node.digest, uri=node.uri, relation=relation)


def _dataset(namespace: str, name: str, digest: str = "", *, uri: str = "", relation: str = "") -> dict[str, Any]:
    facets: dict[str, Any] = {}
    if digest:
        facets["version"] = _facet(_spec_of("1-0-1", "DatasetVersionDatasetFacet"), datasetVersion=digest)
    if uri:
        facets["dataSource"] = _facet(_spec_of("1-0-1", "DatasourceDatasetFacet"), name=namespace, uri=uri)
    if relation:
        facets["adapterRegistry_relation"] = _own(relation=relation)
    return {"namespace": namespace, "name": name, "facets": facets}


def _named(node: LineageNode) -> tuple[str, str]:
    """`s3://bucket` and `key` of `s3://bucket/key`; of a URI without an authority its scheme and the rest."""
    if not node.uri:
        return "sha256", node.digest.removeprefix("sha256:")
    parts = urlsplit(node.uri)
    rest = node.uri.partition(":")[2].removeprefix("//").removeprefix(parts.netloc).lstrip("/")
    return (f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme), rest or "/"


def _spec_of(version: str, facet: str) -> str:
    return f"{_SPEC}/facets/{version}/{facet}.json#/$defs/{facet}"
