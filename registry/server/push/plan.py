"""Plan a push: which blobs it still has to send, and where to.

- A plan requests every blob that is in no version which the actor may read, even if another tenant has it. So neither
  a plan nor its timing nor an error reveals what is in other namespaces.
- Every blob of an open push has a row and a reference before its bytes are sent, so `gc` never deletes it too early.
- A damaged blob is requested even from those who have it: that repairs it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import timedelta

from sqlalchemy import bindparam
from sqlmodel import Session, col, select

from registry.api import PREFIX
from registry.api.transfer import PushPlan, PushRequest, Upload, UploadPart
from registry.digest import Digest
from registry.errors import Invalid
from registry.findings import Finding
from registry.manifest import Manifest
from registry.names import AdapterName
from registry.roles import Scope
from registry.server import failpoints
from registry.server.access import quotas
from registry.server.actors import Actor
from registry.server.catalog import base_rows, versions
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


def plan_push(
    session: Session, actor: Actor, name: AdapterName, request: PushRequest, *, blobs: BlobStore, settings: Settings
) -> PushPlan:
    """What is missing for this version and where to send it. Checks everything that can be checked without the bytes.

    An open push of the same token and manifest is resumed, so that nothing is sent twice.
    """
    actor.require(Scope.PUSH, name)
    manifest = request.manifest
    find_base(session, manifest)
    row = _find_open_push(session, actor, name, manifest, settings)
    sizes = blob_sizes(manifest)
    readable = _readable_blobs(session, actor, manifest, sizes)
    if row is not None:
        requested = [blob for blob in _resumed_blobs(session, row, readable) if blob.staging_key]
        db.commit_early(session)
        missing = [blob for blob in requested if blobs.stat(blob.staging_key) is None]
    else:
        row = _push_row(actor, name, request, settings)
        keys = {digest: "" if digest in readable else staging_key_of(row.id, digest) for digest in sizes}
        blob_rows = [
            PushBlobRow(push_id=row.id, digest=digest, size_bytes=size, staging_key=keys[digest])
            for digest, size in sizes.items()
        ]
        missing = [blob for blob in blob_rows if blob.staging_key]
        failpoints.reach("push.plan.before_rows")
        db.begin_writing(session)
        quotas.check_before_upload(session, actor, name, manifest)
        references.reserve(session, sizes)
        db.bulk_insert(session, [row])
        db.bulk_insert(session, blob_rows)
        failpoints.reach("push.plan.after_rows")
        db.commit_early(session)
    return PushPlan(
        push_id=row.id,
        digest=manifest.digest,
        uploads=[upload for blob in missing if (upload := _upload(blob, actor, blobs, settings)) is not None],
        expires_at=row.expires_at,
    )


def find_base(session: Session, manifest: Manifest) -> BaseRow:
    """The base that the manifest names. `NotFound` (BASE_UNKNOWN), `Invalid` for an alias or another fingerprint.

    A version keeps its manifest, and an alias may end: so a manifest names a base by its own name.
    """
    base = base_rows.find(session, manifest.base.name)
    if base.name != manifest.base.name:
        message = f"is an alias of the base '{base.name}'"
        raise Invalid(
            "BASE_INVALID",
            f"'{manifest.base.name}' {message}",
            findings=[Finding("base.is_alias", manifest.base.name, message)],
            next_step=f"name the base '{base.name}' in the manifest",
        )
    if base.fingerprint != manifest.base.fingerprint:
        message = f"has the fingerprint {base.fingerprint} here, and the manifest says {manifest.base.fingerprint}"
        raise Invalid(
            "BASE_INVALID",
            f"base '{base.name}' {message}",
            findings=[Finding("base.fingerprint_differs", base.name, message)],
            next_step="the adapter was trained on another model of this name: register that model under its own name",
        )
    return base


def blob_sizes(manifest: Manifest) -> dict[Digest, int]:
    """The size of each blob of a manifest. `Invalid` if the manifest gives one digest two sizes."""
    sizes: dict[Digest, int] = {}
    for file in manifest.files:
        if sizes.setdefault(file.digest, file.size_bytes) != file.size_bytes:
            message = f"has the digest of another file and {file.size_bytes} bytes instead of {sizes[file.digest]}"
            findings = [Finding("manifest.sizes_differ", file.path, message)]
            raise Invalid("MANIFEST_INVALID", f"{file.path} {message}", findings=findings)
    return sizes


def _readable_blobs(session: Session, actor: Actor, manifest: Manifest, sizes: Mapping[Digest, int]) -> set[str]:
    """The manifest's blobs that versions visible to the actor have, undamaged and with the same size.

    Versions in quarantine do not count: pushing their bytes under another name would circumvent it.
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
    return {digest for digest, size in session.exec(statement) if sizes[Digest(digest)] == size}


# Built once, because every push executes them.
_OPEN_PUSH = (
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
_BLOBS = select(PushBlobRow).where(col(PushBlobRow.push_id) == bindparam("id"))


def _find_open_push(
    session: Session, actor: Actor, name: AdapterName, manifest: Manifest, settings: Settings
) -> PushRow | None:
    """The open push of the same token, name and manifest, if at least half of its time is left."""
    params = {"token_id": actor.token_id, "digest": manifest.digest, "namespace": name.namespace, "name": name.name}
    soonest = db.now() + timedelta(seconds=settings.push_hold_seconds / 2)
    return session.exec(_OPEN_PUSH, params={**params, "soonest": soonest}).first()


def _resumed_blobs(session: Session, row: PushRow, readable: set[str]) -> list[PushBlobRow]:
    """The blobs of a resumed push. A blob that was damaged since the first plan is now requested, too."""
    blobs = push_blobs(session, row)
    damaged = [blob for blob in blobs if not blob.staging_key and blob.digest not in readable]
    if damaged:
        db.begin_writing(session)
        for blob in damaged:
            blob.staging_key = staging_key_of(row.id, Digest(blob.digest))
            session.add(blob)
        session.flush()
    return blobs


def push_blobs(session: Session, row: PushRow) -> list[PushBlobRow]:
    """The blobs of a push."""
    return list(session.exec(_BLOBS, params={"id": row.id}).all())


def _push_row(actor: Actor, name: AdapterName, request: PushRequest, settings: Settings) -> PushRow:
    created_at = db.now()
    return PushRow(
        id="psh_" + secrets.token_hex(12), namespace=name.namespace, name=name.name, state=PushState.OPEN,
        manifest=request.manifest.to_bytes().decode(), manifest_digest=request.manifest.digest,
        message=request.message, created_at=created_at, created_by=actor.identity, token_id=actor.token_id,
        expires_at=created_at + timedelta(seconds=settings.push_hold_seconds),
    )  # fmt: skip


def _upload(blob: PushBlobRow, actor: Actor, blobs: BlobStore, settings: Settings) -> Upload | None:
    """Upload by links, in parts or whole, where the store has safe ones, else with the token. None: all arrived."""
    digest, size, seconds = Digest(blob.digest), blob.size_bytes, settings.link_seconds
    parts = blobs.presign_parts(blob.staging_key, size, seconds=seconds)
    if parts is not None:
        links = [UploadPart(number=p.number, start=p.start, size_bytes=p.size_bytes, url=p.url) for p in parts]
        return Upload(digest=digest, size_bytes=size, parts=links) if links else None
    link = blobs.presign_upload(blob.staging_key, size, seconds=seconds, owner=actor.token_id)
    if link is not None:
        return Upload(digest=digest, size_bytes=size, url=link.url, headers=link.headers)
    return Upload(digest=digest, size_bytes=size, url=f"{PREFIX}/pushes/{blob.push_id}/blobs/{digest}")
