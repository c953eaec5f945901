"""Re-indexing: rows of bases, versions, files, lineage and tombstones made anew from the records beside the blobs.

Invariants
- What is there stays: a record whose number another digest has is a finding. What was withdrawn or released is again.
- A version whose bytes are missing comes back too; its blobs are `corrupt` until somebody pushes them again.
- Aliases (but `main`), verdicts (but `compat`, judged anew), tokens, jobs and events do not come back: a backup of the
  database has those. So restore a backup first, if there is one; this adds what is newer than it.
- Records and tiles that are lost are written again (`unrecorded`, `stored`): then the bucket is the older one.
- Done twice, the second time changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import names
from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.api.records import BaseRecord, VersionRecord
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Conflict, RegistryError
from registry.evaluation.verdicts import Finding
from registry.events import EventType
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.audit import stored_tiles
from registry.server.catalog import base_identity, bases, metadata_backup
from registry.server.catalog import versions as catalog
from registry.server.database import db
from registry.server.database.models import AdapterRow, AliasRow, BaseRow, BlobRow, VersionRow
from registry.server.evaluation import weights
from registry.server.maintenance.recovery import missing as unrecorded
from registry.server.maintenance.recovery import tombstones
from registry.server.promotion import aliases, withdraw
from registry.server.push import inspect, rows
from registry.server.push.inspect import Inspection
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, Stat, key_of
from registry.server.storage.references import BlobState

BATCH = 100
SECONDS = 10.0
_AGAIN = "again"


def run(engine: Engine, blobs: BlobStore, actor: Actor, request: ReindexRequest) -> ReindexPage:
    """One request of a run. A dry run counts what is missing and goes to the end in one request."""
    started = time.monotonic()
    findings: list[Finding] = []
    buried = tombstones.restore(engine, blobs, actor, findings, dry_run=request.dry_run)
    made_bases = _bases(engine, blobs, actor, findings, dry_run=request.dry_run)
    made, following = 0, ""
    for batch in _unknown(engine, blobs):
        if request.dry_run:
            made += len(batch)
            continue
        for name, group in groupby(batch, key=lambda missing: missing.name):
            made += _versions(engine, blobs, actor, name, list(group), findings)
        if time.monotonic() - started > SECONDS and made:
            following = _AGAIN
            break
    changed = 0 if following else withdraw.restore_withdrawals(engine, blobs, actor, dry_run=request.dry_run)
    again = () if following else (unrecorded.again, stored_tiles.rewrite_lost)
    lost = sum(write(engine, blobs, dry_run=request.dry_run) for write in again)
    return ReindexPage(
        bases=made_bases, versions=made, tombstones=buried, withdrawals=changed, records=lost, findings=findings[:200],
        next_cursor=following,
    )  # fmt: skip


def is_needed(engine: Engine, blobs: BlobStore) -> bool:
    """Whether a version or a tombstone is recorded beside the blobs that the database does not know."""
    return tombstones.are_missing(engine, blobs) or next(_unknown(engine, blobs), None) is not None


# ------------------------------------------------------------------ what is missing
@dataclass(frozen=True, slots=True, order=True)
class _Missing:
    name: AdapterName
    number: int
    keys: tuple[tuple[str, int], ...]


def _unknown(engine: Engine, blobs: BlobStore) -> Iterator[list[_Missing]]:
    """Recorded versions without a row, in batches, each sorted by name and number."""
    listed = groupby(
        sorted(blobs.list(metadata_backup.VERSIONS), key=lambda stat: stat.key),
        key=lambda stat: stat.key.rsplit("/", 1)[0],
    )
    found = (_missing(folder, stats) for folder, stats in listed)
    while batch := list(islice(found, BATCH)):
        with db.session(engine, write=False) as session:
            unknown = [missing for missing in batch if not _is_known(session, missing)]
        if unknown:
            yield sorted(unknown, key=lambda missing: (str(missing.name), missing.number))


def _missing(folder: str, stats: Iterable[Stat]) -> _Missing:
    _, _, namespace, name, number = folder.split("/")
    return _Missing(AdapterName(namespace, name), int(number), tuple((s.key, s.size_bytes) for s in stats))


def _is_known(session: Session, missing: _Missing) -> bool:
    statement = select(VersionRow.id).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    found = statement.where(catalog.named(missing.name), col(VersionRow.number) == missing.number)
    return session.exec(found).first() is not None or reserved_names.has_tombstone(session, missing.name)


# ------------------------------------------------------------------ bases
def _bases(engine: Engine, blobs: BlobStore, actor: Actor, findings: list[Finding], *, dry_run: bool) -> int:
    missing: set[str] = set()
    for stat in list(blobs.list(metadata_backup.BASES)):
        record = metadata_backup.parse_record(blobs, stat.key, stat.size_bytes, BaseRecord, findings)
        if record is None:
            continue
        with db.session(engine, write=not dry_run) as session:
            if not dry_run and _add_base(session, actor, record):
                missing.add(record.spec.name)
            found = session.exec(select(BaseRow).where(col(BaseRow.name) == record.spec.name)).first()
            if found is None:
                missing.add(record.spec.name)
            elif found.fingerprint != record.spec.fingerprint:
                differs = f"base '{found.name}' is another one here"
                findings.append(Finding.of("error", "record.base_differs", stat.key, differs))
            elif not dry_run:
                bases.add_parents(session, found, record.parents)
                if record.identity is not None:
                    _identify(session, actor, found, record.identity, findings)
    return len(missing)


def _add_base(session: Session, actor: Actor, record: BaseRecord) -> bool:
    spec = record.spec
    values: dict[str, Any] = {"name": spec.name, "fingerprint": spec.fingerprint, "spec": spec.model_dump(mode="json")}
    values |= {"source": record.source, "created_at": record.created_at, "created_by": record.created_by}
    if added := db.insert_new(session, BaseRow, {**values, "parents": record.edges, "recorded_at": db.now()}):
        audit.append(session, actor, EventType.BASE_REINDEX, spec.name, {"fingerprint": spec.fingerprint})
    return added


def _identify(session: Session, actor: Actor, base: BaseRow, identity: Identity, findings: list[Finding]) -> None:
    """Which weights a base has, unless that is known. The record is there: it need not be written anew."""
    recorded_at = base.recorded_at
    try:
        if base_identity.store_identity(session, actor, base, identity):
            base.recorded_at = recorded_at
            session.add(base)
    except Conflict as e:
        findings.append(Finding.of("error", "record.base_differs", base.name, e.detail[:500]))


# ------------------------------------------------------------------ versions
def _versions(
    engine: Engine, blobs: BlobStore, actor: Actor, name: AdapterName, missing: list[_Missing], findings: list[Finding]
) -> int:
    made = 0
    for one in missing:
        record = metadata_backup.newest_record(blobs, one.keys, one.name, one.number, findings)
        if record is None:
            continue
        present = _present(blobs, record.manifest, name, one.number, findings)
        judged = _judged(engine, blobs, record.manifest)
        with db.session(engine) as session:
            made += _add_version(session, actor, name, record, judged, present, findings)
    with db.session(engine) as session:
        _point_main(session, actor, name)
    return made


def _present(
    blobs: BlobStore, manifest: Manifest, name: AdapterName, number: int, findings: list[Finding]
) -> set[Digest]:
    """The blobs of a version whose bytes are in the store with the right size."""
    present = set()
    for file in manifest.files:
        stat = blobs.stat(key_of(file.digest))
        if stat is not None and stat.size_bytes == file.size_bytes:
            present.add(file.digest)
        else:
            message = f"the store has {'no bytes' if stat is None else f'{stat.size_bytes} bytes'} of {file.digest}"
            findings.append(Finding.of("error", "blob.bytes_missing", f"{name}@{number} {file.path}", message))
    return present


def _judged(engine: Engine, blobs: BlobStore, manifest: Manifest) -> Inspection | None:
    """What the bytes say against their base, or None when they cannot be read any more."""
    try:
        with db.session(engine, write=False) as session:
            spec = bases.load_spec(bases.find(session, manifest.base.name))
        return inspect.inspect_files(
            blobs, {file.digest: key_of(file.digest) for file in manifest.files}, manifest, spec
        )
    except RegistryError:
        return None


def _add_version(
    session: Session,
    actor: Actor,
    name: AdapterName,
    record: VersionRecord,
    judged: Inspection | None,
    present: set[Digest],
    findings: list[Finding],
) -> int:
    manifest = record.manifest
    base = session.exec(select(BaseRow).where(col(BaseRow.name) == manifest.base.name)).first()
    if base is None or base.fingerprint != manifest.base.fingerprint:
        message = f"its base '{manifest.base.name}' is not here"
        findings.append(Finding.of("error", "record.base_unknown", f"{name}@{record.number}", message))
        return 0
    adapter = _adapter(session, name, record)
    taken = select(VersionRow.digest).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == manifest.digest)
    if session.exec(taken).first() is not None:
        location, message = f"{name}@{record.number}", "these bytes have another number"
        findings.append(Finding.of("error", "record.number_taken", location, message))
        return 0
    adapter.newest_number = max(adapter.newest_number, record.number)
    adapter.updated_at = max(adapter.updated_at, record.created_at)
    row = _version_row(adapter, base, record)
    session.add_all([adapter, row])
    session.flush()
    rows.add_contents(session, row, manifest)
    sizes = {file.digest: file.size_bytes for file in manifest.files}
    references.reserve(session, sizes)
    references.mark_live(
        session, {digest: size for digest, size in sizes.items() if digest in present}, written=present
    )
    _mark_missing(session, set(sizes) - present)
    if judged is not None:
        rows.add_compat_verdict(session, row, base, judged)
        row.measured_at = db.now() if judged.weights is not None else None
        weights.add_verdict(session, row, base, judged.weights)
    audit.append(
        session, actor, EventType.VERSION_REINDEX, f"{name}@{row.number}", {"digest": row.digest, "base": base.name}
    )
    return 1


def _adapter(session: Session, name: AdapterName, record: VersionRecord) -> AdapterRow:
    values: dict[str, Any] = {"namespace": name.namespace, "name": name.name, "newest_number": 0}
    values |= {"created_at": record.created_at, "created_by": record.created_by, "updated_at": record.created_at}
    if db.insert_new(session, AdapterRow, values):
        reserved_names.restore_adapter(session, name)
    statement = select(AdapterRow).where(catalog.named(name)).with_for_update()
    return session.exec(statement.execution_options(populate_existing=True)).one()


def _version_row(adapter: AdapterRow, base: BaseRow, record: VersionRecord) -> VersionRow:
    manifest = record.manifest
    return VersionRow(
        adapter_id=adapter.id or 0,
        number=record.number,
        digest=manifest.digest,
        manifest=manifest.to_bytes().decode(),
        base_id=base.id or 0,
        size_bytes=manifest.size_bytes,
        method=record.method,
        rank=record.rank,
        facts=record.facts,
        message=record.message,
        created_at=record.created_at,
        created_by=record.created_by,
        yanked_at=record.yanked_at,
        yank_reason=record.yank_reason,
        **metadata_backup.recorded_columns(record),
    )


def _mark_missing(session: Session, digests: set[Digest]) -> None:
    for digest in sorted(digests):
        row = session.get_one(BlobRow, digest, populate_existing=True)
        if row.state == BlobState.PENDING:
            row.state = BlobState.CORRUPT
            session.add(row)
    session.flush()


def _point_main(session: Session, actor: Actor, name: AdapterName) -> None:
    """`main` follows the newest version again."""
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    newest = session.exec(statement.where(catalog.named(name)).order_by(col(VersionRow.number).desc())).first()
    if newest is None:
        return
    main = session.get(AliasRow, (newest.adapter_id, names.NEWEST))
    if main is None or main.version_id != newest.id:
        aliases.move_newest(session, actor, name, newest)
