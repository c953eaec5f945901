"""Re-indexing: restore bases, versions with their files and lineage, and tombstones from the records beside the blobs.

- Existing rows stay. A record that contradicts them is a finding; withdrawals that only the records have are repeated.
- A version without its bytes is restored as well; its blobs are `corrupt` until someone pushes them again.
- Aliases (except `main`), verdicts (except `compat`, which is evaluated again), tokens, jobs and events are only in a
  backup of the database. Restore that first, if there is one; a re-index adds what is newer.
- Records and tiles of the audit log that are lost are written again: then the bucket is older than the database.
- A second run changes nothing.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import names
from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.bases import UNREGISTERED
from registry.bases.identity import Identity
from registry.digest import Digest
from registry.errors import Conflict, RegistryError
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.audit import tree
from registry.server.catalog import base_rows, base_weights, bases, metadata_backup, versions
from registry.server.catalog.metadata_backup import BaseRecord, TombstoneRecord, VersionRecord
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseRow, BlobRow, VersionRow
from registry.server.database.models.namespaces import TakenNameRow
from registry.server.evaluation import weights
from registry.server.maintenance import record_check
from registry.server.promotion import deletion, moves
from registry.server.push import base_choice, inspect, version_rows
from registry.server.push.inspect import Inspection
from registry.server.search import text_index
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, Stat, key_of
from registry.server.storage.states import BlobState
from registry.versions.manifest import Manifest

BATCH = 100
SECONDS = 10.0
FINDINGS_LIMIT = 200
_MORE = "again"


@dataclass
class _Run:
    """What one request works with, and what it has found."""

    engine: Engine
    blobs: BlobStore
    actor: Actor
    dry_run: bool
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, location: str, message: str) -> None:
        self.findings.append(Finding.of("error", code, location, message))


def rebuild_index(engine: Engine, blobs: BlobStore, actor: Actor, request: ReindexRequest) -> ReindexPage:
    """Run one request's share of a re-index. A dry run counts what is missing, in a single request."""
    started = time.monotonic()
    run = _Run(engine, blobs, actor, request.dry_run)
    tombstones, restored_bases = _restore_tombstones(run), _restore_bases(run)
    restored, next_cursor = 0, ""
    for batch in _missing_versions(engine, blobs):
        if run.dry_run:
            restored += len(batch)
            continue
        for name, group in groupby(batch, key=lambda missing: missing.name):
            restored += _restore_versions(run, name, list(group))
        if time.monotonic() - started > SECONDS and restored:
            next_cursor = _MORE
            break
    withdrawals = records = 0
    if not next_cursor:
        withdrawals = _restore_withdrawals(run)
        records = record_check.rewrite_missing(engine, blobs, dry_run=run.dry_run)
        records += tree.rewrite_lost_copies(engine, blobs, dry_run=run.dry_run)
        if not run.dry_run:
            text_index.mark_outdated(engine)
            while text_index.index_newest(engine, blobs):
                pass
    return ReindexPage(
        bases=restored_bases,
        versions=restored,
        tombstones=tombstones,
        withdrawals=withdrawals,
        records=records,
        findings=run.findings[:FINDINGS_LIMIT],
        next_cursor=next_cursor,
    )


def is_needed(engine: Engine, blobs: BlobStore) -> bool:
    """Whether there is a record of a version or a tombstone that the database does not have."""
    with db.session(engine, write=False) as session:
        if any(_find_name(session, stat) is None for stat in blobs.list(metadata_backup.TOMBSTONES)):
            return True
    return next(_missing_versions(engine, blobs), None) is not None


# ------------------------------------------------------------------ tombstones
def _restore_tombstones(run: _Run) -> int:
    """Restore missing tombstones, by the names in their keys; return how many. A name that is in use stays in use."""
    missing: set[str] = set()
    for stat in sorted(run.blobs.list(metadata_backup.TOMBSTONES), key=lambda stat: stat.key):
        location = "/".join(part for part in _name_in_key(stat) if part)
        with db.session(run.engine, write=not run.dry_run) as session:
            row = _find_name(session, stat)
            if row is not None and row.ended_at is None:
                message = "was deleted after this database's backup, and is in use here: delete it again"
                run.add("record.name_in_use", location, message)
            elif row is None and (record := _read_tombstone(run, stat)) is not None:
                missing.add(location)
                if not run.dry_run:
                    _restore_tombstone(session, run.actor, record, location)
    return len(missing)


def _restore_tombstone(session: Session, actor: Actor, record: TombstoneRecord, location: str) -> None:
    reserved_names.add_tombstone(session, record.owner, record.name, at=record.created_at)
    row = session.get_one(TakenNameRow, (record.owner, names.skeleton(record.name)), populate_existing=True)
    row.recorded_at = db.now()
    session.add(row)
    audit.append(session, actor, EventType.NAME_REINDEX, location)


def _read_tombstone(run: _Run, stat: Stat) -> TombstoneRecord | None:
    record = metadata_backup.parse_record(run.blobs, stat.key, stat.size_bytes, TombstoneRecord, run.findings)
    if record is None or (record.owner, record.name) == _name_in_key(stat):
        return record
    run.add("record.damaged", stat.key, "is the record of a different name from its key's")
    return None


def _find_name(session: Session, stat: Stat) -> TakenNameRow | None:
    owner, name = _name_in_key(stat)
    return session.get(TakenNameRow, (owner, names.skeleton(name)))


def _name_in_key(stat: Stat) -> tuple[str, str]:
    parts = stat.key.removeprefix(metadata_backup.TOMBSTONES).split("/")[:-1]
    return (parts[0], parts[1]) if len(parts) == 2 else (reserved_names.NAMESPACES, parts[0])


# ------------------------------------------------------------------ bases
def _restore_bases(run: _Run) -> int:
    missing: set[str] = set()
    for stat in list(run.blobs.list(metadata_backup.BASES)):
        record = metadata_backup.parse_record(run.blobs, stat.key, stat.size_bytes, BaseRecord, run.findings)
        if record is None:
            continue
        with db.session(run.engine, write=not run.dry_run) as session:
            if not run.dry_run and _add_base(session, run.actor, record):
                missing.add(record.spec.name)
            base = session.exec(select(BaseRow).where(col(BaseRow.name) == record.spec.name)).first()
            if base is None:
                missing.add(record.spec.name)
            elif base.fingerprint != record.spec.fingerprint:
                run.add("record.base_differs", stat.key, f"here, base '{base.name}' has another fingerprint")
            elif not run.dry_run:
                bases.add_parents(session, base, record.parents)
                if record.identity is not None:
                    _restore_identity(run, session, base, record.identity)
    return len(missing)


def _add_base(session: Session, actor: Actor, record: BaseRecord) -> bool:
    spec = record.spec
    base_rows.lock_names(session)
    values: dict[str, Any] = {"name": spec.name, "fingerprint": spec.fingerprint, "spec": spec.model_dump(mode="json")}
    values |= {
        "aliases": list(record.aliases) or None,
        "source": record.source,
        "created_at": record.created_at,
        "created_by": record.created_by,
    }
    values |= {"parents": record.edges, "recorded_at": db.now()}
    if added := db.insert_new(session, BaseRow, values) or base_rows.complete(session, values):
        audit.append(session, actor, EventType.BASE_REINDEX, spec.name, {"fingerprint": spec.fingerprint})
    return added


def _restore_identity(run: _Run, session: Session, base: BaseRow, identity: Identity) -> None:
    """Set the identity of a base's weights unless it has one. The record exists, so it is not written again."""
    recorded_at = base.recorded_at
    try:
        if base_weights.store_identity(session, run.actor, base, identity):
            base.recorded_at = recorded_at
            session.add(base)
    except Conflict as e:
        run.add("record.base_differs", base.name, e.detail[:500])


# ------------------------------------------------------------------ versions
@dataclass(frozen=True, slots=True, order=True)
class _MissingVersion:
    name: AdapterName
    number: int
    keys: tuple[tuple[str, int], ...]
    """Of its records, with their sizes."""


def _missing_versions(engine: Engine, blobs: BlobStore) -> Iterator[list[_MissingVersion]]:
    """Yield recorded versions without a row, in batches that are sorted by name and number."""
    stats = sorted(blobs.list(metadata_backup.VERSIONS), key=lambda stat: stat.key)
    by_version = groupby(stats, key=lambda stat: stat.key.rpartition("/")[0])
    recorded = (_recorded_version(folder, group) for folder, group in by_version)
    while batch := list(islice(recorded, BATCH)):
        with db.session(engine, write=False) as session:
            missing = [version for version in batch if not _has_row(session, version)]
        if missing:
            yield sorted(missing, key=lambda version: (str(version.name), version.number))


def _recorded_version(folder: str, stats: Iterable[Stat]) -> _MissingVersion:
    _, _, namespace, name, number = folder.split("/")
    return _MissingVersion(AdapterName(namespace, name), int(number), tuple((s.key, s.size_bytes) for s in stats))


def _has_row(session: Session, version: _MissingVersion) -> bool:
    """Whether the version, or a tombstone of its adapter, is in the database."""
    statement = select(VersionRow.id).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    statement = statement.where(versions.has_name(version.name), col(VersionRow.number) == version.number)
    return session.exec(statement).first() is not None or reserved_names.has_tombstone(session, version.name)


def _restore_versions(run: _Run, name: AdapterName, missing: list[_MissingVersion]) -> int:
    restored = 0
    for version in missing:
        record = metadata_backup.newest_record(run.blobs, version.keys, version.name, version.number, run.findings)
        if record is None:
            continue
        present: set[Digest] = set()
        inspection = None
        if record.purged_at is None:
            present = _find_present_blobs(run, record.manifest, f"{name}@{version.number}")
            inspection = _inspect(run, record.manifest)
        with db.session(run.engine) as session:
            restored += _restore_version(run, session, name, record, inspection, present)
    with db.session(run.engine) as session:
        adapter_id = session.exec(select(AdapterRow.id).where(versions.has_name(name))).first()
        if adapter_id is not None:
            moves.follow_newest(session, run.actor, name, adapter_id, "restored")
    return restored


def _find_present_blobs(run: _Run, manifest: Manifest, location: str) -> set[Digest]:
    """Return the blobs of a version whose bytes are in the store with the right size; add a finding for the others."""
    present = set()
    for file in manifest.files:
        stat = run.blobs.stat(key_of(file.digest))
        if stat is not None and stat.size_bytes == file.size_bytes:
            present.add(file.digest)
        else:
            message = f"the store has {'no bytes' if stat is None else f'{stat.size_bytes} bytes'} of {file.digest}"
            run.add("blob.bytes_missing", f"{location} {file.path}", message)
    return present


def _inspect(run: _Run, manifest: Manifest) -> Inspection | None:
    """Evaluate the bytes against their base; None if they cannot be read."""
    try:
        with db.session(run.engine, write=False) as session:
            bases_by_name, name = base_rows.find_all(session, [manifest.base.name]), manifest.base.name
            base = base_choice.find_base(bases_by_name, name, manifest.base, unregistered=True)
            spec, relatives = base_rows.load_spec(base), base_weights.find_relatives(session, base)
        return inspect.inspect_files(run.blobs, manifest, spec, relatives)
    except RegistryError:
        return None


def _restore_version(
    run: _Run,
    session: Session,
    name: AdapterName,
    record: VersionRecord,
    inspection: Inspection | None,
    present: set[Digest],
) -> bool:
    """Add the rows of a version; False, with a finding, if they contradict what is there."""
    manifest, location = record.manifest, f"{name}@{record.number}"
    base = base_rows.find_named(session, manifest.base.name)
    if manifest.base.fingerprint == UNREGISTERED and base is None:
        base = base_rows.store_unregistered(session, name.namespace, manifest.base.name)
    if base is None or manifest.base.fingerprint not in (base.fingerprint, UNREGISTERED):
        run.add("record.base_unknown", location, f"its base '{manifest.base.name}' is not registered here")
        return False
    adapter = _restore_adapter(session, name, record)
    same = select(VersionRow.digest).where(VersionRow.adapter_id == adapter.id, VersionRow.digest == manifest.digest)
    if session.exec(same).first() is not None:
        run.add("record.number_taken", location, "the same manifest has another number here")
        return False
    if record.purged_at is None:
        _restore_blobs(session, manifest, present)  # it locks blobs before rows of usage, as a push does
    adapter.newest_number = max(adapter.newest_number, record.number)
    adapter.updated_at = max(adapter.updated_at, record.created_at)
    columns = metadata_backup.recorded_columns(record)
    row = version_rows.version_row(adapter, base, manifest, **columns, recorded_at=db.now())
    session.add_all([adapter, row])
    session.flush()
    version_rows.add_contents(session, [(row, manifest)])
    if record.purged_at is not None:
        deletion.erase_contents(session, row)
    if inspection is not None:
        db.bulk_insert(session, [version_rows.build_compat_verdict(row, base, inspection)])
        if inspection.weights is not None:
            row.measured_at = db.now()
            weights.add_verdict(session, row, base, inspection.weights)
    detail = {"digest": row.digest, "base": base.name}
    audit.append(session, run.actor, EventType.VERSION_REINDEX, location, detail)
    return True


def _restore_adapter(session: Session, name: AdapterName, record: VersionRecord) -> AdapterRow:
    values: dict[str, Any] = {"namespace": name.namespace, "name": name.name, "newest_number": 0}
    values |= {"created_at": record.created_at, "created_by": record.created_by, "updated_at": record.created_at}
    if db.insert_new(session, AdapterRow, values):
        reserved_names.restore_adapter(session, name)
    statement = select(AdapterRow).where(versions.has_name(name)).with_for_update()
    return session.exec(statement.execution_options(populate_existing=True)).one()


def _restore_blobs(session: Session, manifest: Manifest, present: set[Digest]) -> None:
    """Mark the blobs of a version `live`, or `corrupt` if their bytes are missing."""
    sizes = {file.digest: file.size_bytes for file in manifest.files}
    references.reserve(session, sizes)
    references.mark_live(session, {digest: sizes[digest] for digest in present}, written_now=present)
    for digest in sorted(sizes.keys() - present):
        row = session.get_one(BlobRow, digest, populate_existing=True)
        if row.state == BlobState.PENDING:
            row.state = BlobState.CORRUPT
            session.add(row)
    session.flush()


def _restore_withdrawals(run: _Run) -> int:
    """Repeat the withdrawals, and ends of some, that happened after the database's backup; return how many."""
    count = 0
    stats_of_records = sorted(run.blobs.list(metadata_backup.VERSIONS), key=lambda stat: stat.key)
    for location, stats in groupby(stats_of_records, key=lambda stat: stat.key.split("/")[2:4]):
        name = AdapterName(*location)
        for record in record_check.find_unknown_withdrawals(run.engine, run.blobs, name, stats):
            count += 1
            if not run.dry_run:
                with db.session(run.engine) as session:
                    deletion.restore(session, run.actor, name, record)
    return count
