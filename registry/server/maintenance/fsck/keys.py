"""Blobs: every row has its bytes and every final key its row; every file has a blob; what is staged has an open push.

Invariants
- A shard is the blobs whose digests begin with the same two hexadecimal digits: rows and keys of one are compared.
- What looks wrong is looked up once more, row after bytes: a push or `gc` may have been in the middle of it.
- A shard's folder that cannot be read is told, and does not stop the check.
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.errors import Invalid, Unavailable
from registry.server.database.models import AttestationRow, BlobRow, PushRow, VerdictRow, VersionFileRow
from registry.server.maintenance.fsck.page import Page
from registry.server.storage.blobs import digest_of, key_of
from registry.server.storage.references import BlobState, PushState

_HEX = "0123456789abcdef"
_ATTESTATION = "an attestation"


def check(page: Page, prefix: str) -> str:
    """One shard; the next one, or empty at the end."""
    if len(prefix) != 2 or set(prefix) - set(_HEX):
        raise Invalid("REQUEST_INVALID", "cursor: not one that this server gave")
    try:
        _shard(page, prefix)
    except Unavailable as e:
        if page.blobs.kind != "local":  # no prefix of a bucket fails alone: whoever asks once more gets all of it
            raise
        page.unreadable(f"blobs/sha256/{prefix}/", e)
    if prefix == "ff":
        _staged(page)
        return ""
    return f"{int(prefix, 16) + 1:02x}"


def _shard(page: Page, prefix: str) -> None:
    with page.snapshot() as session:
        found = session.exec(select(BlobRow).where(col(BlobRow.digest).startswith(f"sha256:{prefix}"))).all()
        rows = {row.digest: row for row in found}
        needed = _needed(session, prefix)
    sizes = {str(digest_of(stat.key)): stat.size_bytes for stat in page.blobs.list(f"blobs/sha256/{prefix}/")}
    for digest in sorted(set(rows) | needed):
        row = rows.get(digest)
        if row is None or row.state != BlobState.LIVE or sizes.get(digest) != row.size_bytes:
            _look_again(page, digest)
    for digest in sorted(set(sizes) - set(rows)):
        _stray(page, digest)
    page.count("blobs", len(rows))


def _needed(session: Session, prefix: str) -> set[str]:
    """What versions, verdicts and attestations refer to, in this shard."""
    start = f"sha256:{prefix}"
    files = select(VersionFileRow.digest).where(col(VersionFileRow.digest).startswith(start)).distinct()
    reports = select(VerdictRow.report).where(col(VerdictRow.report).startswith(start)).distinct()
    attested = select(AttestationRow.digest).where(col(AttestationRow.digest).startswith(start)).distinct()
    return (
        set(session.exec(files).all())
        | set(session.exec(attested).all())
        | {report for report in session.exec(reports).all() if report}
    )


def _look_again(page: Page, digest: str) -> None:
    """A blob that did not look well: its row and its bytes now."""
    with page.snapshot() as session:
        row = session.get(BlobRow, digest)
        users = _users(session, digest)
    if row is None:
        if users:
            page.found("blob.row_missing", digest, f"has no row, and {users} refers to it")
        return
    if row.state not in (BlobState.LIVE, BlobState.CORRUPT):
        being_made = row.state == BlobState.PENDING and users.startswith(_ATTESTATION)  # its row comes before its bytes
        if users and not being_made:
            page.found("blob.state_wrong", digest, f"is {row.state}, and {users} refers to it")
        return
    if page.deep:
        return  # its bytes are read later in this run
    if row.state == BlobState.CORRUPT:
        page.found(
            "blob.damaged", digest, f"its bytes are known to be wrong or lost; {users or 'nothing'} refers to it"
        )
        return
    stat = page.blobs.stat(key_of(Digest(digest)))
    if stat is not None and stat.size_bytes == row.size_bytes:
        return
    with page.snapshot() as session:  # gone with its row meanwhile?
        still = session.get(BlobRow, digest)
    if still is None or still.state != BlobState.LIVE:
        return
    told = f"; {users} refers to it" if users else ""
    if stat is None:
        page.found("blob.bytes_missing", digest, f"the store has no bytes of it{told}")
    else:
        message = f"the store has {stat.size_bytes} bytes instead of {row.size_bytes}{told}"
        page.found("blob.size_differs", digest, message)


def _users(session: Session, digest: str) -> str:
    """Who refers to a blob, in words; empty for nobody."""
    file = session.exec(select(VersionFileRow).where(VersionFileRow.digest == digest).limit(1)).first()
    if file is not None:
        return f"file '{file.path}' of a version"
    report = session.exec(select(VerdictRow.id).where(VerdictRow.report == digest).limit(1)).first()
    if report is not None:
        return "a verdict"
    kind = session.exec(select(AttestationRow.kind).where(AttestationRow.digest == digest).limit(1)).first()
    return f"{_ATTESTATION} ({kind}) of a version" if kind is not None else ""


def _stray(page: Page, digest: str) -> None:
    with page.snapshot() as session:
        known = session.get(BlobRow, digest) is not None
    if not known and page.blobs.stat(key_of(Digest(digest))) is not None:
        message = "the store has bytes that no row knows; after a restore run `adapter reindex` before any `adapter gc`"
        page.found("blob.stray", digest, message)


def _staged(page: Page) -> None:
    """Left-overs of pushes that ended are no damage: the next `gc` removes them."""
    pushes = {stat.key.split("/")[1] for stat in page.blobs.list("staging/")}
    with page.snapshot() as session:
        held = select(PushRow.id).where(col(PushRow.id).in_(pushes), PushRow.state == PushState.OPEN)
        ended = pushes - set(session.exec(held).all())
    page.count("pushes_ended_with_staged_bytes", len(ended))
