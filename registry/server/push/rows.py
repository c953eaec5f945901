"""The rows of a version: written together, in one transaction, after a push was inspected.

- The number is taken under the adapter's lock, and the digest is looked up again under it: equal pushes that race make
  one version. No blob is read in the transaction.
- The push is still open, so it referenced every blob all the time; its blobs become `live` in the transaction.
- A version that failed `compat` or `weights`, or that no worker can load, gets no smoke test.
- A closed gate of the requested alias does not undo the version; the answer says why the alias did not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from sqlalchemy import and_, bindparam, delete
from sqlmodel import Session, col, select

from registry import __version__, lineage, names
from registry.api.transfer import PushResult
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.errors import Refused, Unavailable
from registry.evaluation.gates import WEIGHTS_PENDING
from registry.evaluation.verdicts import Check, Outcome, Verdict
from registry.events import EventType
from registry.jobs import Kind
from registry.manifest import TAG_VALUE_LIMIT, Manifest
from registry.names import AdapterName
from registry.server import audit, failpoints
from registry.server.access import quotas, reserved_names
from registry.server.actors import Actor, unknown_adapter
from registry.server.catalog import verdicts, versions
from registry.server.database import db
from registry.server.database.models import (
    FACT,
    AdapterRow,
    BaseRow,
    EdgeRow,
    PushRow,
    VerdictRow,
    VersionFileRow,
    VersionInputRow,
    VersionRow,
    VersionTagRow,
)
from registry.server.evaluation import engine_compat, weights
from registry.server.jobs import queue
from registry.server.promotion import aliases
from registry.server.push.inspect import Inspection
from registry.server.storage import references

# Built once: every push executes them.
_NAMED = and_(col(AdapterRow.namespace) == bindparam("namespace"), col(AdapterRow.name) == bindparam("name"))
_LOCKED = select(AdapterRow).where(_NAMED).with_for_update().execution_options(populate_existing=True)
_EXISTING = (
    select(VersionRow)
    .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    .where(_NAMED, col(VersionRow.digest) == bindparam("digest"))
)


def find_existing(session: Session, name: AdapterName, digest: Digest) -> VersionRow | None:
    """The version of this adapter with this manifest, if a push has created it already."""
    params = {"namespace": name.namespace, "name": name.name, "digest": digest}
    return session.exec(_EXISTING, params=params).first()


def answer_existing(
    session: Session, actor: Actor, name: AdapterName, push: PushRow, row: VersionRow, alias: str
) -> PushResult:
    """The answer to a push of an existing version: it writes only the end of the push and the alias."""
    references.end_push(session, push.id)
    refusal = _move_alias(session, actor, name, push, row, alias)
    session.flush()
    failpoints.reach("push.before_commit")
    return PushResult(version=versions.build_view(session, name, row), created=False, job_id="", alias_refused=refusal)


def create_version(
    session: Session, actor: Actor, name: AdapterName, push: PushRow, manifest: Manifest, base: BaseRow,
    inspection: Inspection, *, alias: str = "", repaired: Set[Digest] = frozenset(),
    engines: Sequence[EngineProfile] = (),
) -> PushResult:  # fmt: skip
    """The version of this push on its base, or the existing one if an equal push was faster.

    `repaired` are damaged blobs whose bytes this push has replaced. `NotFound` (PUSH_UNKNOWN) if the push has ended.
    """
    adapter = _lock_adapter(session, actor, name)
    row = find_existing(session, name, manifest.digest)
    if row is not None:
        sizes = {f.digest: f.size_bytes for f in manifest.files if f.digest in repaired}
        references.mark_live(session, sizes, written=repaired)
        return answer_existing(session, actor, name, push, row, alias)
    quotas.check_before_commit(session, name, manifest)
    if not references.end_push(session, push.id):
        raise references.unknown_push(push.id)
    failpoints.reach("push.before_rows")
    row = _add_version(session, actor, adapter, base, push, manifest, inspection)
    add_contents(session, row, manifest)
    references.mark_live(session, {f.digest: f.size_bytes for f in manifest.files}, written=repaired)
    added = _add_verdicts(session, row, base, inspection, engines)
    outcomes = {verdict.check: Outcome(verdict.outcome) for verdict in added}
    compat = outcomes[Check.COMPAT]
    detail = {"digest": row.digest, "base": base.name, "compat": str(compat), "size_bytes": row.size_bytes}
    audit.append(session, actor, EventType.VERSION_PUSH, f"{name}@{row.number}", detail)
    aliases.move_newest(session, actor, name, row)
    job_id = ""
    if inspection.can_be_tested and Outcome.FAIL not in (compat, outcomes.get(Check.WEIGHTS)):
        job_id = queue.enqueue(session, actor, Kind.SMOKE_TEST, row, name=name, base=base.name).id
    refusal = _move_alias(session, actor, name, push, row, alias)
    pointing = [names.NEWEST, *([alias] if alias and alias != names.NEWEST and not refusal else [])]
    session.flush()
    failpoints.reach("push.before_commit")
    view = versions.build_new_view(name, row, base.name, manifest, added, pointing)
    return PushResult(version=view, created=True, job_id=job_id, alias_refused=refusal)


def _lock_adapter(session: Session, actor: Actor, name: AdapterName) -> AdapterRow:
    """The adapter's row, created if necessary, locked until the transaction ends."""
    now = db.now()
    values: dict[str, Any] = {"namespace": name.namespace, "name": name.name, "newest_number": 0}
    values |= {"created_at": now, "created_by": actor.identity, "updated_at": now}
    if db.insert_new(session, AdapterRow, values):
        reserved_names.reserve_adapter(session, actor, name)
        audit.append(session, actor, EventType.ADAPTER_CREATE, str(name))
    row = session.exec(_LOCKED, params={"namespace": name.namespace, "name": name.name}).first()
    if row is None:  # deleted or renamed between the two statements
        reserved_names.check_available(session, actor, name)
        raise unknown_adapter(name)
    return row


def _add_version(
    session: Session, actor: Actor, adapter: AdapterRow, base: BaseRow, push: PushRow, manifest: Manifest,
    inspection: Inspection,
) -> VersionRow:  # fmt: skip
    now = db.now()
    adapter.newest_number += 1
    adapter.updated_at = now
    row = version_row(
        adapter, base, manifest, number=adapter.newest_number, method=inspection.method, rank=inspection.rank,
        facts=inspection.facts, message=push.message, created_at=now, created_by=actor.identity,
        pushed_by=actor.identity, measured_at=now if inspection.weights is not None else None,
    )  # fmt: skip
    session.add_all([adapter, row])
    session.flush()
    return row


def version_row(adapter: AdapterRow, base: BaseRow, manifest: Manifest, **columns: Any) -> VersionRow:
    """Build the row of a version; `columns` are those that do not follow from its adapter, base and manifest."""
    return VersionRow(
        adapter_id=adapter.id or 0, base_id=base.id or 0, digest=manifest.digest,
        manifest=manifest.to_bytes().decode(), size_bytes=manifest.size_bytes, **columns,
    )  # fmt: skip


# ------------------------------------------------------------------ contents
def add_contents(session: Session, row: VersionRow, manifest: Manifest) -> None:
    """The rows of a version's files, parents, inputs and tags, from its manifest and its facts."""
    version_id = row.id or 0
    files = [VersionFileRow(version_id=version_id, **file.model_dump()) for file in manifest.files]
    parents = {(edge.relation, edge.digest): edge for edge in manifest.parents}  # a manifest may name one twice
    edges = [
        EdgeRow(child_id=version_id, parent_digest=edge.digest, relation=edge.relation, parent_name=edge.name)
        for edge in parents.values()
    ]
    inputs = [
        VersionInputRow(version_id=version_id, position=position, **entry._asdict())
        for position, entry in enumerate(lineage.inputs(manifest.provenance, row.facts))
    ]
    tags = [VersionTagRow(version_id=version_id, key=key, value=value) for key, value in _tags(row, manifest)]
    for rows in (files, edges, inputs, tags):
        db.bulk_insert(session, rows)


def replace_tags(session: Session, row: VersionRow, manifest: Manifest) -> None:
    """Rewrite the tags of a version whose facts have changed."""
    session.connection().execute(delete(VersionTagRow).where(col(VersionTagRow.version_id) == row.id))
    session.add_all(VersionTagRow(version_id=row.id or 0, key=key, value=value) for key, value in _tags(row, manifest))


def _tags(row: VersionRow, manifest: Manifest) -> Iterable[tuple[str, str]]:
    """What can be searched: short annotations, and facts whose selectivity a planner could not estimate in JSON."""
    for key, value in manifest.annotations.items():
        if len(value) <= TAG_VALUE_LIMIT and not key.startswith(FACT):
            yield key, value
    for target in row.facts.get("targets") or ():
        yield f"{FACT}target:{target}", ""
    if format_name := row.facts.get("format"):
        yield f"{FACT}format:{format_name}", ""


# ------------------------------------------------------------------ verdicts and alias
def add_compat_verdict(session: Session, row: VersionRow, base: BaseRow, inspection: Inspection) -> VerdictRow:
    """Write the verdict `compat` that follows from the inspection."""
    tools = {"registry": __version__}
    subject = Digest(row.digest)
    verdict = Verdict.of(Check.COMPAT, subject, base.name, base.fingerprint, inspection.findings, made_by=tools)
    compat = verdicts.to_row(verdict, row.id, row.base_id)
    db.bulk_insert(session, [compat])
    return compat


def _add_verdicts(
    session: Session, row: VersionRow, base: BaseRow, inspection: Inspection, engines: Sequence[EngineProfile]
) -> list[VerdictRow]:
    """Write the verdicts that a version starts with."""
    compat = add_compat_verdict(session, row, base, inspection)
    added = [compat]
    if inspection.weights is not None:
        added.append(weights.add_verdict(session, row, base, inspection.weights))
    outcomes = (compat.outcome, added[1].outcome if added[1:] else Outcome.UNKNOWN)
    return [*added, *engine_compat.add_verdicts(session, row, base, outcomes, engines)]


def _move_alias(session: Session, actor: Actor, name: AdapterName, push: PushRow, row: VersionRow, alias: str) -> str:
    """Move the alias that the push asked for; returns why it did not move, or an empty string."""
    if alias and alias != names.NEWEST:
        try:
            aliases.move(session, actor, name, alias, row, expected_generation=None, reason=push.message)
        except Refused as e:
            return e.detail
        except Unavailable as e:
            if all(reason.code != WEIGHTS_PENDING for reason in e.findings):
                raise
            return e.detail
    return ""
