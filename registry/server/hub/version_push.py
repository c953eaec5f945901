"""Push a version from files that a Hub client has sent. The only place here that calls the push of the registry."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlmodel import Session

from registry.api.transfer import PushCommit, PushResult
from registry.digest import Digest
from registry.engines import EngineProfile
from registry.errors import Conflict
from registry.findings import Finding
from registry.manifest import Descriptor, Manifest
from registry.names import AdapterName
from registry.server import failpoints
from registry.server.actors import Actor
from registry.server.database import db
from registry.server.database.models import PushBlobRow, PushRow
from registry.server.push import commit, plan
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore
from registry.server.storage.references import PushState


@dataclass(frozen=True, slots=True)
class VersionPush:
    """A version to push: what it is, the blobs that an upload stages for it, and what is told about it."""

    manifest: Manifest
    staged: Mapping[Digest, PushBlobRow]
    message: str
    alias: str


def find_readable(session: Session, actor: Actor, sizes: Mapping[Digest, int]) -> set[Digest]:
    """Those of these blobs that versions visible to the actor have."""
    return {Digest(digest) for digest in plan.find_readable_blobs(session, actor, sizes)} if sizes else set()


def push_version(
    session: Session, actor: Actor, name: AdapterName, push: VersionPush, *,
    blobs: BlobStore, engines: Sequence[EngineProfile], settings: Settings,
) -> tuple[str, PushResult]:  # fmt: skip
    """The id of the push, and its version. Errors as of a commit; then nothing but the push remains.

    `session` must have begun by reading. It writes when this returns, so the caller may add to the transaction.
    """
    manifest, now = push.manifest, db.now()
    sizes = plan.blob_sizes(manifest)
    readable = find_readable(session, actor, sizes)
    lost = [file for file in manifest.files if file.digest not in readable and file.digest not in push.staged]
    if lost:
        raise not_uploaded(lost)
    row = PushRow(
        id="psh_" + secrets.token_hex(12), namespace=name.namespace, name=name.name, state=PushState.OPEN,
        manifest=manifest.to_bytes().decode(), manifest_digest=manifest.digest, message=push.message, created_at=now,
        created_by=actor.identity, token_id=actor.token_id,
        expires_at=now + timedelta(seconds=settings.push_hold_seconds),
    )  # fmt: skip
    keys = {digest: "" if digest in readable else push.staged[digest].staging_key for digest in sizes}
    rows = [PushBlobRow(push_id=row.id, digest=d, size_bytes=sizes[d], staging_key=key) for d, key in keys.items()]
    db.begin_writing(session)
    references.reserve(session, sizes)
    db.bulk_insert(session, [row])
    db.bulk_insert(session, rows)
    db.commit_early(session)
    failpoints.reach("hub.version.planned")
    return row.id, commit.commit_push(
        session, actor, row.id, PushCommit(alias=push.alias), blobs=blobs, engines=engines
    )


def not_uploaded(files: Sequence[Descriptor]) -> Conflict:
    """The error for files whose bytes never arrived."""
    findings = [Finding("blob.unknown", file.path, f"was not uploaded: no bytes for {file.digest}") for file in files]
    more = f" (and {len(findings) - 1} more)" if findings[1:] else ""
    return Conflict(
        "UPLOAD_INCOMPLETE", f"{findings[0].location} {findings[0].message}{more}", findings=findings,
        next_step="upload again: what has arrived is not sent again",
    )  # fmt: skip
