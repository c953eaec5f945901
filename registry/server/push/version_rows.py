"""The rows that follow from the manifest, the facts and the inspection of one version.

A push writes them first; reindex writes them again, and re-evaluation replaces some.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import delete
from sqlmodel import Session, SQLModel, col

from registry import __version__, lineage
from registry.adapters import card
from registry.digest import Digest
from registry.evaluation.verdicts import Check, Verdict
from registry.server.catalog import verdicts
from registry.server.database import db
from registry.server.database.models import (
    FACT,
    AdapterRow,
    BaseRow,
    EdgeRow,
    VerdictRow,
    VersionAttributeRow,
    VersionFileRow,
    VersionInputRow,
    VersionRow,
)
from registry.server.push.inspect import Inspection
from registry.versions.manifest import TAG_VALUE_LIMIT, Manifest


def version_row(adapter: AdapterRow, base: BaseRow, manifest: Manifest, **columns: Any) -> VersionRow:
    """Build the row of a version; `columns` are those that do not follow from its adapter, base and manifest."""
    return db.new_row(
        VersionRow,
        adapter_id=adapter.id or 0, base_id=base.id or 0, digest=manifest.digest,
        manifest=manifest.to_bytes().decode(), size_bytes=manifest.size_bytes, **columns,
    )  # fmt: skip


def add_contents(session: Session, versions: Sequence[tuple[VersionRow, Manifest]]) -> None:
    """The rows of the files, parents, inputs and attributes of versions, from their manifests and facts."""
    files: list[SQLModel] = []
    edges: list[SQLModel] = []
    inputs: list[SQLModel] = []
    attributes: list[SQLModel] = []
    for row, manifest in versions:
        version_id = row.id or 0
        files += [db.new_row(VersionFileRow, version_id=version_id, **file.model_dump()) for file in manifest.files]
        parents = {(edge.relation, edge.digest): edge for edge in manifest.parents}  # a manifest may name one twice
        edges += [
            db.new_row(
                EdgeRow, child_id=version_id, parent_digest=edge.digest, relation=edge.relation, parent_name=edge.name
            )
            for edge in parents.values()
        ]
        inputs += [
            db.new_row(VersionInputRow, version_id=version_id, position=position, **asdict(entry))
            for position, entry in enumerate(lineage.inputs(manifest.provenance, row.facts))
        ]
        attributes += _attributes(row, manifest)
    for rows in (files, edges, inputs, attributes):
        db.bulk_insert(session, rows)


def replace_attributes(session: Session, row: VersionRow, manifest: Manifest) -> None:
    """Rewrite the attributes of a version whose facts have changed."""
    session.connection().execute(delete(VersionAttributeRow).where(col(VersionAttributeRow.version_id) == row.id))
    db.bulk_insert(session, _attributes(row, manifest))


def _attributes(row: VersionRow, manifest: Manifest) -> list[VersionAttributeRow]:
    """What can be searched: short annotations, and facts whose selectivity a planner could not estimate in JSON."""
    values = {
        key: value
        for key, value in manifest.annotations.items()
        if len(value) <= TAG_VALUE_LIMIT and not key.startswith(FACT)
    }
    values |= {f"{FACT}target:{target}": "" for target in row.facts.get("targets") or ()}
    values |= {f"{FACT}label:{label}": "" for label in card.labels_of(row.facts.get("card") or {})}
    if manifest.provenance is not None and manifest.provenance.run is not None:
        values[f"{FACT}run:{manifest.provenance.run.id}"] = ""
    if format_name := row.facts.get("format"):
        values[f"{FACT}format:{format_name}"] = ""
    return [db.new_row(VersionAttributeRow, version_id=row.id or 0, key=k, value=value) for k, value in values.items()]


def tools_of(library: str | None) -> dict[str, str]:
    """The library that built a base's modules, as `made_by` has it; empty before a worker has."""
    name, _, version = (library or "").partition(" ")
    return {name: version} if name else {}


def build_compat_verdict(row: VersionRow, base: BaseRow, inspection: Inspection) -> VerdictRow:
    """The row of the verdict `compat` that follows from the inspection. Its tools are also the base's library."""
    tools = {"registry": __version__} | tools_of(base.library)
    subject = Digest(row.digest)
    verdict = Verdict.of(Check.COMPAT, subject, base.name, base.fingerprint, inspection.findings, made_by=tools)
    return verdicts.to_row(verdict, row.id, row.base_id)
