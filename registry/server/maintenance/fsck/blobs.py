"""Check blobs: each row has its bytes and each final key its row; what is referenced has a blob.

- A shard is all blobs whose digests begin with the same two hexadecimal digits; its rows and keys are compared.
- What looks wrong is looked up again, the row after the bytes: a push or GC may have been in the middle of it.
- A shard's folder that cannot be read is a finding, and does not stop the check.
"""

from __future__ import annotations

from sqlmodel import Session, col, select

from registry.digest import Digest
from registry.errors import Unavailable, invalid_cursor
from registry.server.database.any_of import any_of
from registry.server.database.models import AttestationRow, BlobRow, PushRow, VerdictRow, VersionFileRow
from registry.server.maintenance.fsck.run import FsckRun
from registry.server.storage.blobs import digest_of, key_of
from registry.server.storage.references import BlobState, PushState

_ATTESTATION = "an attestation"


def check_shard(run: FsckRun, prefix: str) -> str:
    """Check the shard of this prefix; return the next prefix, empty at the end."""
    if len(prefix) != 2 or set(prefix) - set("0123456789abcdef"):
        raise invalid_cursor()
    try:
        _compare(run, prefix)
    except Unavailable as e:
        if run.blobs.kind != "local":  # one prefix of a bucket does not fail alone: a retry gets all of it
            raise
        run.add_unreadable(f"blobs/sha256/{prefix}/", e)
    if prefix == "ff":
        _count_staged(run)
        return ""
    return f"{int(prefix, 16) + 1:02x}"


def _compare(run: FsckRun, prefix: str) -> None:
    with run.snapshot() as session:
        statement = select(BlobRow).where(col(BlobRow.digest).startswith(f"sha256:{prefix}"))
        rows = {row.digest: row for row in session.exec(statement)}
        referenced = _select_referenced(session, prefix)
    sizes = {str(digest_of(stat.key)): stat.size_bytes for stat in run.blobs.list(f"blobs/sha256/{prefix}/")}
    for digest in sorted(set(rows) | referenced):
        row = rows.get(digest)
        if row is None or row.state != BlobState.LIVE or sizes.get(digest) != row.size_bytes:
            _check_again(run, digest)
    for digest in sorted(set(sizes) - set(rows)):
        _check_stray(run, digest)
    run.count("blobs", len(rows))


def _select_referenced(session: Session, prefix: str) -> set[str]:
    """The blobs of this shard that versions, verdicts and attestations refer to."""
    columns = (col(VersionFileRow.digest), col(VerdictRow.report), col(AttestationRow.digest))
    selects = [select(column).where(column.startswith(f"sha256:{prefix}")).distinct() for column in columns]
    return {digest for statement in selects for digest in session.exec(statement) if digest}


def _check_again(run: FsckRun, digest: str) -> None:
    with run.snapshot() as session:
        row = session.get(BlobRow, digest)
        user = _find_user(session, digest)
    if row is None:
        if user:
            run.add("blob.row_missing", digest, f"has no row, and {user} refers to it")
        return
    if row.state not in (BlobState.LIVE, BlobState.CORRUPT):
        being_written = row.state == BlobState.PENDING and user.startswith(_ATTESTATION)  # its row precedes its bytes
        if user and not being_written:
            run.add("blob.state_wrong", digest, f"is {row.state}, and {user} refers to it")
        return
    if run.deep:
        return  # a later stage of this run reads its bytes
    if row.state == BlobState.CORRUPT:
        message = f"its bytes are known to be wrong or lost; {user or 'nothing'} refers to it"
        run.add("blob.damaged", digest, message)
        return
    stat = run.blobs.stat(key_of(Digest(digest)))
    if stat is not None and stat.size_bytes == row.size_bytes:
        return
    with run.snapshot() as session:  # deleted with its row meanwhile?
        current = session.get(BlobRow, digest)
    if current is None or current.state != BlobState.LIVE:
        return
    suffix = f"; {user} refers to it" if user else ""
    if stat is None:
        run.add("blob.bytes_missing", digest, f"the store has no bytes of it{suffix}")
    else:
        message = f"the store has {stat.size_bytes} bytes instead of {row.size_bytes}{suffix}"
        run.add("blob.size_differs", digest, message)


def _find_user(session: Session, digest: str) -> str:
    """Describe something that refers to a blob; empty if nothing does."""
    file = session.exec(select(VersionFileRow).where(VersionFileRow.digest == digest).limit(1)).first()
    if file is not None:
        return f"file '{file.path}' of a version"
    report = session.exec(select(VerdictRow.id).where(VerdictRow.report == digest).limit(1)).first()
    if report is not None:
        return "a verdict"
    kind = session.exec(select(AttestationRow.kind).where(AttestationRow.digest == digest).limit(1)).first()
    return f"{_ATTESTATION} ({kind}) of a version" if kind is not None else ""


def _check_stray(run: FsckRun, digest: str) -> None:
    with run.snapshot() as session:
        has_row = session.get(BlobRow, digest) is not None
    if not has_row and run.blobs.stat(key_of(Digest(digest))) is not None:
        message = "the store has bytes without a row; after a restore run `adapter reindex` before any `adapter gc`"
        run.add("blob.stray", digest, message)


def _count_staged(run: FsckRun) -> None:
    """Count ended pushes with staged bytes. They are no damage: the next GC deletes them."""
    push_ids = {stat.key.split("/")[1] for stat in run.blobs.list("staging/")}
    with run.snapshot() as session:
        open_pushes = select(PushRow.id).where(any_of(col(PushRow.id), push_ids), PushRow.state == PushState.OPEN)
        ended = push_ids - set(session.exec(open_pushes).all())
    run.count("pushes_ended_with_staged_bytes", len(ended))
