"""Push: plan, receive, commit. The only way a version comes to exist.

Invariants
- Bytes first, then one transaction, then the answer: a version is visible whole or not at all.
- A plan asks for every blob that no version in sight of the actor holds. What others hold is asked for again:
  nobody learns from a plan, from its speed or from a refusal what is in somebody else's namespace.
- The same manifest again is the same version, also for 64 who push it at once; its number is taken under a lock.
- Every blob of an open push has a row and is held by it before its bytes are sent (`holds`): `gc` is never too early.
- A commit holds no transaction while it reads, hashes and promotes bytes; then it looks again whether its push is open.
- Malformed is refused and nothing is stored. Incompatible is recorded: verdict `fits` = fail, no job, gates shut.

Example
    >>> plan = push.plan(session, actor, name, PushRequest(manifest=manifest), blobs=blobs, settings=settings)
    >>> pushed = push.commit(session, actor, plan.push_id, PushCommit(), blobs=blobs)
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import Engine
from sqlmodel import Session, col, select

from registry import names
from registry.digest import Digest
from registry.errors import Conflict, Invalid, NotFound, Reason, Unavailable
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.server import bases, catalog, db, failpoints, holds, identities, judge, records, versions
from registry.server.actors import Actor
from registry.server.blobs import BlobStore, staging_key_of
from registry.server.holds import OPEN, BlobState
from registry.server.settings import Settings
from registry.server.tables import AdapterRow, BaseRow, BlobRow, PushBlobRow, PushRow, VersionFileRow, VersionRow
from registry.wire import PREFIX
from registry.wire.push import Part, PushCommit, Pushed, PushPlan, PushRequest, Upload

RECORDS_LIMIT = 8
"""Records that one push writes: its own, and some of those that were left."""
COMMIT_SECONDS = 3600
"""How long a push stays open at least, once its commit has begun."""


# ------------------------------------------------------------------ plan
def plan(
    session: Session, actor: Actor, name: AdapterName, request: PushRequest, *, blobs: BlobStore, settings: Settings
) -> PushPlan:
    """What is missing for this version, and where to send it. Judges what can be judged without the bytes.

    An open push of the same token and manifest is taken up again, so what it sent already is not sent twice.
    """
    actor.demand("push", name)
    manifest = request.manifest
    _base(session, manifest)
    row = _taken_up(session, actor, name, manifest, settings)
    held = _held(session, actor, name, manifest)
    if row is not None:
        asked = [blob for blob in _asked(session, row, held) if blob.staging_key]
        missing = [blob for blob in asked if blobs.stat(blob.staging_key) is None]
    else:
        row = _push_row(actor, name, request, settings)
        wanted = [_blob_row(row, digest, size, held) for digest, size in _sizes(manifest).items()]
        missing = [blob for blob in wanted if blob.staging_key]
        failpoints.reach("push.plan.before_rows")
        db.begin_writing(session)
        holds.reserve(session, _sizes(manifest))
        session.add(row)
        session.flush()
        session.add_all(wanted)
        failpoints.reach("push.plan.after_rows")
    return PushPlan(
        push_id=row.id,
        digest=manifest.digest,
        uploads=[upload for blob in missing if (upload := _upload(blob, blobs, settings)) is not None],
        expires_at=row.expires_at,
    )


def _base(session: Session, manifest: Manifest) -> BaseRow:
    base = bases.row(session, manifest.base.name)
    if base.fingerprint != manifest.base.fingerprint:
        sentence = f"has the fingerprint {base.fingerprint} here, and the manifest says {manifest.base.fingerprint}"
        raise Invalid(
            "BASE_INVALID",
            f"base '{base.name}' {sentence}",
            reasons=[Reason("base.fingerprint_differs", base.name, sentence)],
            next_step="the adapter was made for another model of this name: register that one under a name of its own",
        )
    return base


def _sizes(manifest: Manifest) -> dict[Digest, int]:
    """Each blob once. `Invalid` when the manifest gives one digest two sizes."""
    sizes: dict[Digest, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            sentence = f"has the digest of another file and {file.size_bytes} bytes instead of {sizes[file.digest]}"
            reasons = [Reason("manifest.sizes_differ", file.path, sentence)]
            raise Invalid("MANIFEST_INVALID", f"{file.path} {sentence}", reasons=reasons)
    return sizes


def _held(session: Session, actor: Actor, name: AdapterName, manifest: Manifest) -> set[str]:
    """The blobs of this manifest that versions in sight of the actor hold, undamaged and with the size that it says."""
    statement = (
        select(VersionFileRow.digest, VersionFileRow.size_bytes)
        .join(VersionRow, col(VersionRow.id) == col(VersionFileRow.version_id))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .join(BlobRow, col(BlobRow.digest) == col(VersionFileRow.digest))
        .where(col(VersionFileRow.digest).in_([f.digest for f in manifest.files]), catalog.visible(actor))
        .where(col(BlobRow.state) == BlobState.LIVE)
        .distinct()
    )
    sizes = _sizes(manifest)
    return {digest for digest, size in session.exec(statement) if sizes[Digest(digest)] == size}


def _asked(session: Session, row: PushRow, held: set[str]) -> list[PushBlobRow]:
    """The blobs of a push taken up again. What was held then and was found damaged since is asked for now."""
    wanted = _blobs_of(session, row)
    damaged = [blob for blob in wanted if not blob.staging_key and blob.digest not in held]
    if damaged:
        db.begin_writing(session)
        for blob in damaged:
            blob.staging_key = staging_key_of(row.id, Digest(blob.digest))
            session.add(blob)
        session.flush()
    return wanted


def _taken_up(
    session: Session, actor: Actor, name: AdapterName, manifest: Manifest, settings: Settings
) -> PushRow | None:
    statement = select(PushRow).where(
        col(PushRow.token_id) == actor.token_id,
        col(PushRow.manifest_digest) == manifest.digest,
        col(PushRow.namespace) == name.namespace,
        col(PushRow.name) == name.name,
        col(PushRow.state) == OPEN,
        col(PushRow.expires_at) > db.now() + timedelta(seconds=settings.push_hold_seconds / 2),
    )
    return session.exec(statement.order_by(col(PushRow.created_at)).limit(1)).first()


def _push_row(actor: Actor, name: AdapterName, request: PushRequest, settings: Settings) -> PushRow:
    made_at = db.now()
    return PushRow(
        id="psh_" + secrets.token_hex(12),
        namespace=name.namespace,
        name=name.name,
        manifest=request.manifest.to_bytes().decode(),
        manifest_digest=request.manifest.digest,
        message=request.message,
        state=OPEN,
        created_at=made_at,
        created_by=actor.name,
        token_id=actor.token_id,
        expires_at=made_at + timedelta(seconds=settings.push_hold_seconds),
    )


def _blob_row(row: PushRow, digest: Digest, size_bytes: int, held: set[str]) -> PushBlobRow:
    staging_key = "" if digest in held else staging_key_of(row.id, digest)
    return PushBlobRow(push_id=row.id, digest=digest, size_bytes=size_bytes, staging_key=staging_key)


def _upload(blob: PushBlobRow, blobs: BlobStore, settings: Settings) -> Upload | None:
    """Straight to the store in parts or whole where that is safe, else to this server. None: all parts have arrived."""
    digest, size, seconds = Digest(blob.digest), blob.size_bytes, settings.link_seconds
    parts = blobs.parts(blob.staging_key, size, seconds=seconds)
    if parts is not None:
        links = [Part(number=p.number, start=p.start, size_bytes=p.size_bytes, url=p.url) for p in parts]
        return Upload(digest=digest, size_bytes=size, parts=links) if links else None
    link = blobs.link(blob.staging_key, seconds=seconds, method="PUT", digest=digest, size_bytes=size)
    if link is not None:
        return Upload(digest=digest, size_bytes=size, url=link.url, headers=link.headers)
    return Upload(digest=digest, size_bytes=size, url=f"{PREFIX}/pushes/{blob.push_id}/blobs/{digest}")


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
    blob = session.get(PushBlobRow, (row.id, digest))
    if blob is None or not blob.staging_key:
        raise NotFound("BLOB_UNKNOWN", f"push {row.id} did not ask for blob {digest}")
    return Expected(blob.staging_key, blob.size_bytes, row.state == OPEN)


def _own(session: Session, actor: Actor, push_id: str) -> PushRow:
    row = session.get(PushRow, push_id[:80])
    if row is None or row.token_id != actor.token_id or (row.state == OPEN and row.expires_at <= db.now()):
        raise holds.unknown_push(push_id)
    return row


def _blobs_of(session: Session, row: PushRow) -> list[PushBlobRow]:
    return list(session.exec(select(PushBlobRow).where(PushBlobRow.push_id == row.id)).all())


# ------------------------------------------------------------------ commit
def commit(session: Session, actor: Actor, push_id: str, request: PushCommit, *, blobs: BlobStore) -> Pushed:
    """The version, made now or found. `session` must have begun by reading; it writes from the last check on.

    Order: the push, its blobs, its judgement, the final keys; then the rows. `Invalid` stores nothing.
    """
    row = _own(session, actor, push_id)
    name = AdapterName(row.namespace, row.name)
    actor.demand("push", name)
    alias = str(names.alias(request.alias)) if request.alias else ""
    if alias:
        actor.demand("promote", name)
    manifest = Manifest.parse(row.manifest.encode())
    there = versions.existing(session, name, manifest.digest) is not None
    if there and not _mends(session, row):
        return _found(session, actor, name, row, manifest, alias)
    try:
        judged, mended = _judge_and_keep(session, row, manifest, blobs)
    except (Conflict, NotFound) as gone:
        # A racing commit of the same push may have finished and tidied up meanwhile: then its version counts.
        if gone.code not in ("UPLOAD_INCOMPLETE", "BLOB_UNKNOWN"):
            raise
        db.begin_writing(session)
        if versions.existing(session, name, manifest.digest) is None:
            raise
        return _found(session, actor, name, row, manifest, alias)
    db.begin_writing(session)
    return versions.make(session, actor, name, row, manifest, judged, alias=alias, mended=mended)


def _found(session: Session, actor: Actor, name: AdapterName, row: PushRow, manifest: Manifest, alias: str) -> Pushed:
    db.begin_writing(session)
    version = versions.existing(session, name, manifest.digest)
    if version is None:
        raise NotFound("VERSION_UNKNOWN", f"the version {manifest.digest} of '{name}' went away meanwhile")
    return versions.found(session, actor, name, row, version, alias)


def _mends(session: Session, row: PushRow) -> bool:
    """Whether this push brought bytes for a blob that is damaged."""
    statement = (
        select(BlobRow.digest)
        .join(PushBlobRow, col(PushBlobRow.digest) == col(BlobRow.digest))
        .where(PushBlobRow.push_id == row.id, PushBlobRow.staging_key != "", BlobRow.state == BlobState.CORRUPT)
    )
    return session.exec(statement.limit(1)).first() is not None


def _judge_and_keep(
    session: Session, row: PushRow, manifest: Manifest, blobs: BlobStore
) -> tuple[judge.Judged, set[Digest]]:
    """What the bytes say, once they stand under their final keys; and the damaged blobs that they replaced."""
    base = _base(session, manifest)
    relatives = identities.relatives(session, base)
    wanted = _blobs_of(session, row)
    damaged = _begin(session, row, manifest)
    try:
        keys = judge.verified(blobs, wanted, manifest)
    except judge.Mismatch as wrong:
        if wrong.key.startswith("staging/"):
            blobs.delete(wrong.key)  # else nothing else could ever be sent there
        raise
    failpoints.reach("push.hashed")
    judged = judge.look(blobs, keys, manifest, bases.spec_of(base), relatives)
    brought = {Digest(blob.digest): blob.staging_key for blob in wanted if blob.staging_key}
    failpoints.reach("push.before_promote")
    for digest, staging_key in brought.items():
        blobs.promote(staging_key, digest, replace=digest in damaged)
        failpoints.reach("push.after_promote")
    return judged, damaged & set(brought)


def _begin(session: Session, row: PushRow, manifest: Manifest) -> set[Digest]:
    """Make sure, and durable, that this push holds its blobs for as long as a commit takes; which of them are damaged.

    `NotFound` (PUSH_UNKNOWN) when `gc` has ended it meanwhile.
    """
    db.begin_writing(session)
    states = {}
    if holds.extend(session, row.id, until=db.now() + timedelta(seconds=COMMIT_SECONDS)):
        states = holds.reserve(session, _sizes(manifest))
    db.settle(session)
    return {digest for digest, state in states.items() if state == BlobState.CORRUPT}


def tidy(engine: Engine, push_id: str, *, blobs: BlobStore) -> None:
    """Remove what a committed push staged, and record its version. Not needed for truth: `gc` would do it later."""
    with contextlib.suppress(Unavailable):
        for key in [stat.key for stat in blobs.list(f"staging/{push_id}/")]:
            blobs.delete(key)
        records.write_missing(engine, blobs, limit=RECORDS_LIMIT)
