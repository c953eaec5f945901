"""Download plans: versions as `resolve` returns them, the bytes of their small files, and links to the large ones.

Pulls are planned in groups, with a few statements for all; one pull is a group of one.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from sqlmodel import Session

from registry.api.catalog import Resolved
from registry.api.transfer import (
    BULK_MANIFESTS_BYTES,
    BULK_SMALL_BYTES,
    SMALL_BLOB_BYTES,
    SMALL_FILES_BYTES,
    PullPlan,
    SmallBlob,
)
from registry.digest import Digest
from registry.errors import NotFound, RegistryError
from registry.names import Ref
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, key_of

READ_AT_ONCE = 8
"""Small files that are requested at once from a store on another machine."""


def plan_downloads(
    session: Session, actor: Actor, refs: Sequence[str], *, blobs: BlobStore, settings: Settings
) -> tuple[list[PullPlan | RegistryError], list[SmallBlob]]:
    """The plan of each ref or why it cannot be pulled, in the same order, and the small files of all.

    Damaged and missing files are left out; a request for one reports the error.
    """
    parsed = [_parse(text) for text in refs]
    valid = [ref for ref in parsed if isinstance(ref, Ref)]
    resolved = versions.resolve_all(session, actor, valid, manifests_bytes=BULK_MANIFESTS_BYTES)
    outcomes = [resolved[ref] if isinstance(ref, Ref) else ref for ref in parsed]
    plans = [outcome for outcome in outcomes if isinstance(outcome, Resolved)]
    damaged = references.find_damaged(session, {file.digest for version in plans for file in version.files})
    db.commit_early(session)
    small = _read_small(plans, damaged, blobs)
    left_out = {item.digest for item in small} | damaged
    return [
        outcome if isinstance(outcome, RegistryError) else _plan(outcome, left_out, actor, blobs, settings)
        for outcome in outcomes
    ], small


def _parse(text: str) -> Ref | RegistryError:
    try:
        return Ref.parse(text)
    except RegistryError as e:
        return e


def _plan(version: Resolved, left_out: set[Digest], actor: Actor, blobs: BlobStore, settings: Settings) -> PullPlan:
    """The plan of one version, with links to those files that are not `left_out`."""
    seconds, owner = min(settings.link_seconds, blobs.link_limit_seconds), actor.link_owner()
    links = {
        file.path: blobs.presign_read(
            key_of(file.digest), file.size_bytes, seconds=seconds, owner=owner, file_name=file.path
        )
        for file in version.files
        if file.digest not in left_out
    }
    direct = {path: url for path, url in links.items() if url is not None}
    return PullPlan(resolved=version, direct=direct, direct_seconds=seconds if direct else 0)


def _read_small(plans: Iterable[Resolved], damaged: set[Digest], blobs: BlobStore) -> list[SmallBlob]:
    """The bytes of the small files, each digest once, within the limits; wrong bytes are left out."""
    chosen: dict[Digest, int] = {}
    for version in plans:
        budget = SMALL_FILES_BYTES
        for digest, size_bytes in sorted({(f.digest, f.size_bytes) for f in version.files} - set(chosen.items())):
            if size_bytes > SMALL_BLOB_BYTES or digest in damaged:
                continue
            budget -= size_bytes
            if budget < 0 or sum(chosen.values()) + size_bytes > BULK_SMALL_BYTES:
                break
            chosen[digest] = size_bytes

    def read(blob: tuple[Digest, int]) -> SmallBlob | None:
        digest, size_bytes = blob
        try:
            data = blobs.read(key_of(digest), 0, size_bytes)
        except NotFound:
            return None
        encoded = base64.b64encode(data).decode()
        return SmallBlob(digest=digest, data=encoded) if Digest.of(data) == digest else None

    if len(chosen) < 2 or blobs.local_path(key_of(next(iter(chosen)))) is not None:
        return [item for item in map(read, chosen.items()) if item is not None]
    with ThreadPoolExecutor(READ_AT_ONCE, thread_name_prefix="small") as pool:
        return [item for item in pool.map(read, chosen.items()) if item is not None]
