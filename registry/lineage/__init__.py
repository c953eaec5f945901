"""Lineage as values: the names of its nodes, and its diagrams and exports as pure functions.

    node of     a version   its digest             a data set   dataset:<digest, or URI@revision#split>
                a base      base:<name>            a run, code  run:<tool>:<id>, code:<repository>@<commit>

Equal data of two versions is one node. What a README claims is an edge of its own relation, `claimed`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from registry.versions.provenance import Provenance

HUB_DATASETS = "hf://datasets/"
BASE, DATASET, RUN, CODE = "base:", "dataset:", "run:", "code:"
CLAIMED = "claimed"
"""The relation to a data set that only the README names."""


@dataclass(frozen=True, slots=True)
class Input:
    """Something that a version was made from and that is no version: a leaf of its lineage."""

    relation: str
    node: str
    name: str
    uri: str
    digest: str | None = None


def kind_of(node: str) -> str:
    """`version`, `base`, `dataset`, `run` or `code`."""
    kind = node.partition(":")[0]
    return "version" if kind == "sha256" else kind


def inputs(provenance: Provenance | None, facts: Mapping[str, Any]) -> Iterator[Input]:
    """What a version declares, then what its README claims beyond that."""
    declared_uris = set()
    for dataset in provenance.datasets if provenance else ():
        declared_uris.add(dataset.uri)
        yield Input("dataset", DATASET + dataset.key, dataset.name or dataset.uri, dataset.uri, dataset.digest)
    for name in (facts.get("card") or {}).get("datasets", []):
        if (uri := HUB_DATASETS + name) not in declared_uris:
            yield Input(CLAIMED, DATASET + uri, name, uri)
    if provenance and (run := provenance.run):
        yield Input("run", f"{RUN}{run.tool}:{run.id}", f"{run.tool} {run.id}", run.url)
    if provenance and (code := provenance.code):
        node = f"{CODE}{code.repository}@{code.commit}"
        yield Input("code", node, f"{code.repository.rsplit('/', 1)[-1]}@{code.commit[:12]}", code.repository)
