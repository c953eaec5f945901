"""Receive and commit what a plan requested. A commit is the only way to create a version.

- Bytes first, then one transaction, then the answer: a version is visible completely or not at all.
- A commit holds no transaction while it reads, hashes and promotes bytes. Afterwards it checks that its push is still
  open, and looks for an equal version under a lock.
- Malformed files are rejected and nothing is stored. Incompatible ones are stored with a failing verdict `compat`.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine, bindparam
from sqlmodel import Session, col, select

from registry import names
from registry.api.transfer import PushCommit, PushResult, SmallBlob
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.errors import Conflict, Invalid, NotFound, Unavailable
from registry.findings import Finding
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.catalog import base_rows, base_weights
from registry.server.database import db
from registry.server.database.models import BaseRow, BlobRow, PushBlobRow, PushRow
from registry.server.push import background, inspect, plan, rows
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.references import BlobState, PushState

COMMIT_SECONDS = 3600
"""How long a push stays open, at least, once its commit has begun."""
PushBlobs = Mapping[Digest, PushBlobRow]


# ------------------------------------------------------------------ receive
@dataclass(frozen=True, slots=True)
class ExpectedBlob:
    """A blob that a push requested. `needed` is False once the version exists: its bytes may be discarded."""

    key: str
    size_bytes: int
    needed: bool


def find_upload(session: Session, token_id: str, push_id: str, digest: Digest) -> ExpectedBlob:
    """The key for the bytes of this blob. `NotFound` for another token's push and for a blob that was not requested."""
    row = _find_push(session, token_id, push_id)
    return _expected_blob(row, digest, session.exec(_BLOB, params={"id": row.id, "digest": digest}).first())


def _expected_blob(row: PushRow, digest: Digest, blob: PushBlobRow | None) -> ExpectedBlob:
    if blob is None or not blob.staging_key:
        raise NotFound("BLOB_UNKNOWN", f"push {row.id} did not request blob {digest}")
    return ExpectedBlob(blob.staging_key, blob.size_bytes, row.state == PushState.OPEN)


# Built once: building a statement takes longer than running it.
_PUSH = select(PushRow).where(col(PushRow.id) == bindparam("id"))
_BLOB = select(PushBlobRow).where(
    col(PushBlobRow.push_id) == bindparam("id"), col(PushBlobRow.digest) == bindparam("digest")
)

_STAGING_KEYS = select(PushBlobRow.staging_key).where(
    col(PushBlobRow.push_id) == bindparam("id"), col(PushBlobRow.staging_key) != ""
)


def _find_push(session: Session, token_id: str, push_id: str) -> PushRow:
    row = session.exec(_PUSH, params={"id": push_id[:80]}).first()
    late = row is not None and row.state == PushState.OPEN and row.expires_at <= db.now()
    if row is None or row.token_id != token_id or row.state == PushState.EXPIRED or late:
        raise references.unknown_push(push_id)
    return row


# ------------------------------------------------------------------ commit
def commit_push(
    session: Session, actor: Actor, push_id: str, request: PushCommit, *,
    blobs: BlobStore, engines: Sequence[EngineProfile] = (),
) -> PushResult:  # fmt: skip
    """The version, new or existing, with its verdicts. `Invalid` stores nothing.

    `session` must have begun by reading; it writes from the last check on.
    """
    row = _find_push(session, actor.token_id, push_id)
    name = AdapterName(row.namespace, row.name)
    actor.require(Scope.PUSH, name)
    alias = str(names.alias(request.alias)) if request.alias else ""
    if alias:
        actor.require(Scope.PROMOTE, name)
    manifest = Manifest.parse(row.manifest.encode())
    is_open = row.state == PushState.OPEN
    exists = rows.find_existing(session, name, manifest.digest) is not None
    if not is_open or (exists and not _repairs_blobs(session, row)):  # what an ended push has staged is never read
        return _answer_existing(session, actor, name, row, manifest, alias)
    requested = {Digest(blob.digest): blob for blob in plan.push_blobs(session, row)}
    _stage_small(row, requested, request.small, blobs)
    base = plan.find_base(session, manifest)
    try:
        inspection, repaired = _inspect_and_promote(session, row, requested, manifest, base, blobs)
    except (Conflict, NotFound) as error:
        # A racing commit of the same push may have finished and cleaned up: then its version counts.
        if error.code not in ("UPLOAD_INCOMPLETE", "BLOB_UNKNOWN"):
            raise
        db.begin_writing(session)
        if rows.find_existing(session, name, manifest.digest) is None:
            raise
        return _answer_existing(session, actor, name, row, manifest, alias)
    db.begin_writing(session)
    return rows.create_version(
        session, actor, name, row, manifest, base, inspection, alias=alias, repaired=repaired, engines=engines
    )


def _stage_small(row: PushRow, requested: PushBlobs, small: Sequence[SmallBlob], blobs: BlobStore) -> None:
    """Stage the bytes that the commit itself carries, under the rules of an upload."""
    for item in small:
        expected = _expected_blob(row, item.digest, requested.get(item.digest))
        try:
            data = base64.b64decode(item.data, validate=True)
        except ValueError:
            raise Invalid("REQUEST_INVALID", f"small: the bytes of {item.digest} are not base64") from None
        if len(data) != expected.size_bytes:
            message = f"has {len(data)} bytes in the commit, and the plan requested {expected.size_bytes}"
            findings = [Finding("blob.size_mismatch", item.digest, message)]
            raise Invalid("BLOB_MISMATCH", f"blob {item.digest} {message}", findings=findings)
        if expected.needed:
            blobs.put(expected.key, [data], expect=item.digest, limit_bytes=len(data))


def _answer_existing(
    session: Session, actor: Actor, name: AdapterName, row: PushRow, manifest: Manifest, alias: str
) -> PushResult:
    db.begin_writing(session)
    version = rows.find_existing(session, name, manifest.digest)
    if version is None:
        raise NotFound("VERSION_UNKNOWN", f"the version {manifest.digest} of '{name}' was deleted in the meantime")
    return rows.answer_existing(session, actor, name, row, version, alias)


def _repairs_blobs(session: Session, row: PushRow) -> bool:
    """Whether this push brought bytes for a blob that is damaged."""
    statement = (
        select(BlobRow.digest)
        .join(PushBlobRow, col(PushBlobRow.digest) == col(BlobRow.digest))
        .where(PushBlobRow.push_id == row.id, PushBlobRow.staging_key != "", BlobRow.state == BlobState.CORRUPT)
    )
    return session.exec(statement.limit(1)).first() is not None


def _inspect_and_promote(
    session: Session, row: PushRow, requested: PushBlobs, manifest: Manifest, base: BaseRow, blobs: BlobStore
) -> tuple[inspect.Inspection, set[Digest]]:
    """Inspect the bytes and move them to their final keys; also says which damaged blobs they replaced."""
    relatives, spec = base_weights.find_relatives(session, base), base_rows.load_spec(base)
    damaged = _secure_blobs(session, row, manifest)
    staged = [digest for digest, blob in requested.items() if blob.staging_key]
    try:
        with inspect.verified_blobs(blobs, requested.values(), manifest) as verified:
            failpoints.reach("push.hashed")
            keys = {digest: stat.key for digest, stat in verified.items()}
            inspection = inspect.inspect_files(blobs, keys, manifest, spec, relatives)
            failpoints.reach("push.before_promote")
            for digest in staged:
                blobs.promote(keys[digest], digest, replace=digest in damaged)
                failpoints.reach("push.after_promote")
    except inspect.BlobMismatch as error:
        if error.key.startswith("staging/"):
            blobs.delete(error.key)  # otherwise nothing else could ever be uploaded there
        raise
    return inspection, damaged & set(staged)


def _secure_blobs(session: Session, row: PushRow, manifest: Manifest) -> set[Digest]:
    """Keep the push, and with it its blobs, open for as long as a commit takes; returns the damaged blobs.

    Nothing is written if it stays open longer anyway. `NotFound` (PUSH_UNKNOWN) if `gc` has ended it.
    """
    until = db.now() + timedelta(seconds=COMMIT_SECONDS)
    sizes = plan.blob_sizes(manifest)
    if row.expires_at > until:
        damaged = references.find_damaged(session, sizes)
    else:
        db.begin_writing(session)
        states = references.reserve(session, sizes) if references.extend_push(session, row.id, until=until) else {}
        damaged = {digest for digest, state in states.items() if state == BlobState.CORRUPT}
    db.commit_early(session)
    return damaged


def clean_up(engine: Engine, push_id: str, *, blobs: BlobStore) -> None:
    """Delete what a committed push staged and run the background work. Optional: `gc` would do the same later."""
    with contextlib.suppress(Unavailable):
        keys = {stat.key for stat in blobs.list(f"staging/{push_id}/")}
        if blobs.has_conditional_links:
            with db.session(engine, write=False) as session:
                keys.update(session.exec(_STAGING_KEYS, params={"id": push_id}).all())
        for key in sorted(keys):
            blobs.end_staging(key)
        background.run_pending(engine, blobs)
