"""Re-indexing: import the versions of one's own bucket that the database does not have, as pushes.

- A ref names a manifest, and the manifest its files: with the bytes that are there, this is an ordinary push with the
  number, the author and the time of the ref. Nothing else writes rows of versions.
- Existing rows stay. Only refs above an adapter's counter are imported, so a number never gets another version.
- A version without its bytes is not imported. Restore the bytes first, or its number stays unused.
- Aliases (except `main`), verdicts that need a worker, tokens, roles, reserved names, jobs and events are in a backup
  of the database. Restore that first, if there is one; a re-index adds what is newer.
- Refs, bases and tiles of the audit log that the bucket lost are written again: then it is older than the database.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from sqlalchemy import Engine, func, update
from sqlmodel import Session, col, select

from registry.api.maintenance import ReindexPage, ReindexRequest
from registry.api.transfer import CommitItem
from registry.bases import UNREGISTERED
from registry.bases.identity import Identity
from registry.errors import Conflict, Invalid, NotFound, RegistryError
from registry.events import EventType
from registry.findings import Finding
from registry.names import AdapterName
from registry.server import audit
from registry.server.access import reserved_names
from registry.server.actors import Actor
from registry.server.audit import tree
from registry.server.catalog import base_rows, base_weights, bases, refs, versions
from registry.server.catalog.refs import StoredBase, StoredRef
from registry.server.database import db
from registry.server.database.models import AdapterRow, BaseRow, VersionRow
from registry.server.database.models.pushes import PushBlobRow
from registry.server.promotion import deletion, withdraw
from registry.server.push import commit, plan
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, Stat, key_of
from registry.versions.manifest import Manifest

SECONDS = 10.0
FINDINGS_LIMIT = 200
BATCH = 100
_MORE = "again"


@dataclass
class _Run:
    """What one request works with, and what it has found."""

    engine: Engine
    blobs: BlobStore
    settings: Settings
    actor: Actor
    dry_run: bool
    findings: list[Finding] = field(default_factory=list)

    def add(self, code: str, location: str, message: str) -> None:
        self.findings.append(Finding.of("error", code, location, message))


def rebuild_index(
    engine: Engine, blobs: BlobStore, settings: Settings, actor: Actor, request: ReindexRequest
) -> ReindexPage:
    """Run one request's share of a re-index. A dry run counts what is missing, in a single request."""
    started = time.monotonic()
    run = _Run(engine, blobs, settings, actor, request.dry_run)
    imported_bases, imported, next_cursor, rewritten = _import_bases(run), 0, "", 0
    for name, stats in _missing_versions(engine, blobs):
        imported += sum(_import_version(run, name, number, group) for number, group in stats.items())
        if time.monotonic() - started > SECONDS and imported and not run.dry_run:
            next_cursor = _MORE
            break
    if not next_cursor:
        rewritten = _rewrite_lost(run) + tree.rewrite_lost_copies(engine, blobs, dry_run=run.dry_run)
    return ReindexPage(
        bases=imported_bases,
        versions=imported,
        rewritten=rewritten,
        findings=run.findings[:FINDINGS_LIMIT],
        next_cursor=next_cursor,
    )


def is_needed(engine: Engine, blobs: BlobStore) -> bool:
    """Whether the bucket has a version that the database does not have."""
    return next(_missing_versions(engine, blobs), None) is not None


# ------------------------------------------------------------------ bases
def _import_bases(run: _Run) -> int:
    missing: set[str] = set()
    for stat in list(run.blobs.list(refs.BASES)):
        stored = refs.read(run.blobs, stat, StoredBase)
        if stored is None:
            run.add("ref.damaged", stat.key, "has changed since it was written")
            continue
        with db.session(run.engine, write=not run.dry_run) as session:
            if not run.dry_run and _add_base(session, run.actor, stored):
                missing.add(stored.spec.name)
            base = session.exec(select(BaseRow).where(col(BaseRow.name) == stored.spec.name)).first()
            if base is None:
                missing.add(stored.spec.name)
            elif base.fingerprint != stored.spec.fingerprint:
                run.add("ref.base_differs", stat.key, f"here, base '{base.name}' has another fingerprint")
            elif not run.dry_run:
                bases.add_parents(session, base, stored.parents)
                if stored.identity is not None:
                    _add_identity(run, session, base, stored.identity)
    return len(missing)


def _add_base(session: Session, actor: Actor, stored: StoredBase) -> bool:
    spec = stored.spec
    base_rows.lock_names(session)
    values: dict[str, Any] = {
        "name": spec.name, "fingerprint": spec.fingerprint, "spec": spec.model_dump(mode="json"),
        "aliases": list(stored.aliases) or None, "source": stored.source,
        "parents": [edge.model_dump(mode="json") for edge in stored.parents] or None,
        "created_at": stored.created_at, "created_by": stored.created_by, "recorded_at": db.now(),
    }  # fmt: skip
    if added := db.insert_new(session, BaseRow, values) or base_rows.complete(session, values):
        audit.append(session, actor, EventType.BASE_REINDEX, spec.name, {"fingerprint": spec.fingerprint})
    return added


def _add_identity(run: _Run, session: Session, base: BaseRow, identity: Identity) -> None:
    """Set the identity of a base's weights unless it has one. The bucket has it, so it is not written again."""
    recorded_at = base.recorded_at
    try:
        if base_weights.store_identity(session, run.actor, base, identity):
            base.recorded_at = recorded_at
            session.add(base)
    except Conflict as e:
        run.add("ref.base_differs", base.name, e.detail[:500])


# ------------------------------------------------------------------ versions
def _missing_versions(engine: Engine, blobs: BlobStore) -> Iterator[tuple[AdapterName, dict[int, list[Stat]]]]:
    """Adapters with the refs above their counters, by number and in its order, without those whose name has ended."""
    listed = sorted(blobs.list(refs.REFS), key=lambda stat: stat.key)
    for folder, stats in groupby(listed, key=lambda stat: stat.key.split("/")[1:3]):
        name = AdapterName(*folder)
        by_number: dict[int, list[Stat]] = {}
        for stat in stats:
            by_number.setdefault(refs.version_in_key(stat.key)[1], []).append(stat)
        with db.session(engine, write=False) as session:
            has_ended = reserved_names.has_tombstone(session, name)
            newest = session.exec(select(AdapterRow.newest_number).where(versions.has_name(name))).first() or 0
        missing = {number: by_number[number] for number in sorted(by_number) if number > newest}
        if missing and not has_ended:
            yield name, missing


def _import_version(run: _Run, name: AdapterName, number: int, stats: list[Stat]) -> bool:
    """Import one version. False, and mostly a finding, if that is not possible; a purged one is only a number."""
    version = f"{name}@{number}"
    stored = [ref for stat in stats if (ref := refs.read_ref(run.blobs, stat)) is not None]
    if len(stored) != 1:
        message = "has several refs: delete the wrong ones" if stored else "its ref has changed since it was written"
        run.add("ref.damaged", version, message)
        return False
    (ref,) = stored
    try:
        manifest = None if ref.is_purged else _read_manifest(run, ref)
        if run.dry_run:
            return manifest is not None
        with db.session(run.engine) as session:
            _reserve_number(session, name, number, ref)
            push_id = _plan(session, run, name, manifest, ref) if manifest is not None else ""
        if manifest is None:
            return False
        with db.session(run.engine, write=False) as session:
            _commit(session, run.actor, run.blobs, push_id, version, ref)
    except RegistryError as e:
        findings = e.findings or [Finding("ref.not_imported", version, e.detail)]
        for finding in findings:
            run.add(finding.code, version, f"{finding.location}: {finding.message}"[:500])
        return False
    return True


def _read_manifest(run: _Run, ref: StoredRef) -> Manifest:
    """The manifest of a version. `NotFound` if the bucket lacks it or a file, with a finding for each file."""
    manifest = Manifest.parse(b"".join(run.blobs.open(key_of(ref.manifest))))
    if manifest.digest != ref.manifest:
        raise Invalid("MANIFEST_INVALID", f"the bytes under the digest {ref.manifest} are another manifest's")
    lost = []
    for file in manifest.files:
        stat = run.blobs.stat(key_of(file.digest))
        if stat is None or stat.size_bytes != file.size_bytes:
            stored = "no bytes" if stat is None else f"{stat.size_bytes} bytes"
            lost.append(Finding("blob.bytes_missing", file.path, f"the store has {stored} of {file.digest}"))
    if lost:
        raise NotFound("BLOB_UNKNOWN", f"{ref.version} has lost files", findings=lost)
    return manifest


def _reserve_number(session: Session, name: AdapterName, number: int, ref: StoredRef) -> None:
    """Let the adapter's next version have this number. A purged version only takes it."""
    values: dict[str, Any] = {"namespace": name.namespace, "name": name.name, "newest_number": 0}
    values |= {"created_at": ref.created_at, "created_by": ref.created_by, "updated_at": ref.created_at}
    if db.insert_new(session, AdapterRow, values):
        reserved_names.restore_adapter(session, name)
    statement = select(AdapterRow).where(versions.has_name(name)).with_for_update()
    adapter = session.exec(statement.execution_options(populate_existing=True)).one()
    adapter.newest_number = max(adapter.newest_number, number if ref.is_purged else number - 1)
    session.add(adapter)


def _plan(session: Session, run: _Run, name: AdapterName, manifest: Manifest, ref: StoredRef) -> str:
    """A push whose files have been sent: they are under their final keys."""
    if manifest.base.fingerprint == UNREGISTERED and base_rows.find_named(session, manifest.base.name) is None:
        base_rows.store_unregistered(session, name.namespace, manifest.base.name)
    sizes = plan.blob_sizes(manifest)
    row = plan.new_row(run.actor, name, manifest, ref.message, run.settings)
    references.reserve(session, plan.stored_sizes(manifest))
    files = [
        PushBlobRow(push_id=row.id, digest=digest, size_bytes=size, is_stored=True) for digest, size in sizes.items()
    ]
    db.bulk_insert(session, [row])
    db.bulk_insert(session, files)
    return row.id


def _commit(session: Session, actor: Actor, blobs: BlobStore, push_id: str, version: str, ref: StoredRef) -> None:
    """Commit the push, and in its transaction give the version its author, its time and its withdrawals."""
    (result,) = commit.commit_pushes(session, actor, [CommitItem(push_id=push_id)], blobs=blobs)
    if isinstance(result, RegistryError):
        raise result
    name, number = result.version.name, result.version.number
    if f"{name}@{number}" != version or not result.created:
        raise Conflict("NAME_TAKEN", f"the registry has this manifest as {name}@{number}, or was pushed to meanwhile")
    adapter_name = AdapterName.parse(str(name))
    statement = select(VersionRow).join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
    row = session.exec(statement.where(versions.has_name(adapter_name), col(VersionRow.number) == number)).one()
    session.add(row.sqlmodel_update({"created_at": ref.created_at, "created_by": ref.created_by}))
    audit.append(session, actor, EventType.VERSION_REINDEX, version, {"digest": row.digest})
    for change, reason in (("yank", ref.yanked), ("quarantine", ref.quarantined)):
        if reason is not None and (decision := withdraw.decide(adapter_name, row, change, reason)) is not None:
            withdraw.write(session, actor, adapter_name, row, decision)
    if ref.deleted is not None:
        deletion.withhold(session, actor, adapter_name, row, ref.deleted)


# ------------------------------------------------------------------ the bucket is the older one
def _rewrite_lost(run: _Run) -> int:
    """Write refs and bases that the bucket has lost; return how many."""
    count, after = 0, 0
    while adapters := _adapters_after(run, after):
        after = adapters[-1].id or 0
        for adapter in adapters:
            prefix = refs.adapter_prefix(AdapterName(adapter.namespace, adapter.name))
            stored = {refs.version_in_key(stat.key)[1] for stat in run.blobs.list(prefix)}
            with db.session(run.engine, write=not run.dry_run) as session:
                is_recorded = (col(VersionRow.adapter_id) == adapter.id, col(VersionRow.recorded_at).is_not(None))
                numbers = set(session.exec(select(VersionRow.number).where(*is_recorded))) - stored
                if numbers and not run.dry_run:
                    lost = update(VersionRow).where(*is_recorded, col(VersionRow.number).in_(numbers))
                    session.connection().execute(lost.values(recorded_at=None))
            count += len(numbers)
    stored_bases = sum(1 for _ in run.blobs.list(refs.BASES))
    with db.session(run.engine, write=not run.dry_run) as session:
        recorded = (base_rows.REGISTERED, col(BaseRow.recorded_at).is_not(None))
        registered = session.exec(select(func.count()).select_from(BaseRow).where(*recorded)).one()
        if registered > stored_bases:
            count += registered - stored_bases
            if not run.dry_run:
                session.connection().execute(update(BaseRow).where(*recorded).values(recorded_at=None))
    while not run.dry_run and refs.write_missing(run.engine, run.blobs, limit=BATCH):
        pass
    return count


def _adapters_after(run: _Run, after: int) -> list[AdapterRow]:
    with db.session(run.engine, write=False) as session:
        statement = select(AdapterRow).where(col(AdapterRow.id) > after).order_by(col(AdapterRow.id)).limit(BATCH)
        return list(session.exec(statement))
