"""Push: receive and commit what a plan asked for (`plans`). The only way a version comes to exist.

Invariants
- Bytes first, then one transaction, then the answer: a version is visible whole or not at all.
- The same manifest again is the same version, also for 64 who push it at once; its number is taken under a lock.
- A commit holds no transaction while it reads, hashes and promotes bytes; then it looks again whether its push is open.
- Malformed is refused and nothing is stored. Incompatible is recorded: verdict `compat` = fail, no job, gates shut.
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
from registry.api.push import PushCommit, Pushed, Small
from registry.digest import Digest
from registry.engines import Profile
from registry.errors import Conflict, Invalid, NotFound, Reason, Unavailable
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.catalog import base_identity, bases
from registry.server.database import db
from registry.server.database.models import BaseRow, BlobRow, PushBlobRow, PushRow
from registry.server.push import background, inspect, plan, rows
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.references import BlobState, PushState

COMMIT_SECONDS = 3600
"""How long a push stays open at least, once its commit has begun."""
Asked = Mapping[Digest, PushBlobRow]
"""The blobs of a push."""


# ------------------------------------------------------------------ receive
@dataclass(frozen=True, slots=True)
class Expected:
    """A blob that a push asked for. `needed` is False once the version exists: its bytes may be thrown away."""

    key: str
    size_bytes: int
    needed: bool


def receive(session: Session, actor: Actor, push_id: str, digest: Digest) -> Expected:
    """Where the bytes of this blob go. `NotFound` for a push of somebody else and a blob that was not asked for."""
    row = _own(session, actor, push_id)
    return _expected(row, digest, session.exec(_BLOB, params={"id": row.id, "digest": digest}).first())


def _expected(row: PushRow, digest: Digest, blob: PushBlobRow | None) -> Expected:
    if blob is None or not blob.staging_key:
        raise NotFound("BLOB_UNKNOWN", f"push {row.id} did not ask for blob {digest}")
    return Expected(blob.staging_key, blob.size_bytes, row.state == PushState.OPEN)


_PUSH = select(PushRow).where(col(PushRow.id) == bindparam("id"))
_BLOB = select(PushBlobRow).where(
    col(PushBlobRow.push_id) == bindparam("id"), col(PushBlobRow.digest) == bindparam("digest")
)
"""Put together once, which takes longer than to ask."""


def _own(session: Session, actor: Actor, push_id: str) -> PushRow:
    row = session.exec(_PUSH, params={"id": push_id[:80]}).first()
    late = row is not None and row.state == PushState.OPEN and row.expires_at <= db.now()
    if row is None or row.token_id != actor.token_id or row.state == PushState.EXPIRED or late:
        raise references.unknown_push(push_id)
    return row


# ------------------------------------------------------------------ commit
def commit(
    session: Session,
    actor: Actor,
    push_id: str,
    request: PushCommit,
    *,
    blobs: BlobStore,
    engines: Sequence[Profile] = (),
) -> Pushed:
    """The version, made now or found, with its verdicts `compat` and, for each of `engines`, `engine`.

    `session` must have begun by reading; it writes from the last check on.
    Order: the push, its blobs, its judgement, the final keys; then the rows. `Invalid` stores nothing.
    """
    row = _own(session, actor, push_id)
    name = AdapterName(row.namespace, row.name)
    actor.require(Scope.PUSH, name)
    alias = str(names.alias(request.alias)) if request.alias else ""
    if alias:
        actor.require(Scope.PROMOTE, name)
    manifest = Manifest.parse(row.manifest.encode())
    there = rows.existing(session, name, manifest.digest) is not None
    if there and not _mends(session, row):
        return _found(session, actor, name, row, manifest, alias)
    asked = {Digest(blob.digest): blob for blob in plan.blobs_of(session, row)}
    _keep_small(row, asked, request.small, blobs)
    base = plan.base_of(session, manifest)
    try:
        judged, mended = _judge_and_keep(session, row, asked, manifest, base, blobs)
    except (Conflict, NotFound) as gone:
        # A racing commit of the same push may have finished and tidied up meanwhile: then its version counts.
        if gone.code not in ("UPLOAD_INCOMPLETE", "BLOB_UNKNOWN"):
            raise
        db.begin_writing(session)
        if rows.existing(session, name, manifest.digest) is None:
            raise
        return _found(session, actor, name, row, manifest, alias)
    db.begin_writing(session)
    return rows.make(session, actor, name, row, manifest, base, judged, alias=alias, mended=mended, engines=engines)


def _keep_small(row: PushRow, asked: Asked, small: Sequence[Small], blobs: BlobStore) -> None:
    """Stage what the commit itself brings, under the rules of an upload."""
    for item in small:
        expected = _expected(row, item.digest, asked.get(item.digest))
        try:
            data = base64.b64decode(item.data, validate=True)
        except ValueError:
            message = f"small: the bytes of {item.digest} are not base64"
            raise Invalid("REQUEST_INVALID", message) from None
        if len(data) != expected.size_bytes:
            message = f"has {len(data)} bytes in the commit, and the plan asked for {expected.size_bytes}"
            reasons = [Reason("blob.size_mismatch", item.digest, message)]
            raise Invalid("BLOB_MISMATCH", f"blob {item.digest} {message}", reasons=reasons)
        if expected.needed:
            blobs.put(expected.key, [data], expect=item.digest, limit_bytes=len(data))


def _found(session: Session, actor: Actor, name: AdapterName, row: PushRow, manifest: Manifest, alias: str) -> Pushed:
    db.begin_writing(session)
    version = rows.existing(session, name, manifest.digest)
    if version is None:
        raise NotFound("VERSION_UNKNOWN", f"the version {manifest.digest} of '{name}' went away meanwhile")
    return rows.found(session, actor, name, row, version, alias)


def _mends(session: Session, row: PushRow) -> bool:
    """Whether this push brought bytes for a blob that is damaged."""
    statement = (
        select(BlobRow.digest)
        .join(PushBlobRow, col(PushBlobRow.digest) == col(BlobRow.digest))
        .where(PushBlobRow.push_id == row.id, PushBlobRow.staging_key != "", BlobRow.state == BlobState.CORRUPT)
    )
    return session.exec(statement.limit(1)).first() is not None


def _judge_and_keep(
    session: Session, row: PushRow, asked: Asked, manifest: Manifest, base: BaseRow, blobs: BlobStore
) -> tuple[inspect.Judged, set[Digest]]:
    """What the bytes say, once they stand under their final keys; and the damaged blobs that they replaced."""
    relatives, spec = base_identity.relatives(session, base), bases.spec_of(base)
    damaged = _begin(session, row, manifest)
    try:
        keys = inspect.verified(blobs, asked.values(), manifest)
    except inspect.Mismatch as wrong:
        if wrong.key.startswith("staging/"):
            blobs.delete(wrong.key)  # else nothing else could ever be sent there
        raise
    failpoints.reach("push.hashed")
    judged = inspect.look(blobs, keys, manifest, spec, relatives)
    brought = {digest: blob.staging_key for digest, blob in asked.items() if blob.staging_key}
    failpoints.reach("push.before_promote")
    for digest, staging_key in brought.items():
        blobs.promote(staging_key, digest, replace=digest in damaged)
        failpoints.reach("push.after_promote")
    return judged, damaged & set(brought)


def _begin(session: Session, row: PushRow, manifest: Manifest) -> set[Digest]:
    """Make sure, and durable, that this push holds its blobs for as long as a commit takes; which of them are damaged.

    A push that stays open for longer anyway holds them already: then nothing is written. `NotFound` (PUSH_UNKNOWN) when
    `gc` has ended it meanwhile.
    """
    until = db.now() + timedelta(seconds=COMMIT_SECONDS)
    sizes = plan.sizes_of(manifest)
    if row.expires_at > until:
        damaged = references.find_damaged(session, sizes)
    else:
        db.begin_writing(session)
        states = references.reserve(session, sizes) if references.extend_push(session, row.id, until=until) else {}
        damaged = {digest for digest, state in states.items() if state == BlobState.CORRUPT}
    db.commit_early(session)
    return damaged


def tidy(engine: Engine, push_id: str, *, blobs: BlobStore) -> None:
    """Remove what a committed push staged, and care for what it left. Not needed for truth: `gc` would do it later."""
    with contextlib.suppress(Unavailable):
        for key in [stat.key for stat in blobs.list(f"staging/{push_id}/")]:
            blobs.delete(key)
        background.keep_up(engine, blobs)
