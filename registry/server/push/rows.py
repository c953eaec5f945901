"""A version's rows: written once, together, when a push has been judged.

Invariants
- The number is taken under the adapter's lock, and the digest is looked for again under it: equal pushes that race
  make one version.
- Version, files, edges, blobs, verdict, `main`, the job and the event are one transaction, and no blob is read in it.
- The push is still open then, so it held every blob all the time; its blobs become `live` in the same transaction.
- A verdict `compat` or `weights` that fails enqueues no job: a worker could only fail, too. Nor does a foreign format.
- An alias that its gate keeps shut does not undo the version; the answer says why it did not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import Any

from sqlalchemy import and_, bindparam, delete
from sqlmodel import Session, col, select

from registry import __version__, lineage, names
from registry.api.push import Pushed
from registry.digest import Digest
from registry.engines import Profile
from registry.errors import Refused
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
from registry.server.push.inspect import Judged
from registry.server.storage import references

_NAMED = and_(col(AdapterRow.namespace) == bindparam("namespace"), col(AdapterRow.name) == bindparam("name"))
_LOCKED = select(AdapterRow).where(_NAMED).with_for_update().execution_options(populate_existing=True)
_EXISTING = (
    select(VersionRow)
    .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    .where(_NAMED, col(VersionRow.digest) == bindparam("digest"))
)
"""Put together once: every push asks these."""


def existing(session: Session, name: AdapterName, digest: Digest) -> VersionRow | None:
    """The version of this adapter with this manifest, if a push made it already."""
    asked = {"namespace": name.namespace, "name": name.name, "digest": digest}
    return session.exec(_EXISTING, params=asked).first()


def found(session: Session, actor: Actor, name: AdapterName, push: PushRow, row: VersionRow, alias: str) -> Pushed:
    """The answer to a push of what is there: nothing is written but the end of the push and the alias."""
    references.end_push(session, push.id)
    refused = _move(session, actor, name, push, row, alias)
    session.flush()
    failpoints.reach("push.before_commit")
    return Pushed(version=versions.view(session, name, row), created=False, job_id="", alias_refused=refused)


def make(
    session: Session,
    actor: Actor,
    name: AdapterName,
    push: PushRow,
    manifest: Manifest,
    base: BaseRow,
    judged: Judged,
    *,
    alias: str = "",
    mended: Set[Digest] = frozenset(),
    engines: Sequence[Profile] = (),
) -> Pushed:
    """The version of this push on its base. Found instead of made when an equal push was faster.

    `mended` are damaged blobs whose bytes this push has just replaced. `NotFound` (PUSH_UNKNOWN) when the push ended.
    """
    adapter = _locked(session, actor, name)
    row = existing(session, name, manifest.digest)
    if row is None:
        quotas.check_before_commit(session, name, manifest)
    if row is not None:
        references.mark_live(
            session, {f.digest: f.size_bytes for f in manifest.files if f.digest in mended}, written=mended
        )
        return found(session, actor, name, push, row, alias)
    if not references.end_push(session, push.id):
        raise references.unknown_push(push.id)
    failpoints.reach("push.before_rows")
    row = _version_row(session, actor, adapter, base, push, manifest, judged)
    add_contents(session, row, manifest)
    references.mark_live(session, {f.digest: f.size_bytes for f in manifest.files}, written=mended)
    written = _judgement(session, row, base, judged, engines)
    outcomes = {verdict.check: Outcome(verdict.outcome) for verdict in written}
    outcome = outcomes[Check.COMPAT]
    detail = {"digest": row.digest, "base": base.name, "compat": str(outcome), "size_bytes": row.size_bytes}
    audit.append(session, actor, EventType.VERSION_PUSH, f"{name}@{row.number}", detail)
    aliases.follow(session, actor, name, row)
    job_id = ""
    if judged.can_be_tried and Outcome.FAIL not in (outcome, outcomes.get(Check.WEIGHTS)):
        job_id = queue.enqueue(session, actor, Kind.SMOKE_TEST, row, name=name, base=base.name).id
    refused = _move(session, actor, name, push, row, alias)
    aliases_now = [names.NEWEST, *([alias] if alias and alias != names.NEWEST and not refused else [])]
    session.flush()
    failpoints.reach("push.before_commit")
    view = versions.view_of_new(name, row, base.name, manifest, written, aliases_now)
    return Pushed(version=view, created=True, job_id=job_id, alias_refused=refused)


def _locked(session: Session, actor: Actor, name: AdapterName) -> AdapterRow:
    """The adapter's row, made if need be, locked until the transaction ends."""
    moment = db.now()
    values: dict[str, Any] = {"namespace": name.namespace, "name": name.name, "newest_number": 0}
    values |= {"created_at": moment, "created_by": actor.identity, "updated_at": moment}
    if db.insert_new(session, AdapterRow, values):
        reserved_names.reserve_adapter(session, actor, name)
        audit.append(session, actor, EventType.ADAPTER_CREATE, str(name))
    row = session.exec(_LOCKED, params={"namespace": name.namespace, "name": name.name}).first()
    if row is None:  # it was deleted or got another name between the two statements
        reserved_names.check_available(session, actor, name)
        raise unknown_adapter(name)
    return row


def _version_row(
    session: Session,
    actor: Actor,
    adapter: AdapterRow,
    base: BaseRow,
    push: PushRow,
    manifest: Manifest,
    judged: Judged,
) -> VersionRow:
    moment = db.now()
    adapter.newest_number += 1
    adapter.updated_at = moment
    row = VersionRow(
        adapter_id=adapter.id or 0,
        number=adapter.newest_number,
        digest=manifest.digest,
        manifest=manifest.to_bytes().decode(),
        base_id=base.id or 0,
        size_bytes=manifest.size_bytes,
        method=judged.method,
        rank=judged.rank,
        facts=judged.facts,
        message=push.message,
        created_at=moment,
        created_by=actor.identity,
        pushed_by=actor.identity,
        measured_at=moment if judged.weights is not None else None,
    )
    session.add_all([adapter, row])
    session.flush()
    return row


def add_contents(session: Session, row: VersionRow, manifest: Manifest) -> None:
    """The rows of a version's files, parents, inputs and tags, as its manifest and its facts name them."""
    version_id = row.id or 0
    files = [
        VersionFileRow(
            version_id=version_id, path=f.path, digest=f.digest, size_bytes=f.size_bytes, media_type=f.media_type
        )
        for f in manifest.files
    ]
    edges = [
        EdgeRow(child_id=version_id, parent_digest=e.digest, relation=e.relation, parent_name=e.name)
        for e in _once(manifest)
    ]
    inputs = [
        VersionInputRow(version_id=version_id, place=place, **told._asdict())
        for place, told in enumerate(lineage.inputs(manifest.provenance, row.facts))
    ]
    tags = [VersionTagRow(version_id=version_id, key=key, value=value) for key, value in _tags(row, manifest)]
    for rows in (files, edges, inputs, tags):
        db.bulk_insert(session, rows)


def tag_again(session: Session, row: VersionRow, manifest: Manifest) -> None:
    """The tags that follow from a version's facts, after these have changed."""
    session.connection().execute(delete(VersionTagRow).where(col(VersionTagRow.version_id) == row.id))
    session.add_all(VersionTagRow(version_id=row.id or 0, key=key, value=value) for key, value in _tags(row, manifest))


def _tags(row: VersionRow, manifest: Manifest) -> Iterable[tuple[str, str]]:
    """What can be searched for: short annotations, and facts that a planner could not tell the share of in JSON."""
    for key, value in manifest.annotations.items():
        if len(value) <= TAG_VALUE_LIMIT and not key.startswith(FACT):
            yield key, value
    for target in row.facts.get("targets") or ():
        yield f"{FACT}target:{target}", ""
    if scheme := row.facts.get("scheme"):
        yield f"{FACT}scheme:{scheme}", ""


def _once(manifest: Manifest) -> Iterable[Any]:
    """Each (relation, parent) once: the same parent may have been named by two of its names."""
    return {(edge.relation, edge.digest): edge for edge in manifest.parents}.values()


def add_verdict(session: Session, row: VersionRow, base: BaseRow, judged: Judged) -> VerdictRow:
    """The verdict `compat` of what was judged."""
    tools = {"registry": __version__}
    verdict = Verdict.of(Check.COMPAT, Digest(row.digest), base.name, base.fingerprint, judged.findings, made_by=tools)
    compat = verdicts.row(verdict, row, base)
    db.bulk_insert(session, [compat])
    return compat


def _judgement(
    session: Session, row: VersionRow, base: BaseRow, judged: Judged, engines: Sequence[Profile]
) -> list[VerdictRow]:
    """The verdicts that a version begins with."""
    compat = add_verdict(session, row, base, judged)
    numbers = weights.add(session, row, base, judged.weights)
    outcome = Outcome(numbers.outcome) if numbers is not None else Outcome.UNKNOWN
    loaded = engine_compat.add(session, row, base, Outcome(compat.outcome), outcome, engines)
    return [compat, *([numbers] if numbers is not None else []), *loaded]


def _move(session: Session, actor: Actor, name: AdapterName, push: PushRow, row: VersionRow, alias: str) -> str:
    """Move the alias that the push asked for; why it did not move, or empty."""
    if alias and alias != names.NEWEST:
        try:
            aliases.move(session, actor, name, alias, row, expected_generation=None, reason=push.message)
        except Refused as e:
            return e.detail
    return ""
