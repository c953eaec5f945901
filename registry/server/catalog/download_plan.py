"""Pulls: what a client needs to bring a version, in one answer: the bytes of small files, links to large ones.

Invariants
- Whoever may resolve a version may pull it, and nobody else: the rules are those of the look-up.
- What is damaged or missing is left out; asked for by its own link, it is told as what it is.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence

from sqlmodel import Session

from registry.api import FileLink
from registry.api.pull import SMALL_TOGETHER_BYTES, PullPlan
from registry.api.push import SMALL_BYTES, Small
from registry.digest import Digest
from registry.errors import NotFound
from registry.names import AdapterName, Selector
from registry.server.actors import Actor
from registry.server.catalog import versions
from registry.server.database import db
from registry.server.settings import Settings
from registry.server.storage import references
from registry.server.storage.blobs import BlobStore, key_of


def plan(
    session: Session, actor: Actor, name: AdapterName, selector: Selector, *, blobs: BlobStore, settings: Settings
) -> PullPlan:
    """The version, as the look-up finds it, and how to have its files. No transaction is open while bytes are read."""
    resolved = versions.resolve(session, actor, name, selector)
    damaged = references.find_damaged(session, [file.digest for file in resolved.files])
    db.commit_early(session)
    whole = [file for file in resolved.files if file.digest not in damaged]
    small = list(_small(whole, blobs))
    told = {item.digest for item in small}
    seconds = settings.link_seconds
    links = {
        file.path: blobs.presign(key_of(file.digest), seconds=seconds, method="GET", file_name=file.path)
        for file in whole
        if file.digest not in told
    }
    direct = {path: link.url for path, link in links.items() if link is not None}
    return PullPlan(resolved=resolved, small=small, direct=direct, direct_seconds=seconds if direct else 0)


def _small(files: Sequence[FileLink], blobs: BlobStore) -> Iterator[Small]:
    """The bytes of the small files, each once, as far as they are what they should be."""
    left = SMALL_TOGETHER_BYTES
    for digest, size_bytes in sorted({(f.digest, f.size_bytes) for f in files if f.size_bytes <= SMALL_BYTES}):
        left -= size_bytes
        if left < 0:
            return
        data = _read(blobs, digest, size_bytes)
        if Digest.of(data) == digest:
            yield Small(digest=digest, data=base64.b64encode(data).decode())


def _read(blobs: BlobStore, digest: Digest, size_bytes: int) -> bytes:
    try:
        return blobs.read(key_of(digest), 0, size_bytes)
    except NotFound:
        return b""
