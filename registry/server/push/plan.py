"""Plans: what a push still has to send, and where to.

Invariants
- A plan asks for every blob that no version which the actor may read holds. What others hold is asked for again:
  nobody learns from a plan, from its speed or from a refusal what is in somebody else's namespace.
- Every blob of an open push has a row and is held by it before its bytes are sent (`holds`): `gc` is never too early.
- A damaged blob is asked for even by those who hold it: that is how it is mended.
"""

from __future__ import annotations

import secrets
from datetime import timedelta

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.api import PREFIX
from registry.api.push import Part, PushPlan, PushRequest, Upload
from registry.digest import Digest
from registry.errors import Invalid, Reason
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import quotas
from registry.server.actors import Actor
from registry.server.catalog import bases, versions
from registry.server.database import db
from registry.server.database.models import (
    AdapterRow,
    BaseRow,
    BlobRow,
    PushBlobRow,
    PushRow,
    VersionFileRow,
    VersionRow,
)
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, staging_key_of
from registry.server.storage.references import BlobState, PushState


def make(
    session: Session, actor: Actor, name: AdapterName, request: PushRequest, *, blobs: BlobStore, settings: Settings
) -> PushPlan:
    """What is missing for this version, and where to send it. Judges what can be judged without the bytes.

    An open push of the same token and manifest is taken up again, so what it sent already is not sent twice.
    """
    actor.require(Scope.PUSH, name)
    manifest = request.manifest
    base_of(session, manifest)
    row = _taken_up(session, actor, name, manifest, settings)
    held = _held(session, actor, manifest)
    if row is not None:
        asked = [blob for blob in _asked(session, row, held) if blob.staging_key]
        db.commit_early(session)
        missing = [blob for blob in asked if blobs.stat(blob.staging_key) is None]
    else:
        quotas.check_before_upload(session, actor, name, manifest)
        row = _push_row(actor, name, request, settings)
        wanted = [_blob_row(row, digest, size, held) for digest, size in sizes_of(manifest).items()]
        missing = [blob for blob in wanted if blob.staging_key]
        failpoints.reach("push.plan.before_rows")
        db.begin_writing(session)
        references.reserve(session, sizes_of(manifest))
        db.bulk_insert(session, [row])
        db.bulk_insert(session, wanted)
        failpoints.reach("push.plan.after_rows")
        db.commit_early(session)
    return PushPlan(
        push_id=row.id,
        digest=manifest.digest,
        uploads=[upload for blob in missing if (upload := _upload(blob, blobs, settings)) is not None],
        expires_at=row.expires_at,
    )


def base_of(session: Session, manifest: Manifest) -> BaseRow:
    base = bases.row(session, manifest.base.name)
    if base.fingerprint != manifest.base.fingerprint:
        message = f"has the fingerprint {base.fingerprint} here, and the manifest says {manifest.base.fingerprint}"
        raise Invalid(
            "BASE_INVALID",
            f"base '{base.name}' {message}",
            reasons=[Reason("base.fingerprint_differs", base.name, message)],
            next_step="the adapter was made for another model of this name: register that one under a name of its own",
        )
    return base


def sizes_of(manifest: Manifest) -> dict[Digest, int]:
    """Each blob once. `Invalid` when the manifest gives one digest two sizes."""
    sizes: dict[Digest, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            message = f"has the digest of another file and {file.size_bytes} bytes instead of {sizes[file.digest]}"
            reasons = [Reason("manifest.sizes_differ", file.path, message)]
            raise Invalid("MANIFEST_INVALID", f"{file.path} {message}", reasons=reasons)
    return sizes


def _held(session: Session, actor: Actor, manifest: Manifest) -> set[str]:
    """The blobs of this manifest that versions in sight of the actor hold, undamaged and with the size that it says.

    Not those in quarantine: a push of their bytes under another name would be a way around it.
    """
    statement = (
        select(VersionFileRow.digest, VersionFileRow.size_bytes)
        .join(VersionRow, col(VersionRow.id) == col(VersionFileRow.version_id))
        .join(AdapterRow, col(AdapterRow.id) == col(VersionRow.adapter_id))
        .join(BlobRow, col(BlobRow.digest) == col(VersionFileRow.digest))
        .where(col(VersionFileRow.digest).in_([f.digest for f in manifest.files]), versions.visible(actor))
        .where(col(BlobRow.state) == BlobState.LIVE, col(VersionRow.quarantined_at).is_(None))
        .distinct()
    )
    sizes = sizes_of(manifest)
    return {digest for digest, size in session.exec(statement) if sizes[Digest(digest)] == size}


def _asked(session: Session, row: PushRow, held: set[str]) -> list[PushBlobRow]:
    """The blobs of a push taken up again. What was held then and was found damaged since is asked for now."""
    wanted = blobs_of(session, row)
    damaged = [blob for blob in wanted if not blob.staging_key and blob.digest not in held]
    if damaged:
        db.begin_writing(session)
        for blob in damaged:
            blob.staging_key = staging_key_of(row.id, Digest(blob.digest))
            session.add(blob)
        session.flush()
    return wanted


_TAKEN_UP = (
    select(PushRow)
    .where(
        col(PushRow.token_id) == bindparam("token_id"),
        col(PushRow.manifest_digest) == bindparam("digest"),
        col(PushRow.namespace) == bindparam("namespace"),
        col(PushRow.name) == bindparam("name"),
        col(PushRow.state) == PushState.OPEN,
        col(PushRow.expires_at) > bindparam("soonest"),
    )
    .order_by(col(PushRow.created_at))
    .limit(1)
)
"""Put together once, as `_BLOBS`: that takes longer than to ask."""


def _taken_up(
    session: Session, actor: Actor, name: AdapterName, manifest: Manifest, settings: Settings
) -> PushRow | None:
    wanted = {"token_id": actor.token_id, "digest": manifest.digest, "namespace": name.namespace, "name": name.name}
    soonest = db.now() + timedelta(seconds=settings.push_hold_seconds / 2)
    return session.exec(_TAKEN_UP, params={**wanted, "soonest": soonest}).first()


def _push_row(actor: Actor, name: AdapterName, request: PushRequest, settings: Settings) -> PushRow:
    made_at = db.now()
    return PushRow(
        id="psh_" + secrets.token_hex(12),
        namespace=name.namespace,
        name=name.name,
        manifest=request.manifest.to_bytes().decode(),
        manifest_digest=request.manifest.digest,
        message=request.message,
        state=PushState.OPEN,
        created_at=made_at,
        created_by=actor.identity,
        token_id=actor.token_id,
        expires_at=made_at + timedelta(seconds=settings.push_hold_seconds),
    )


def _blob_row(row: PushRow, digest: Digest, size_bytes: int, held: set[str]) -> PushBlobRow:
    staging_key = "" if digest in held else staging_key_of(row.id, digest)
    return PushBlobRow(push_id=row.id, digest=digest, size_bytes=size_bytes, staging_key=staging_key)


def _upload(blob: PushBlobRow, blobs: BlobStore, settings: Settings) -> Upload | None:
    """Straight to the store in parts or whole where that is safe, else to this server. None: all parts have arrived."""
    digest, size, seconds = Digest(blob.digest), blob.size_bytes, settings.link_seconds
    parts = blobs.presign_parts(blob.staging_key, size, seconds=seconds)
    if parts is not None:
        links = [Part(number=p.number, start=p.start, size_bytes=p.size_bytes, url=p.url) for p in parts]
        return Upload(digest=digest, size_bytes=size, parts=links) if links else None
    link = blobs.presign(blob.staging_key, seconds=seconds, method="PUT", digest=digest, size_bytes=size)
    if link is not None:
        return Upload(digest=digest, size_bytes=size, url=link.url, headers=link.headers)
    return Upload(digest=digest, size_bytes=size, url=f"{PREFIX}/pushes/{blob.push_id}/blobs/{digest}")


_BLOBS = select(PushBlobRow).where(col(PushBlobRow.push_id) == bindparam("id"))


def blobs_of(session: Session, row: PushRow) -> list[PushBlobRow]:
    return list(session.exec(_BLOBS, params={"id": row.id}).all())
